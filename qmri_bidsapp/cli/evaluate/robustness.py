"""``qmri evaluate robustness``: how often wrong estimates are not marked, under minor faults of the input."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.cli.arguments import words
from qmri_bidsapp.cli.evaluate.results import add_json, add_voxel_counts, check_json, show, voxel_counts, write_json
from qmri_bidsapp.errors import UsageError

if TYPE_CHECKING:
    from qmri_bidsapp.evaluation.flags.robustness import Rates


def add_parser(what: Any) -> None:
    """Add ``robustness`` to the commands of ``qmri evaluate``."""
    parser = what.add_parser("robustness", help="wrong estimates that nothing marks, under minor faults of the input")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: t1 t2 smt noddi")
    parser.add_argument(
        "--estimators", nargs="+", metavar="NAME", help="default: all voxelwise ones; learned ones are trained"
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
    estimators = {name: robustness.estimators_of(get_model(name), chosen) for name in models}
    n, n_reference = voxel_counts(arguments.voxels, robustness.N_VOXELS_EACH, arguments.reference)
    results: dict[str, dict[str, Any]] = {}
    for name in models:
        found = {
            key: dict(robustness.evaluate(name, key, n=n, n_reference=n_reference, report=show))
            for key in estimators[name]
        }
        _print(name, found)
        results[name] = {
            key: {what: robustness.to_dict(rates) for what, rates in part.items()} for key, part in found.items()
        }
    write_json(results, arguments.json)


def _print(model: str, found: dict[str, dict[str, dict[str, Rates] | None]]) -> None:
    """Print a Markdown table: for each variation and estimator the parameter with most silent failures."""
    print(f"\n{model}: estimates that are off / off and not marked, %\n")
    print(f"| variation | {' | '.join(found)} |")
    print("| --- |" + " ---: |" * len(found))
    for what in next(iter(found.values())):
        cells = []
        for by_variation in found.values():
            rates = by_variation[what]
            # None: weights for another protocol are refused.
            worst = None if rates is None else max(rates.values(), key=lambda part: part.silent)
            cells.append("" if worst is None else f"{100 * worst.off:.2f} / {100 * worst.silent:.2f}")
        print(f"| {what} | {' | '.join(cells)} |", flush=True)
