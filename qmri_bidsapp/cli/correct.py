"""``qmri correct``: correct any table of measures for motion."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from qmri_bidsapp.errors import OutputError, UsageError

DESCRIPTION = """\
Regress measures on the motion score of each scan by robust regression, with covariates of the participants.

Writes slopes with intervals and p-values (motion_slopes.tsv), measures and their motion-adjusted
values (motion_adjusted.tsv), a .json for each table, and motion_report.html.
"""
EPILOG = """\
Example:
  qmri correct --measures thickness.tsv --motion motion.tsv --participants participants.tsv --out out
"""
TABLES, REPORT = ("motion_slopes", "motion_adjusted"), "motion_report.html"


def add_parser(commands: Any) -> None:
    """Add ``correct`` to the commands of ``qmri``."""
    parser = commands.add_parser(
        "correct",
        help="correct a table of measures for motion",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=100),
    )
    parser.add_argument(
        "--measures",
        type=Path,
        required=True,
        metavar="TSV",
        help="participant_id, session_id if there are several, and numeric columns; or a group table of the app",
    )
    parser.add_argument(
        "--motion",
        type=Path,
        required=True,
        metavar="TSV",
        help="participant_id, session_id if there are several, and the motion score in mm",
    )
    parser.add_argument(
        "--motion-column", default="motion_score", metavar="NAME", help="column of the score (default: %(default)s)"
    )
    parser.add_argument("--participants", type=Path, metavar="TSV", help="participant_id and covariates")
    parser.add_argument(
        "--covariates",
        nargs="+",
        metavar="NAME",
        help="columns of --participants to adjust for; add the diagnosis if patients may move more (default: age, sex "
        "and site, as far as present)",
    )
    parser.add_argument(
        "--reference",
        type=float,
        metavar="MM",
        help="motion that values are adjusted to (default: the median of the scores)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="output folder (default: the current folder)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Read the tables, correct, and write; nothing is written unless all steps succeed.

    Raises
    ------
    UsageError
        If a table or an option cannot be used.
    InputMissingError
        If a table does not exist.
    OutputError
        If the results cannot be written, or would replace an input table.
    """
    from qmri_bidsapp.bids.derivatives import save_text
    from qmri_bidsapp.group.correction_report import motion_page
    from qmri_bidsapp.group.measures import COVARIATES, read_covariates, read_measures, read_motion
    from qmri_bidsapp.group.motion_correction import correct_measures, correction_files

    _check(arguments)
    measures = read_measures(arguments.measures, leave_out=[arguments.motion_column])
    scores = read_motion(arguments.motion, arguments.motion_column)
    covariates, notes = None, ["No --participants: slopes are not adjusted for age, sex and site."]
    if arguments.participants is not None:
        covariates, notes = read_covariates(
            arguments.participants, arguments.covariates or COVARIATES, "--participants"
        )
        if arguments.covariates and any("has no column" in note for note in notes):
            raise UsageError(f"--covariates: {' '.join(notes)}")
    found = correct_measures(measures, scores, covariates, arguments.reference)
    if arguments.covariates and found.left_out:
        raise UsageError(
            f"--covariates: {', '.join(found.left_out)} is constant among participants with measures and a motion "
            "score; leave it out."
        )
    found.notes.extend(notes)
    if not found.correction.lines:
        reasons = found.correction.slopes["note"].value_counts()
        raise UsageError(f"No measure of {arguments.measures} can be corrected; mostly: {reasons.index[0]}.")
    files = correction_files(found, *TABLES)
    files[REPORT] = motion_page(found)
    for name, text in files.items():
        save_text(text, arguments.out, name)
    for note in found.notes:
        print(note)
    print(found.summary)
    for name in found.files:
        print(arguments.out / name)
    print(f"Report: {arguments.out / REPORT}")


def _check(arguments: argparse.Namespace) -> None:
    """Check, before any work, that options are compatible and outputs can be written."""
    if arguments.covariates and arguments.participants is None:
        raise UsageError("--covariates needs the table that holds them: add --participants.")
    if arguments.reference is not None and not (math.isfinite(arguments.reference) and arguments.reference >= 0):
        raise UsageError(f"--reference must be 0 mm or more, got {arguments.reference:g}.")
    names = [*(f"{name}{extension}" for name in TABLES for extension in (".tsv", ".json")), REPORT]
    outputs = {(arguments.out / name).resolve() for name in names}
    for path in (arguments.measures, arguments.motion, arguments.participants):
        if path is not None and path.resolve() in outputs:
            raise OutputError(f"--out {arguments.out} would replace the input {path}; choose another folder.")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise OutputError(f"--out {arguments.out} is a file; name a folder.")
    if folder := next((path for path in sorted(outputs) if path.is_dir()), None):
        raise OutputError(f"{folder} is a folder, and would have to be replaced; choose another --out.")
