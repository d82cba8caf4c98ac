"""``qmri evaluate lesion``: how well a small lesion is told from white matter, and what trust maps say of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.cli.arguments import words
from qmri_bidsapp.cli.evaluate.results import check_json, show, write_json
from qmri_bidsapp.errors import UsageError

if TYPE_CHECKING:
    from qmri_bidsapp.evaluation.lesion.lesion import Brain

#: The head: voxels (mm), seed, and least part of white matter in a voxel that counts as such.
VOXEL_SIZE = 2.0
SEED = 0
WHITE = 0.9
#: Estimators that are drawn, of those that are measured; all where none of them is.
DRAWN = ("nlls", "mlp:healthy")
#: Columns of the table: areas under ROC curves, then percentages as (group, part).
AREAS = (
    *("v", "lambda", "v bias", "lambda bias", "v debiased", "lambda debiased", "flag"),
    *("map", "combined", "map of regions", "combined of regions"),
)
PARTS = (("coverage", "v"), ("coverage", "lambda"), ("coverage", "both"), ("wide", "lesion"), ("flagged", "lesion"))


def add_parser(what: Any) -> None:
    """Add ``lesion`` to what can be evaluated."""
    parser = what.add_parser("lesion", help="is a small lesion told from white matter (Gyori et al. 2021, 2.4.4)")
    parser.add_argument(
        "--estimators",
        nargs="+",
        metavar="NAME",
        help="those of smt; learned ones with what they are trained on, as mlp:healthy "
        "(default: nlls grid mlp:uniform mlp:healthy mlp:mixed forest:healthy)",
    )
    parser.add_argument("--voxels", type=int, metavar="N", help="most voxels of white matter (default: 4000)")
    parser.add_argument("--reference", type=int, metavar="N", help="voxels of the certificates (default: 32768)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to a file")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw maps of a slice (PNG)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print two tables, and write the results.

    Raises
    ------
    UsageError
        If an estimator is unknown or not for this, or there are too few voxels.
    OutputError
        If the results cannot be written.
    """
    check_json(arguments.json)

    from qmri_bidsapp.evaluation.lesion import lesion
    from qmri_bidsapp.evaluation.lesion.figure import draw_lesion
    from qmri_bidsapp.uncertainty.certificate import N_VOXELS

    names = list(lesion.ESTIMATORS if arguments.estimators is None else words("estimators", arguments.estimators))
    for name in names:
        lesion.check(name)
    n_white = lesion.N_WHITE if arguments.voxels is None else arguments.voxels
    n_reference = N_VOXELS if arguments.reference is None else arguments.reference
    if n_white < 100 or n_reference < 1000:
        raise UsageError(f"--voxels must be at least 100 and --reference 1000, got {n_white} and {n_reference}.")
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


def make_brain() -> Brain:
    """Return the slab of a simulated head that holds the lesion."""
    import numpy as np

    from qmri_bidsapp.demo.phantom import make_head
    from qmri_bidsapp.evaluation.lesion.lesion import Brain

    head = make_head(2, VOXEL_SIZE, seed=SEED)
    levels = np.flatnonzero(head.lesion.any(axis=(0, 1)))
    slab = np.s_[..., levels[0] : levels[-1] + 1]
    values = np.stack([head.parameters[name][slab] for name in ("fraction", "diffusivity")], axis=-1)
    is_white = (head.fractions["wm"] >= WHITE) & ~(head.lesion | head.unmodelled)
    return Brain(values, head.brain[slab], is_white[slab], head.lesion[slab])


def _print(results: dict[str, dict[str, Any]]) -> None:
    """Print two Markdown tables."""
    rows = [(snr, name, numbers) for snr, found in results.items() for name, numbers in found.items()]
    print("Contrast to noise, and area under the ROC curve of lesion against white matter\n")
    print(f"| SNR | estimator | CNR v | CNR lambda | {' | '.join(AREAS)} |")
    print("| ---: | --- |" + " ---: |" * (2 + len(AREAS)))
    for snr, name, numbers in rows:
        values = [*numbers["cnr"].values(), *(numbers["auroc"][key] for key in AREAS)]
        print(f"| {snr} | {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    print("\nIn the lesion, %: the range holds the truth; WIDE; flagged\n")
    print(f"| SNR | estimator | {' | '.join(f'{group} {part}' for group, part in PARTS)} |")
    print("| ---: | --- |" + " ---: |" * len(PARTS))
    for snr, name, numbers in rows:
        cells = [f"{100 * numbers[group][part]:.0f}" for group, part in PARTS]
        print(f"| {snr} | {name} | " + " | ".join(cells) + " |", flush=True)
