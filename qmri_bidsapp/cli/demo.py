"""``qmri demo``: write the demo data set, or compare the maps of a run with its truth."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.cli.arguments import seed, words
from qmri_bidsapp.cli.evaluate.results import add_json, check_json, write_json
from qmri_bidsapp.errors import CoverageError, UsageError

if TYPE_CHECKING:
    from qmri_bidsapp.evaluation.truth.comparison import Comparison

DESCRIPTION = """\
Write the demo data set, two simulated heads with known truth; or, with --check, compare the maps of a run
with the true maps of its data set, the demo or any other that has derivatives/truth.
"""
EPILOG = """\
Exit codes of --check: 0 if coverage is within its limits in grey and white matter, 1 if not, 65 if an image cannot
be compared (unreadable, another grid, or too few usable voxels), 66 if maps, truth or a participant are missing.

Examples:
  qmri demo demo-data
  qmri-bids demo-data demo-out participant -w demo-work
  qmri demo --check demo-out --json check.json
"""


def add_parser(commands: Any) -> None:
    """Add ``demo`` to the commands of ``qmri``."""
    parser = commands.add_parser(
        "demo",
        help="write the demo data set, two simulated heads with known truth; compare maps with the truth",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=100),
    )
    parser.add_argument("directory", type=Path, nargs="?", help="new or empty folder for the data set")
    parser.add_argument("--seed", type=seed, help="random seed (default: 0)")
    parser.add_argument(
        "--check", type=Path, metavar="OUT", help="output folder of qmri-bids to compare with the truth"
    )
    parser.add_argument(
        "--truth", type=Path, metavar="DIR", help="true maps (default: derivatives/truth of the data set of the run)"
    )
    parser.add_argument(
        "--participant-label", nargs="+", metavar="LABEL", help="participants to compare (default: all)"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the data set or compare.

    Raises
    ------
    UsageError
        If options do not go together.
    CoverageError
        If a range or interval holds the truth too seldom or too often.
    NotComparableError, InputMissingError
        If nothing can be compared.
    OutputError
        If the data set or the results cannot be written.
    """
    _check(arguments)
    if arguments.check is not None:
        compare(arguments)
        return

    from qmri_bidsapp.demo.dataset import write_demo

    write_demo(arguments.directory, seed=arguments.seed or 0)
    print(f"Demo data set: {arguments.directory}")


def compare(arguments: argparse.Namespace) -> None:
    """Print the tables of a comparison and write them as JSON; errors as in `run`."""
    check_json(arguments.json)

    from qmri_bidsapp.errors import NotComparableError
    from qmri_bidsapp.evaluation.truth.agreement import MIN_VOXELS
    from qmri_bidsapp.evaluation.truth.comparison import compare_run
    from qmri_bidsapp.evaluation.truth.files import find_truth

    labels = arguments.participant_label
    truth = arguments.truth or find_truth(arguments.check)
    found = compare_run(
        arguments.check, truth, () if labels is None else tuple(words("participant-label", labels, "sub-"))
    )
    _print(found)
    write_json({"out": str(arguments.check), "truth": str(truth), **found.to_dict()}, arguments.json)
    if not found.is_judged:
        raise NotComparableError(
            f"No map in {arguments.check} has {MIN_VOXELS} usable voxels with a true value in grey or white matter: "
            "coverage cannot be judged."
        )
    if found.failures:
        raise CoverageError(
            f"Coverage leaves its limits in {len(found.failures)} cases, marked in the last column of the tables; the "
            f"first: {found.failures[0]}."
        )


def _check(arguments: argparse.Namespace) -> None:
    """Check that either a new folder is named, or a folder to check, with the options that belong to it."""
    if arguments.check is None:
        if arguments.directory is None:
            raise UsageError("qmri demo needs a new folder for the data set, or --check OUT. See qmri demo --help.")
        for name in ("truth", "participant_label", "json"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} needs --check OUT. See qmri demo --help.")
    elif arguments.directory is not None or arguments.seed is not None:
        raise UsageError("--check compares the maps of a run; leave out the folder of a new data set and --seed.")


def _print(found: Comparison) -> None:
    """Print Markdown tables: maps, one table for each fit of each participant; then flags."""
    from qmri_bidsapp.evaluation.truth.table import FLAG_HEADER, LEGEND, MAP_HEADER, flag_cells, map_cells

    print(LEGEND)
    fits = groupby(found.maps, key=lambda row: (row.participant, row.series, row.model, row.estimator))
    for identity, rows in fits:
        print(f"\n{', '.join(identity)}\n")
        _print_table(MAP_HEADER, [map_cells(row) for row in rows])
    for participant, flags in groupby(found.flags, key=lambda row: row.participant):
        print(f"\n{participant}, flags\n")
        _print_table(FLAG_HEADER, [flag_cells(row) for row in flags])
    if found.without_truth:
        some = ", ".join(found.without_truth[:3]) + ", ..." * (len(found.without_truth) > 3)
        print(f"\n{len(found.without_truth)} maps have no truth and are not compared: {some}")


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
