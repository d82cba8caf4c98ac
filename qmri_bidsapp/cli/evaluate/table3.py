"""``qmri evaluate table3``: errors of estimators of the spherical mean (Gyori et al. 2021, Table 3)."""

from __future__ import annotations

import argparse
from dataclasses import asdict, astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.cli.arguments import words
from qmri_bidsapp.cli.evaluate.results import add_json, check_json, write_json
from qmri_bidsapp.errors import OutputError

if TYPE_CHECKING:
    from qmri_bidsapp.evaluation.table3.table3 import Errors


def add_parser(what: Any) -> None:
    """Add ``table3`` to the commands of ``qmri evaluate``."""
    parser = what.add_parser("table3", help="errors of estimators of the spherical mean (Gyori et al. 2021, Table 3)")
    parser.add_argument(
        "--estimators",
        nargs="+",
        metavar="NAME",
        help="rows: traditional, estimators of smt, or net-, rf-, boosting-, polynomial-, wide-deep- and uniform, "
        "healthy, mixed (default: all)",
    )
    parser.add_argument(
        "--samples", type=int, metavar="N", help="noisy samples of each of 441 points (default: 10000, as in the paper)"
    )
    add_json(parser)
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw the bias of each method (PNG)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
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
        raise OutputError(f"--figures: {arguments.figures} is not a folder.")

    from qmri_bidsapp.evaluation.table3 import table3
    from qmri_bidsapp.evaluation.table3.bias_figure import draw_bias
    from qmri_bidsapp.evaluation.table3.healthy_brain import simulated_subjects

    chosen = None if arguments.estimators is None else words("estimators", arguments.estimators)
    fits = table3.methods(chosen, simulated_subjects)
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


def _print_errors(name: str, *errors: Errors) -> None:
    """Print a row of a Markdown table: over all points and, if given, over those with a diffusivity above zero."""
    cells = [f"{first:.4f} / {second:.4f}" for part in errors for first, second in astuple(part)]
    print("| " + " | ".join([name, *cells, *[""] * (6 - len(cells))]) + " |", flush=True)
