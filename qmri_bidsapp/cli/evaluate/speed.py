"""``qmri evaluate speed``: voxels per second of every estimator and, for comparison, of other programs."""

from __future__ import annotations

import argparse
import math
import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.cli.arguments import words
from qmri_bidsapp.cli.evaluate.results import add_json, check_json, write_json
from qmri_bidsapp.cli.resources import available_cpus
from qmri_bidsapp.config import check_device, find_device
from qmri_bidsapp.errors import UsageError

if TYPE_CHECKING:
    from qmri_bidsapp.core.acquisition import Acquisition
    from qmri_bidsapp.evaluation.speed.speed import Signals, Speed
    from qmri_bidsapp.models.base import SignalModel

#: Intended length of one repetition, s. Peers, which are slow, take this many times longer.
SECONDS = 1.0
PEER_FACTOR = 2.0
COLUMNS = ("model", "estimator", "measurements", "voxels", "voxels/s", "cores")
WIDTHS = (7, 34, 12, 10, 11, 6)


def add_parser(what: Any) -> None:
    """Add ``speed`` to the commands of ``qmri evaluate``."""
    parser = what.add_parser("speed", help="voxels per second on standard protocols, also of other programs")
    parser.add_argument(
        "--models", nargs="+", metavar="NAME", help="models to measure (default: all with a standard protocol)"
    )
    parser.add_argument("--peers", action="store_true", help="also measure other installed programs")
    add_json(parser)
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda[:n]", help="default: %(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: all available CPUs)")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, metavar="S", help="length of one measurement (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print one row at a time, and write the results.

    Raises
    ------
    UsageError
        If a model is unknown or has no standard protocol, or a number is out of range.
    OutputError
        If the results cannot be written.
    """
    check_device(arguments.device)
    threads = available_cpus() if arguments.threads is None else arguments.threads
    if threads < 1 or not 0 < arguments.seconds < math.inf:
        raise UsageError("--threads must be at least 1 and --seconds positive.")
    check_json(arguments.json)

    import torch

    torch.set_num_threads(threads)
    device = find_device(arguments.device)
    names = _models(arguments.models)
    print(f"{_machine(device)}; PyTorch {version('torch')}, threads: {threads}; Python {platform.python_version()}")
    print(f"Load of the machine before: {os.getloadavg()[0]:.1f} (other running programs make the numbers too low)\n")
    _print_row(COLUMNS)
    _print_row(tuple("-" * (width - 1) + ("-" if i < 2 else ":") for i, width in enumerate(WIDTHS)))
    results: dict[str, Any] = {}
    skipped: list[str] = []
    for name in names:
        estimators = dict(_measure_estimators(name, device, arguments.seconds, threads))
        peers = dict(_measure_peers(name, arguments.seconds, skipped)) if arguments.peers else {}
        results[name] = {key: {"voxels_per_second": value, "peers": peers} for key, value in estimators.items()}
    for reason in skipped:
        print(reason)
    write_json(results, arguments.json)


def _models(chosen: list[str] | None) -> list[str]:
    """Return the names of the models to measure."""
    from qmri_bidsapp.evaluation.standards import STANDARDS
    from qmri_bidsapp.registry import get_model, load_models

    if chosen is None:
        return [name for name in STANDARDS if name in load_models()]
    names = words("models", chosen)
    for name in names:
        if get_model(name).name not in STANDARDS:
            raise UsageError(f"Model {name} has no standard protocol; those that have one: {', '.join(STANDARDS)}.")
    return names


def _voxels(name: str) -> tuple[SignalModel, Acquisition, Callable[[int], Signals]]:
    """Return a model, the protocol to which it is fitted, and a function that draws voxels."""
    from qmri_bidsapp.evaluation.standards import simulate, standard
    from qmri_bidsapp.registry import get_model

    model = get_model(name)
    acquisition, _ = model.adapt(standard(name))
    return model, acquisition, lambda n_voxels: simulate(model, acquisition, n_voxels)


def _measure_estimators(name: str, device: str, seconds: float, threads: int) -> Iterator[tuple[str, float]]:
    """Yield voxels per second of each estimator that supports the model."""
    from qmri_bidsapp.estimators.spatial.base import SpatialNetwork
    from qmri_bidsapp.estimators.trained import TrainedEstimator
    from qmri_bidsapp.evaluation.speed.speed import in_slices, measure
    from qmri_bidsapp.registry import load_estimators

    model, acquisition, draw = _voxels(name)
    for key, estimator in load_estimators().items():
        if estimator.supports(model):
            make = estimator.brief if issubclass(estimator, TrainedEstimator) else estimator
            fitted = make(model, device=device).fit(acquisition)
            fit = in_slices(fitted) if isinstance(fitted, SpatialNetwork) else fitted.predict
            speed = measure(fit, draw, seconds)
            _print_speed(name, key, acquisition, speed, threads if device == "cpu" else device)
            yield key, round(speed.voxels_per_second, 1)


def _measure_peers(name: str, seconds: float, skipped: list[str]) -> Iterator[tuple[str, float]]:
    """Yield voxels per second of each peer that is installed; append a reason to `skipped` for the others."""
    from qmri_bidsapp.evaluation.speed.peers import PEERS, one_core
    from qmri_bidsapp.evaluation.speed.speed import measure

    _, acquisition, draw = _voxels(name)
    for peer in PEERS:
        if peer.model != name:
            continue
        try:
            with one_core():
                speed = measure(peer.prepare(acquisition), draw, PEER_FACTOR * seconds, first=peer.first)
        except ImportError as error:
            skipped.append(f"Peer {peer.name} was skipped: {error} (package {peer.package}).")
            continue
        _print_speed(name, f"{peer.name} {_version(peer.package)} (peer)", acquisition, speed, 1)
        yield peer.name, round(speed.voxels_per_second, 1)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _print_speed(model: str, estimator: str, acquisition: Acquisition, speed: Speed, cores: int | str) -> None:
    numbers = (f"{acquisition.n_measurements}", f"{speed.n_voxels:,}", f"{speed.voxels_per_second:,.0f}", f"{cores}")
    _print_row((model, estimator, *numbers))


def _print_row(cells: tuple[str, ...]) -> None:
    """Print a row of a Markdown table, with numbers aligned to the right."""
    texts = [cell.ljust(width) for cell, width in zip(cells[:2], WIDTHS[:2], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(cells[2:], WIDTHS[2:], strict=True)]
    print("| " + " | ".join(texts + numbers) + " |", flush=True)


def _machine(device: str) -> str:
    """Return a description of the processor or GPU, without the name of the machine."""
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {available_cpus()} CPUs"
