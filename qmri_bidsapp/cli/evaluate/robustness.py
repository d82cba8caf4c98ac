"""``qmri evaluate robustness``: how often wrong estimates are not marked, under minor faults of the input."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.cli.arguments import words
from qmri_bidsapp.cli.evaluate.results import add_json, add_voxel_counts, check_json, show, voxel_counts, write_json
from qmri_bidsapp.errors import NotComparableError, UsageError

if TYPE_CHECKING:
    from qmri_bidsapp.evaluation.flags.robustness import Rates

    #: Estimator -> variation -> parameter -> rates.
    Found = dict[str, dict[str, dict[str, Rates] | None]]
    #: Takes a model and its estimators.
    Measure = Callable[[str, list[str]], Found]


def add_parser(what: Any) -> None:
    """Add ``robustness`` to the commands of ``qmri evaluate``."""
    parser = what.add_parser("robustness", help="wrong estimates that nothing marks, under minor faults of the input")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: t1 t2 smt noddi")
    parser.add_argument(
        "--estimators", nargs="+", metavar="NAME", help="default: all voxelwise ones; learned ones are trained"
    )
    parser.add_argument(
        "--images",
        action="store_true",
        help="small simulated heads, one for each fault, that go through the whole app, by nlls unless --estimators; "
        "--voxels is about the number in grey and white matter (default: 7200, of 8 slices, the least)",
    )
    add_voxel_counts(parser, "voxels per variation")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print a table per model, and write the results.

    Raises
    ------
    UsageError
        If a model is unknown, no estimator supports it, or there are too few voxels.
    NotComparableError
        If the app made no map of any head.
    OutputError
        If the results cannot be written.
    """
    check_json(arguments.json)

    from qmri_bidsapp.evaluation.flags import robustness
    from qmri_bidsapp.registry import get_model

    models = list(robustness.MODELS if arguments.models is None else words("models", arguments.models))
    for name in models:
        if name not in robustness.MODELS:
            raise UsageError(f"Model {name!r} is not measured; available models: {', '.join(robustness.MODELS)}.")
    chosen = None if arguments.estimators is None else words("estimators", arguments.estimators)
    if arguments.images and chosen is None:
        chosen = ["nlls"]
    estimators = {name: robustness.estimators_of(get_model(name), chosen) for name in models}
    measure = _of_images(arguments) if arguments.images else _of_voxels(arguments)
    results: dict[str, dict[str, Any]] = {}
    for name in models:
        found = measure(name, estimators[name])
        _print(name, found, through_images=arguments.images)
        results[name] = {
            key: {what: robustness.to_dict(rates) for what, rates in part.items()} for key, part in found.items()
        }
    write_json(results, arguments.json)


def _of_voxels(arguments: argparse.Namespace) -> Measure:
    """Return what measures the rates of a model on simulated voxels."""
    from qmri_bidsapp.evaluation.flags import robustness

    n, n_reference = voxel_counts(arguments.voxels, robustness.N_VOXELS_EACH, arguments.reference)

    def measure(model: str, estimators: list[str]) -> Found:
        return {
            key: dict(robustness.evaluate(model, key, n=n, n_reference=n_reference, report=show)) for key in estimators
        }

    return measure


def _of_images(arguments: argparse.Namespace) -> Measure:
    """Return what measures the rates of a model on heads that go through the app, in a folder that is then removed."""
    from qmri_bidsapp.evaluation.flags import faulty_heads

    if arguments.reference is not None:
        raise UsageError("--reference is of simulated voxels; with --images the app makes its own certificates.")
    n, _ = voxel_counts(arguments.voxels, faulty_heads.N_VOXELS_EACH, None)

    def measure(model: str, estimators: list[str]) -> Found:
        with tempfile.TemporaryDirectory(prefix="qmri-robustness-") as folder:
            data, out = Path(folder) / "data", Path(folder) / "out"
            show(f"{model}: simulated heads")
            labels = faulty_heads.write_heads(data, model, n=n)
            show(f"{model}: {len(labels)} heads through the app")
            _run_app(data, out, model, estimators)
            found: Found = {key: dict.fromkeys(labels.values()) for key in estimators}
            for subject, estimator, rates in faulty_heads.rates_of_run(out, data, model):
                found[estimator][labels[subject]] = rates
        return found

    return measure


def _run_app(data: Path, out: Path, model: str, estimators: list[str]) -> None:
    """Map a data set in a process of its own, one core; the app may refuse participants, but not all."""
    command = [sys.executable, "-m", "qmri_bidsapp.cli.app.run", str(data), str(out), "participant"]
    command += ["-w", str(out.parent / "work"), "--models", model, "--estimators", *estimators]
    done = subprocess.run([*command, "--skip-bids-validation", "--nprocs", "1"], capture_output=True, text=True)
    if not list(out.glob("sub-*.html")):
        raise NotComparableError(f"qmri-bids ended with {done.returncode} and no map: {done.stderr.strip()[-500:]}")


def _print(model: str, found: Found, *, through_images: bool) -> None:
    """Print a Markdown table: for each variation and estimator the parameter with most silent failures."""
    what_counts = "off / off, usable, and the range misses the truth" if through_images else "off / off and not marked"
    print(f"\n{model}: estimates that are {what_counts}, %\n")
    print(f"| variation | {' | '.join(found)} |")
    print("| --- |" + " ---: |" * len(found))
    for what in next(iter(found.values())):
        cells = []
        for by_variation in found.values():
            rates = by_variation[what]
            if rates is None:
                # Weights for another protocol are refused, and so are some images.
                cells.append("refused" if through_images else "")
                continue
            off, silent = max(
                ((part.off, part.silent_outside if through_images else part.silent) for part in rates.values()),
                key=lambda pair: pair[1],
            )
            cells.append(f"{100 * off:.2f} / {100 * silent:.2f}")
        print(f"| {what} | {' | '.join(cells)} |", flush=True)
