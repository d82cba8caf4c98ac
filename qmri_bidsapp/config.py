"""Everything that a user can choose, in one frozen object that can be written to TOML and read back."""

from __future__ import annotations

import dataclasses
import difflib
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
#: Part of the machine's memory that is used by default.
MEMORY_SHARE = 0.9
_PATHS = ("bids_dir", "output_dir", "work_dir", "bids_filter_file", "bids_database_dir", "use_plugin")
#: What belongs to one call and is not given back with --config-file.
_PER_CALL = ("bids_dir", "output_dir", "analysis_level", "run_id", "config_file")


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
    models: tuple[str, ...] = ("auto",)
    estimators: tuple[str, ...] = ("auto",)
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
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UsageError(f"--device must be auto, cpu, cuda or cuda:n, got {self.device!r}.")
        if self.output_layout not in LAYOUTS:
            raise UsageError(f"--output-layout must be one of {', '.join(LAYOUTS)}, got {self.output_layout!r}.")
        for name in ("nprocs", "omp_nthreads"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}.")
        if not self.mem_gb > 0:
            raise UsageError(f"--mem-gb must be positive, got {self.mem_gb:g}.")
        for label in (*self.participant_label, *self.session_label, *self.run_label):
            if not label.isalnum():
                raise UsageError(f"Labels are letters and digits, got {label!r}.")
        for name in ("bids_filter_file", "use_plugin"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise InputMissingError(f"--{name.replace('_', '-')}: the file {path} does not exist.")
        if self.bids_dir == self.work_dir or self.bids_dir in self.work_dir.parents:
            raise UsageError(
                f"The work folder {self.work_dir} lies in the input folder; choose another with --work-dir."
            )

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
        if self.device == "cpu":
            return "cpu"
        import torch

        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if self.device == "auto":
            return "cuda:0" if n_devices else "cpu"
        index = int(self.device.partition(":")[2] or 0)
        if index >= n_devices:
            raise UsageError(f"--device {self.device} asked for, but {n_devices} GPUs are usable; give --device cpu.")
        return f"cuda:{index}"

    def to_toml(self) -> str:
        """Return the choices as TOML."""
        import tomli_w

        values = {}
        for name, value in dataclasses.asdict(self).items():
            if value is not None:
                values[name] = (
                    str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
                )
        return tomli_w.dumps(values)


def read_toml(path: Path) -> dict[str, Any]:
    """Return the choices of a file that `Config.to_toml` wrote, without those that belong to one call.

    Raises
    ------
    InputMissingError
        If the file does not exist.
    UsageError
        If it is not TOML or holds an unknown name.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    if not path.is_file():
        raise InputMissingError(f"The configuration file {path} does not exist.")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from error
    known = {field.name for field in dataclasses.fields(Config)}
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(sorted(known))}"
            raise UsageError(f"{path} holds the unknown name {name!r}{hint}")
    return {name: value for name, value in values.items() if name not in _PER_CALL}


def convert(values: dict[str, Any]) -> dict[str, Any]:
    """Give plain values the types of `Config`: strings become paths, lists become tuples.

    Raises
    ------
    UsageError
        If a value has the wrong type.
    """
    converted = {}
    types = {field.name: str(field.type) for field in dataclasses.fields(Config)}
    for name, value in values.items():
        if name in _PATHS and value is not None:
            value = Path(os.path.abspath(Path(value).expanduser()))  # noqa: PTH100 - resolve() would follow links
        elif isinstance(value, list):
            value = tuple(str(item) for item in value)
        elif types[name] == "float" and isinstance(value, int):
            value = float(value)
        expected = {"int": int, "float": float, "bool": bool, "str": str, "tuple[str, ...]": tuple}.get(types[name])
        if expected is not None and (not isinstance(value, expected) or (expected is int and isinstance(value, bool))):
            raise UsageError(f"{name} must be {types[name]}, got {value!r}.")
        converted[name] = value
    return converted


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of CPUs that this process may use: its affinity, or its control group's quota if less."""
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read_words(cgroup / "cpu.max")
    if len(quota) == 2 and quota[0] != "max":
        n_cpus = min(n_cpus, max(1, int(int(quota[0]) / int(quota[1]))))
    old = _read_words(cgroup / "cpu/cpu.cfs_quota_us"), _read_words(cgroup / "cpu/cpu.cfs_period_us")
    if all(old) and int(old[0][0]) > 0:
        n_cpus = min(n_cpus, max(1, int(old[0][0]) // int(old[1][0])))
    return n_cpus


def available_memory_gb(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Return `MEMORY_SHARE` of the machine's memory, or of the control group's limit if less, GB."""
    import psutil

    limit = float(psutil.virtual_memory().total)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        words = _read_words(cgroup / name)
        if words and words[0] != "max":
            limit = min(limit, float(words[0]))
    return round(MEMORY_SHARE * limit / 1024**3, 2)


def _read_words(path: Path) -> list[str]:
    """Return the words of a small file, none if it cannot be read."""
    try:
        return path.read_text().split()
    except OSError:
        return []
