"""``qmri check-repeatability``: halves of series against the standard deviations of their maps."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.errors import NothingMatchedError, RepeatabilityError, UsageError

if TYPE_CHECKING:
    from qmri_bidsapp.config import Config
    from qmri_bidsapp.evaluation.repeatability import Row

DESCRIPTION = """\
Check on your own data that the standard deviations of the maps are right. Every series is split into two halves: even
and odd volumes within each shell, or every other image. Each half goes through the app on its own, from the raw images
to the maps. The differences of the maps are compared with their standard deviations:
z = (a - b) / sqrt(sd_a^2 + sd_b^2), in voxels that are usable in both. Runs and sessions that repeat a series are
compared in the same way, where the head did not move.

For each parameter: the robust standard deviation of z (goal 0.9 to 1.15) and the percentage of voxels with z within
1.96 (goal 92 or more). Writes repeatability.tsv and .json, and the maps of the halves in the folder halves.
"""
EPILOG = """\
Exit codes: 0 every parameter meets the goals, 1 some parameter does not, or a fit failed; others as for qmri-bids.

examples:
  qmri check-repeatability bids
  qmri check-repeatability bids out --participant-label 01 --models tensor noddi -w work
"""
TABLE, MAPS, SPLIT = "repeatability", "halves", "halves"
#: Column -> (heading, format) of the printed table.
SHOWN = {
    "participant_id": ("participant", "<16"),
    "series": ("series", "<22"),
    "model": ("model", "<9"),
    "parameter": ("parameter", "<17"),
    "n_voxels": ("voxels", ">7"),
    "usable": ("usable %", ">8.1f"),
    "sd_z": ("sd of z", ">7.2f"),
    "within": ("within %", ">8.1f"),
    "median_z": ("median z", ">8.2f"),
    "verdict": ("verdict", "<15"),
}


def add_parser(commands: Any) -> None:
    """Add the parser of ``qmri check-repeatability``."""
    parser = commands.add_parser(
        "check-repeatability",
        help="check standard deviations of maps on your own data, by halves of series",
        usage="%(prog)s BIDS [OUT] [options of qmri-bids]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("bids_dir", metavar="BIDS", help="folder of the BIDS data set")
    parser.add_argument("out", metavar="OUT", nargs="?", default=TABLE, help="output folder (default: %(default)s)")
    parser.add_argument(
        "options", nargs=argparse.REMAINDER, metavar="...", help="options of qmri-bids, such as --models"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Split, run the app on the halves, compare, write and print.

    Raises
    ------
    RepeatabilityError
        If a parameter misses its goals, or a fit failed.
    NothingMatchedError
        If nothing can be compared.
    QmriError
        As for ``qmri-bids``.
    """
    from qmri_bidsapp.cli.app.environment import close_log, prepare, terminable
    from qmri_bidsapp.cli.app.parser import parse

    maps = Path(arguments.out) / MAPS
    config = parse([arguments.bids_dir, str(maps), "participant", *arguments.options])
    # Halves of series that belong together would be joined again.
    config = replace(config, skip=tuple(dict.fromkeys((*config.skip, "join"))))
    _check(config)
    try:
        with terminable():
            prepare(config)
            _run(config, Path(arguments.out))
    finally:
        close_log()


def _check(config: Config) -> None:
    """Refuse options that leave nothing to compare."""
    if config.reports_only or config.boilerplate_only:
        raise UsageError("--reports-only and --boilerplate-only make no maps to compare; leave them out.")
    if config.n_fibres != "1":
        raise UsageError("--n-fibres auto: bundles have no order by which halves could be compared; leave it out.")


def _run(config: Config, out_dir: Path) -> None:
    from qmri_bidsapp.bids.halves import write_halves
    from qmri_bidsapp.cli.app.run import find_subjects, run_participants
    from qmri_bidsapp.evaluation.repeatability import compare

    split = config.work_dir / SPLIT
    shutil.rmtree(split, ignore_errors=True)
    subjects = find_subjects(config)
    pairs, notes = write_halves(config.bids_dir, subjects, split)
    # The halves are what the choices left; their images were checked with the data set.
    code = run_participants(
        replace(
            config,
            bids_dir=split,
            participant_label=(),
            session_label=(),
            run_label=(),
            bids_filter_file=None,
            bids_database_dir=None,
            skip_bids_validation=True,
            no_motion_score=True,
            motion_weights=None,
            motion_weights_sha256="",
            qc_head=None,
        )
    )
    rows, reasons = compare(pairs, config.derivatives_dir)
    problems = [f"sub-{item.subject}: {problem.message}" for item in subjects for problem in item.problems]
    _write(rows, [*notes, *reasons], out_dir)
    _print(rows, [*problems, *notes, *reasons])
    if not rows:
        raise NothingMatchedError("No maps could be compared; the lines above say why.")
    n_missed = sum(row.verdict != "ok" for row in rows)
    print(f"\n{len(rows) - n_missed} of {len(rows)} parameters meet the goals. Table: {out_dir / TABLE}.tsv")
    if n_missed:
        raise RepeatabilityError(f"{n_missed} of {len(rows)} parameters miss the goals; see the verdicts above.")
    if code:
        raise RepeatabilityError("Some fits failed or a series could not be used; the messages above say why.")


def _write(rows: Sequence[Row], notes: Sequence[str], out_dir: Path) -> None:
    from qmri_bidsapp.bids.derivatives import save_json, save_table
    from qmri_bidsapp.evaluation.repeatability import COLUMNS

    save_table([asdict(row) for row in rows], out_dir, f"{TABLE}.tsv", columns=tuple(COLUMNS))
    columns = {name: {"Description": text} for name, text in COLUMNS.items()}
    save_json({**columns, "Notes": list(notes)}, out_dir, f"{TABLE}.json")


def _print(rows: Sequence[Row], notes: Sequence[str]) -> None:
    print("\nDifferences of the halves over their standard deviations (z), in usable voxels")
    print("  ".join(format(title, form.split(".")[0].rstrip("f")) for title, form in SHOWN.values()).rstrip())
    for row in rows:
        print("  ".join(format(getattr(row, name), form) for name, (_, form) in SHOWN.items()).rstrip())
    for note in notes:
        print(f"  note: {note}")
