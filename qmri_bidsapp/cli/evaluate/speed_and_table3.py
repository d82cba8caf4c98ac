"""``qmri evaluate``: speed and errors of every estimator and, for comparison, of others.

``speed`` measures voxels per second, of other programs too; ``table3`` repeats Table 3 of Gyori et al. 2021;
``relaxometry``, ``ood``, ``lesion``, ``robustness`` and ``motion`` are in modules of their own.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.cli.arguments import words
from qmri_bidsapp.cli.evaluate import flags as evaluate_ood
from qmri_bidsapp.cli.evaluate import lesion as evaluate_lesion
from qmri_bidsapp.cli.evaluate import motion as evaluate_motion
from qmri_bidsapp.cli.evaluate import relaxometry as evaluate_relaxometry
from qmri_bidsapp.cli.evaluate import robustness as evaluate_robustness
from qmri_bidsapp.cli.evaluate.results import check_json, write_json
from qmri_bidsapp.cli.resources import available_cpus
from qmri_bidsapp.config import check_device, find_device
from qmri_bidsapp.errors import OutputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from qmri_bidsapp.core.acquisition import Acquisition
    from qmri_bidsapp.evaluation.speed.speed import Signals, Speed
    from qmri_bidsapp.evaluation.table3.table3 import Errors
    from qmri_bidsapp.models.base import SignalModel

#: Intended length of one repetition, s; peers, which are slow, take this many times longer.
SECONDS = 1.0
PEER_FACTOR = 2.0
#: Simulated heads whose fits make the distribution "healthy": number, voxels (mm), how many of them (135,000 in all),
#: and echo time (s), as in the paper.
N_SUBJECTS = 5
VOXEL_SIZE = 2.0
N_VOXELS = 27_000
ECHO_TIME = 0.094
COLUMNS = ("model", "estimator", "measurements", "voxels", "voxels/s", "cores")
WIDTHS = (7, 34, 12, 10, 11, 6)


def add_parser(commands: Any) -> None:
    """Add ``evaluate`` to the commands of ``qmri``."""
    evaluate = commands.add_parser("evaluate", help="measure models and estimators")
    what = evaluate.add_subparsers(dest="what", required=True, metavar="WHAT", parser_class=type(evaluate))
    speed = what.add_parser("speed", help="voxels per second on standard protocols, and those of peers")
    speed.add_argument(
        "--models", nargs="+", metavar="NAME", help="models to measure (default: all with a standard protocol)"
    )
    speed.add_argument("--peers", action="store_true", help="measure other programs too, those that are installed")
    speed.add_argument("--json", type=Path, metavar="FILE", help="write the results to a file")
    speed.add_argument("--device", default="auto", metavar="auto|cpu|cuda[:n]", help="default: %(default)s")
    speed.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: all CPUs allowed)")
    speed.add_argument(
        "--seconds", type=float, default=SECONDS, metavar="S", help="length of one measurement (default: %(default)s)"
    )
    speed.set_defaults(run=run_speed)
    table3 = what.add_parser("table3", help="errors of estimators of the spherical mean (Gyori et al. 2021, Table 3)")
    table3.add_argument(
        "--estimators",
        nargs="+",
        metavar="NAME",
        help="rows: traditional, estimators of smt, or net-, rf-, boosting-, polynomial-, wide-deep- and uniform, "
        "healthy, mixed (default: all)",
    )
    table3.add_argument(
        "--samples", type=int, metavar="N", help="noisy samples of each of 441 points (default: 10000, as in the paper)"
    )
    table3.add_argument("--json", type=Path, metavar="FILE", help="write the results to a file")
    table3.add_argument("--figures", type=Path, metavar="DIR", help="draw where each method's estimates lead (PNG)")
    table3.set_defaults(run=run_table3)
    evaluate_relaxometry.add_parser(what)
    evaluate_ood.add_parser(what)
    evaluate_lesion.add_parser(what)
    evaluate_robustness.add_parser(what)
    evaluate_motion.add_parser(what)


def run_speed(arguments: argparse.Namespace) -> None:
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
    print(
        f"Load of the machine before: {os.getloadavg()[0]:.1f} (another program that computes makes numbers too low)\n"
    )
    _print_row(COLUMNS)
    _print_row(tuple("-" * (width - 1) + ("-" if i < 2 else ":") for i, width in enumerate(WIDTHS)))
    results: dict[str, Any] = {}
    left_out: list[str] = []
    for name in names:
        estimators = dict(_measure_estimators(name, device, arguments.seconds, threads))
        peers = dict(_measure_peers(name, arguments.seconds, left_out)) if arguments.peers else {}
        results[name] = {key: {"voxels_per_second": value, "peers": peers} for key, value in estimators.items()}
    for reason in left_out:
        print(reason)
    write_json(results, arguments.json)


def run_table3(arguments: argparse.Namespace) -> None:
    """Measure, print one row at a time beside those of the paper, and write the results.

    Raises
    ------
    UsageError
        If an estimator is unknown, or there are fewer than 2 samples.
    OutputError
        If the results cannot be written.
    """
    check_json(arguments.json)
    if arguments.figures is not None and arguments.figures.exists() and not arguments.figures.is_dir():
        raise OutputError(f"--figures: {arguments.figures} is no folder.")

    from qmri_bidsapp.evaluation.table3 import table3
    from qmri_bidsapp.evaluation.table3.bias_figure import draw_bias

    chosen = None if arguments.estimators is None else words("estimators", arguments.estimators)
    fits = table3.methods(chosen, _healthy_subjects)
    n_samples = table3.N_SAMPLES if arguments.samples is None else arguments.samples
    noisy = table3.simulate(n_samples)
    print(f"{n_samples:,} samples of each of {len(noisy)} points, SNR {table3.SNR:g}; v / lambda, um2/ms\n")
    columns = ("RMSE", "mean absolute bias", "std")
    print("| method | " + " | ".join((*columns, *(f"{name}, lambda > 0" for name in columns))) + " |")
    print("| --- |" + " ---: |" * 6)
    for name, published in table3.PUBLISHED.items():
        _print_errors(f"{name} (paper)", published)
    results, means = {}, {}
    for name, prepare in fits.items():
        found = table3.estimate(prepare(), noisy)
        pooled, identifiable = table3.measure(found)
        _print_errors(name, pooled, identifiable)
        results[name], means[name] = asdict(pooled), found.mean(1)
    if arguments.figures is not None:
        print(f"\n{draw_bias(means, arguments.figures)}")
    write_json(results, arguments.json)


def _healthy_subjects() -> list[npt.NDArray[np.float64]]:
    """Return noise-free signals of the brains of simulated heads without a lesion, (n_voxels, 5) each."""
    import numpy as np

    from qmri_bidsapp.demo.phantom import BRAIN_TISSUES, TISSUE_PROPERTIES, make_head
    from qmri_bidsapp.evaluation.table3.healthy_brain import brain_signals
    from qmri_bidsapp.evaluation.table3.table3 import PROTOCOL
    from qmri_bidsapp.models.smt import SphericalMeanTechnique

    subjects = []
    for seed in range(N_SUBJECTS):
        head, rng = make_head(1, VOXEL_SIZE, seed=seed), np.random.default_rng(seed)
        chosen = rng.choice(np.flatnonzero(head.brain), N_VOXELS, replace=False)
        weights = {
            name: head.fractions[name].ravel()[chosen]
            * TISSUE_PROPERTIES[name].density
            * np.exp(-ECHO_TIME / TISSUE_PROPERTIES[name].t2)
            for name in BRAIN_TISSUES
        }
        subjects.append(brain_signals(weights, SphericalMeanTechnique(), PROTOCOL, rng))
    return subjects


def _print_errors(name: str, *errors: Errors) -> None:
    """Print a row of a Markdown table: over all points and, where given, those of a diffusivity above zero."""
    cells = [f"{first:.4f} / {second:.4f}" for part in errors for first, second in astuple(part)]
    print("| " + " | ".join([name, *cells, *[""] * (6 - len(cells))]) + " |", flush=True)


def _models(chosen: list[str] | None) -> list[str]:
    """Return the names of the models to measure."""
    from qmri_bidsapp.evaluation.standards import STANDARDS
    from qmri_bidsapp.registry import get_model, load_models

    if chosen is None:
        return [name for name in STANDARDS if name in load_models()]
    names = words("models", chosen)
    for name in names:
        if get_model(name).name not in STANDARDS:
            raise UsageError(f"Model {name} has no standard protocol; those that have: {', '.join(STANDARDS)}.")
    return names


def _voxels(name: str) -> tuple[SignalModel, Acquisition, Callable[[int], Signals]]:
    """Return a model, the protocol it is fitted to, and what draws voxels."""
    from qmri_bidsapp.evaluation.standards import simulate, standard
    from qmri_bidsapp.registry import get_model

    model = get_model(name)
    acquisition, _ = model.adapt(standard(name))
    return model, acquisition, lambda n_voxels: simulate(model, acquisition, n_voxels)


def _measure_estimators(name: str, device: str, seconds: float, threads: int) -> Iterator[tuple[str, float]]:
    """Yield voxels per second of each estimator that supports the model."""
    from qmri_bidsapp.estimators.spatial.estimators import SpatialNetwork
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


def _measure_peers(name: str, seconds: float, left_out: list[str]) -> Iterator[tuple[str, float]]:
    """Yield voxels per second of each peer that is installed; say in `left_out` which are not."""
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
            left_out.append(f"Peer {peer.name} was left out: {error} (package {peer.package}).")
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
    """Print a row of a Markdown table, numbers to the right."""
    texts = [cell.ljust(width) for cell, width in zip(cells[:2], WIDTHS[:2], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(cells[2:], WIDTHS[2:], strict=True)]
    print("| " + " | ".join(texts + numbers) + " |", flush=True)


def _machine(device: str) -> str:
    """Return what the measurement runs on, without the name of the machine."""
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {available_cpus()} CPUs"
