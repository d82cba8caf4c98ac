"""End of a run: outcome, maps, errors and where to look; then how much of each fit can be used."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from qmri_bidsapp.bids.record_files import read_record, record_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qmri_bidsapp.bids.record import SubjectRecord
    from qmri_bidsapp.bids.usable_record import UsableRecord
    from qmri_bidsapp.config import Config
    from qmri_bidsapp.workflows.base import SubjectPlan
    from qmri_bidsapp.workflows.execution import RunResult

LOGGER = logging.getLogger("qmri_bidsapp")
#: A fit is suspect if fewer voxels than this share are usable, or more are unlike all simulated ones.
HALF = 0.5


def unfinished(config: Config, plan: SubjectPlan) -> bool:
    """Return whether a planned series or fit is missing, since it crashed or the run stopped before it."""
    record = read_record(record_file(config.derivatives_dir, plan.subject))
    n_planned = len(plan.t1w) + sum(1 + len(item.fits) for item in plan.series if item.fits)
    return len(record.series) + len(record.fits) < n_planned


def print_summary(config: Config, plans: tuple[SubjectPlan, ...], result: RunResult, failed: set[str]) -> None:
    """Print outcome, maps, errors, suspect fits and where to look for all subjects; then what is usable of each fit."""
    LOGGER.info("\n%-16s %-8s %5s %7s %8s  %s", "participant", "outcome", "maps", "errors", "suspect", "where to look")
    records = []
    for item in plans:
        record = read_record(record_file(config.derivatives_dir, item.subject))
        records.append(record)
        n_maps = sum(len(fit.maps) for fit in record.fits)
        crashes = result.failed.get(item.subject, [])
        errors = [*item.errors, *(p.message for p in item.inputs.problems if p.severity == "error")]
        outcome = "FAILED" if item.subject in failed else "nothing" if item.is_empty else "done"
        report = config.derivatives_dir / f"sub-{item.subject}.html"
        where = report if report.is_file() else config.log_dir / f"{config.run_id}.log"
        n_errors = len(errors) + len(crashes)
        n_suspect = sum(_is_suspect(found) for found in record.usables)
        name = f"sub-{item.subject}"
        LOGGER.info("%-16s %-8s %5d %7d %8d  %s", name, outcome, n_maps, n_errors, n_suspect, where)
        for cause in (*errors, *(p.message for p in item.inputs.problems if p.severity != "error")):
            LOGGER.info("    %s", cause)
        for crash in crashes:
            LOGGER.info("    %s", crash_cause(Path(crash)))
            LOGGER.info("    details: %s", crash)
        if not crashes and unfinished(config, item):
            LOGGER.info("    The run stopped before it was complete; run it again with the same work folder.")
    print_usable(records)


def print_usable(records: Sequence[SubjectRecord]) -> None:
    """Print, for every fit, the shares of usable voxels and of voxels unlike all simulated ones; then what is suspect.

    A range is that over participants.
    """
    fits: dict[str, list[UsableRecord]] = {}
    for record in records:
        for found in record.usables:
            fits.setdefault(found.fit, []).append(found)
    if not fits:
        return
    width = max(map(len, fits))
    LOGGER.info("\n%-*s  %16s %16s  of all voxels", width, "fit", "usable", "unlike")
    for name, parts in fits.items():
        shares = (_range([part.part_usable for part in parts]), _range([part.part_unlike for part in parts]))
        LOGGER.info("%-*s  %16s %16s", width, name, *shares)
    for record in records:
        for found in record.usables:
            for message in _remarks(found):
                LOGGER.warning("warning: sub-%s, %s: %s.", record.subject, found.fit, message)


def _is_suspect(found: UsableRecord) -> bool:
    return found.part_usable < HALF or (found.part_unlike or 0.0) > HALF


def _remarks(found: UsableRecord) -> list[str]:
    """Return why not to trust a fit, from what its voxels have in common."""
    remarks = []
    if (found.part_unlike or 0.0) > HALF:
        remarks.append(
            f"{found.part_unlike:.0%} of the voxels are unlike all simulated ones: do not use these maps before the "
            "report shows why"
        )
    elif found.part_usable < HALF:
        remarks.append(f"only {found.part_usable:.0%} of the voxels are usable: see the report")
    if found.clusters.stand_out:
        remarks.append(found.clusters.text)
    return remarks


def _range(parts: Sequence[float | None]) -> str:
    """Return the lowest and the highest of fractions in words; n/a if none is known."""
    known = sorted({f"{100 * part:.1f}" for part in parts if part is not None}, key=float)
    if not known:
        return "n/a"
    return f"{known[0]} %" if len(known) == 1 else f"{known[0]} to {known[-1]} %"


def crash_cause(path: Path) -> str:
    """Return the last line of a crash file that names an error, or else its last line."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b.*:", line)]
    return causes[-1] if causes else (lines[-1] if lines else "no cause recorded")
