"""Everything that a user can choose, in one frozen object that can be written to TOML and read back."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qmri_bidsapp.errors import InputMissingError, UsageError

LAYOUTS = ("bids", "legacy")
LEVELS = ("participant", "group")
#: Fibre directions per voxel: one, or as many as there are.
N_FIBRES = ("1", "auto")
#: Steps of preprocessing that ``--skip`` leaves out -> what they do.
STEPS = {
    "join": "joining of diffusion series that were acquired alike",
    "distortion": "correction of the distortion of diffusion series",
    "denoise": "denoising of diffusion series",
    "noise-floor": "correction of the noise floor of denoised series",
    "unring": "Gibbs unringing of diffusion series",
    "align": "alignment of the images of a series",
    "drift": "correction of the drift of the signal of diffusion series",
    "lost-slices": "replacement of slices of diffusion series that lost signal",
    "bias-field": "bias-field correction of T1w images",
    "register": "registration of the T1w to a series",
}
#: How diffusion series are denoised.
DENOISING = ("mppca", "patch2self")
#: What ``--ignore`` leaves unread -> what it is.
IGNORED = {"fieldmaps": "images in fmap/ from which the distortion of diffusion series is found"}
#: Training distributions of learned estimators.
PRIORS = ("uniform", "healthy", "mixed", "healthy-wm", "healthy-gm")
#: What belongs to one call and is not given back with --config-file.
PER_CALL = ("bids_dir", "output_dir", "analysis_level", "run_id")
_KINDS = {
    "Path": "a path",
    "Path | None": "a path",
    "tuple[str, ...]": "a list of strings",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a string",
}


def check_device(device: str) -> None:
    """Raise UsageError unless --device can be understood."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device, re.ASCII):
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:n, got {device!r}.")


def find_device(device: str) -> str:
    """Return the torch device that --device stands for: what was asked for, or the first GPU, or the CPU.

    Raises
    ------
    UsageError
        If a GPU was asked for and there is none.
    """
    if device == "cpu":
        return "cpu"
    import torch

    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda:0" if n_devices else "cpu"
    index = int(device.partition(":")[2] or 0)
    if index >= n_devices:
        raise UsageError(
            f"--device {device} was asked for, but the number of usable GPUs is {n_devices}; give --device auto or cpu."
        )
    return f"cuda:{index}"


@dataclass(frozen=True)
class Config:
    """The choices of one run. Paths are absolute; see ``qmri-bids --help`` for the meaning of each."""

    bids_dir: Path
    output_dir: Path
    analysis_level: str
    run_id: str
    work_dir: Path
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    run_label: tuple[str, ...] = ()
    bids_filter_file: Path | None = None
    skip_bids_validation: bool = False
    bids_database_dir: Path | None = None
    skip: tuple[str, ...] = ()
    denoise: str = "mppca"
    ignore: tuple[str, ...] = ()
    models: tuple[str, ...] = ("auto",)
    estimators: tuple[str, ...] = ("auto",)
    weights: Path | None = None
    prior: str = "uniform"
    n_fibres: str = "1"
    no_certificate: bool = False
    debias: bool = False
    motion_weights: Path | None = None
    motion_weights_sha256: str = ""
    qc_head: Path | None = None
    no_motion_score: bool = False
    device: str = "auto"
    nprocs: int = 1
    omp_nthreads: int = 1
    mem_gb: float = 4.0
    use_plugin: Path | None = None
    clean_workdir: bool = False
    stop_on_first_crash: bool = False
    reports_only: bool = False
    boilerplate_only: bool = False
    output_layout: str = "bids"
    verbose: int = 0

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_paths()

    def _check_choices(self) -> None:
        check_device(self.device)
        if self.output_layout not in LAYOUTS:
            raise UsageError(f"--output-layout must be {' or '.join(LAYOUTS)}, got {self.output_layout!r}.")
        if self.prior not in PRIORS:
            raise UsageError(f"--prior must be {', '.join(PRIORS[:-1])} or {PRIORS[-1]}, got {self.prior!r}.")
        if self.prior != "uniform" and self.weights is not None:
            raise UsageError("--weights bring the prior that they were trained with; give --weights or --prior.")
        if self.debias and self.no_certificate:
            raise UsageError("--debias takes the expected bias from certificates; leave --no-certificate out.")
        if self.no_motion_score and (self.motion_weights or self.qc_head):
            raise UsageError("--motion-weights and --qc-head have no effect with --no-motion-score; leave one out.")
        if self.motion_weights_sha256:
            if self.motion_weights is None:
                raise UsageError("--motion-weights-sha256 is that of --motion-weights; name the weights too.")
            if not re.fullmatch(r"[0-9a-fA-F]{64}", self.motion_weights_sha256):
                raise UsageError(f"--motion-weights-sha256 takes 64 digits, got {self.motion_weights_sha256!r}.")
        if self.n_fibres not in N_FIBRES:
            raise UsageError(f"--n-fibres must be {' or '.join(N_FIBRES)}, got {self.n_fibres!r}.")
        for name in ("nprocs", "omp_nthreads"):
            if getattr(self, name) < 1:
                raise UsageError(f"{_option(name)} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.mem_gb < math.inf:
            raise UsageError(f"--mem-gb must be positive, got {self.mem_gb:g}.")
        for name in ("participant_label", "session_label", "run_label"):
            for label in getattr(self, name):
                if not re.fullmatch(r"[0-9a-zA-Z+]+", label):
                    raise UsageError(f"{_option(name)} takes labels of letters, digits and +, got {label!r}.")
        for label in self.run_label:
            if not label.isdecimal():
                raise UsageError(f"--run-label takes numbers, got {label!r}.")
        for name in ("models", "estimators"):
            if not getattr(self, name):
                raise UsageError(f"{_option(name)} must name at least one, or be auto.")
        if unknown := [step for step in self.skip if step not in STEPS]:
            raise UsageError(f"--skip knows no step {', '.join(unknown)}; steps: {', '.join(STEPS)}.")
        if self.denoise not in DENOISING:
            raise UsageError(f"--denoise must be {' or '.join(DENOISING)}, got {self.denoise!r}.")
        if self.denoise != "mppca" and "denoise" in self.skip:
            raise UsageError(f"--denoise {self.denoise} has no effect with --skip denoise; leave one out.")
        if unknown := [name for name in self.ignore if name not in IGNORED]:
            raise UsageError(f"--ignore does not know {', '.join(unknown)}; known: {', '.join(IGNORED)}.")
        if self.reports_only and self.boilerplate_only:
            raise UsageError("--reports-only and --boilerplate-only exclude each other; give one of them.")

    def _check_paths(self) -> None:
        for name in ("bids_filter_file", "use_plugin"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise InputMissingError(f"{_option(name)}: the file {path} does not exist.")
        if self.weights is not None and not self.weights.is_dir():
            raise InputMissingError(f"--weights: the folder {self.weights} does not exist; make it with `qmri train`.")
        if self.motion_weights is not None and not self.motion_weights.exists():
            raise InputMissingError(f"--motion-weights: {self.motion_weights} does not exist.")
        if self.qc_head is not None and not self.qc_head.is_dir():
            raise InputMissingError(f"--qc-head: the folder {self.qc_head} does not exist; see `qmri train qc-head`.")
        work, source = self.work_dir.resolve(), self.bids_dir.resolve()
        if work == source or source in work.parents:
            raise UsageError(f"The work folder {self.work_dir} lies in the input folder; name another with --work-dir.")
        if work == self.derivatives_dir.resolve():
            raise UsageError(f"The work folder {self.work_dir} is the output folder too; name another with --work-dir.")

    @property
    def derivatives_dir(self) -> Path:
        """Where the derivatives go: the output folder, or ``qmri_bidsapp`` in it (legacy layout)."""
        return self.output_dir if self.output_layout == "bids" else self.output_dir / "qmri_bidsapp"

    @property
    def log_dir(self) -> Path:
        """Where logs, records and the methods text go."""
        return self.derivatives_dir / "logs"

    @cached_property
    def torch_device(self) -> str:
        """Torch device: what was asked for, or the first GPU, or the CPU.

        Raises
        ------
        UsageError
            If a GPU was asked for and there is none.
        """
        return find_device(self.device)

    def to_toml(self) -> str:
        """Return the choices as TOML; what was not chosen is left out."""
        import tomli_w

        values: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Path):
                values[field.name] = str(value)
            elif isinstance(value, tuple):
                values[field.name] = list(value)
            elif value is not None:
                values[field.name] = value
        return tomli_w.dumps(values)


def _option(name: str) -> str:
    """Return the option of a field's name."""
    return f"--{name.replace('_', '-')}"


def read_toml(path: Path) -> dict[str, Any]:
    """Return the choices of a file that `Config.to_toml` wrote, without those that belong to one call.

    Raises
    ------
    InputMissingError
        If the file does not exist or cannot be read.
    UsageError
        If it is not TOML or holds an unknown name.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputMissingError(f"The configuration file {path} cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from error
    known = {field.name for field in dataclasses.fields(Config)}
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}."
            raise UsageError(f"{path} holds the unknown name {name!r}; {hint}")
    return {name: value for name, value in values.items() if name not in PER_CALL}


def make_config(values: dict[str, Any]) -> Config:
    """Build a `Config` from plain values: strings become paths, lists become tuples.

    Raises
    ------
    UsageError
        If a value has the wrong type or is out of range.
    InputMissingError
        If a file that is named does not exist.
    """
    kinds = {field.name: str(field.type) for field in dataclasses.fields(Config)}
    return Config(**{name: _convert(name, kinds[name], value) for name, value in values.items()})


def _convert(name: str, kind: str, value: Any) -> Any:
    """Return a value as a field's type; nothing is guessed: ``participant_label = [1]`` could mean ``01``."""
    if kind.startswith("Path"):
        if value and isinstance(value, (str, Path)):
            return _absolute(value)
    elif kind == "tuple[str, ...]":
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return tuple(value)
    elif kind == "float":
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif type(value).__name__ == kind:
        return value
    raise UsageError(f"{name} must be {_KINDS[kind]}, got {value!r}.")


def _absolute(value: str | Path) -> Path:
    """Return an absolute path; links stay, since their targets may differ from one machine to the next."""
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:
        raise UsageError(f"The home folder in {value} is not known; write the whole path.") from error
    return Path(os.path.normpath(path.absolute()))
