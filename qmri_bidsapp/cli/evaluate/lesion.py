"""``qmri evaluate lesion``: how well maps and trust maps distinguish a small lesion from white matter."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from qmri_bidsapp.cli.arguments import words
from qmri_bidsapp.cli.evaluate.results import add_json, add_voxel_counts, check_json, show, voxel_counts, write_json

#: Measured estimators that are drawn. If none of them is measured, all are drawn.
DRAWN = ("nlls", "mlp:healthy")
#: Columns of the table: areas under ROC curves, then percentages as (group, part).
AREAS = (
    *("v", "lambda", "v bias", "lambda bias", "v debiased", "lambda debiased", "flag"),
    *("map", "combined", "map of regions", "combined of regions"),
)
PARTS = (("coverage", "v"), ("coverage", "lambda"), ("coverage", "both"), ("wide", "lesion"), ("flagged", "lesion"))


def add_parser(what: Any) -> None:
    """Add ``lesion`` to the commands of ``qmri evaluate``."""
    parser = what.add_parser("lesion", help="detection of a small lesion in white matter (Gyori et al. 2021, 2.4.4)")
    parser.add_argument(
        "--estimators",
        nargs="+",
        metavar="NAME",
        help="estimators of smt; learned ones with their training distribution, such as mlp:healthy "
        "(default: nlls grid mlp:uniform mlp:healthy mlp:mixed forest:healthy)",
    )
    add_voxel_counts(parser, "maximum number of white-matter voxels")
    add_json(parser)
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw maps of a slice (PNG)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print two tables, and write the results.

    Raises
    ------
    UsageError
        If an estimator is unknown or does not support smt, or there are too few voxels.
    OutputError
        If the results cannot be written.
    """
    check_json(arguments.json)

    from qmri_bidsapp.evaluation.lesion import lesion
    from qmri_bidsapp.evaluation.lesion.figure import draw_lesion
    from qmri_bidsapp.evaluation.lesion.phantom import make_brain

    names = list(lesion.ESTIMATORS if arguments.estimators is None else words("estimators", arguments.estimators))
    for name in names:
        lesion.check(name)
    n_white, n_reference = voxel_counts(arguments.voxels, lesion.N_WHITE, arguments.reference)
    brain = make_brain()
    results: dict[str, dict[str, Any]] = {}
    maps = {}
    for snr, name, outcome in lesion.evaluate(brain, names, n_white=n_white, n_reference=n_reference, report=show):
        results.setdefault(f"{snr:g}", {})[name] = outcome.numbers
        if name in DRAWN or not set(names) & set(DRAWN):
            maps[f"{name}, SNR {snr:g}"] = outcome.maps
    _print(results)
    write_json(results, arguments.json)
    if arguments.figures is not None:
        print(f"\n{draw_lesion(brain, maps, arguments.figures)}")


def _print(results: dict[str, dict[str, Any]]) -> None:
    """Print two Markdown tables."""
    rows = [(snr, name, numbers) for snr, found in results.items() for name, numbers in found.items()]
    print("Contrast to noise, and area under the ROC curve of lesion against white matter\n")
    print(f"| SNR | estimator | CNR v | CNR lambda | {' | '.join(AREAS)} |")
    print("| ---: | --- |" + " ---: |" * (2 + len(AREAS)))
    for snr, name, numbers in rows:
        values = [*numbers["cnr"].values(), *(numbers["auroc"][key] for key in AREAS)]
        print(f"| {snr} | {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    print("\nIn the lesion, %: truth in the range; WIDE; flagged\n")
    print(f"| SNR | estimator | {' | '.join(f'{group} {part}' for group, part in PARTS)} |")
    print("| ---: | --- |" + " ---: |" * len(PARTS))
    for snr, name, numbers in rows:
        cells = [f"{100 * numbers[group][part]:.0f}" for group, part in PARTS]
        print(f"| {snr} | {name} | " + " | ".join(cells) + " |", flush=True)
