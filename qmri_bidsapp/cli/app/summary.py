"""Table at the end of a run: outcome, maps, errors and where to look."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from qmri_bidsapp.bids.record_files import read_record, record_file

if TYPE_CHECKING:
    from qmri_bidsapp.config import Config
    from qmri_bidsapp.workflows.base import SubjectPlan
    from qmri_bidsapp.workflows.execution import RunResult

LOGGER = logging.getLogger("qmri_bidsapp")


def unfinished(config: Config, plan: SubjectPlan) -> bool:
    """Return whether a planned series or fit is missing, since it crashed or the run stopped before it."""
    record = read_record(record_file(config.derivatives_dir, plan.subject))
    n_planned = len(plan.t1w) + sum(1 + len(item.fits) for item in plan.series if item.fits)
    return len(record.series) + len(record.fits) < n_planned


def print_summary(config: Config, plans: tuple[SubjectPlan, ...], result: RunResult, failed: set[str]) -> None:
    """Print outcome, number of maps, errors and where to look, for every subject."""
    LOGGER.info("\n%-16s %-8s %5s %7s  %s", "participant", "outcome", "maps", "errors", "where to look")
    for item in plans:
        record = read_record(record_file(config.derivatives_dir, item.subject))
        n_maps = sum(len(fit.maps) for fit in record.fits)
        crashes = result.failed.get(item.subject, [])
        errors = [*item.errors, *(p.message for p in item.inputs.problems if p.severity == "error")]
        outcome = "FAILED" if item.subject in failed else "nothing" if item.is_empty else "done"
        report = config.derivatives_dir / f"sub-{item.subject}.html"
        where = report if report.is_file() else config.log_dir / f"{config.run_id}.log"
        n_errors = len(errors) + len(crashes)
        LOGGER.info("%-16s %-8s %5d %7d  %s", f"sub-{item.subject}", outcome, n_maps, n_errors, where)
        for cause in (*errors, *(p.message for p in item.inputs.problems if p.severity != "error")):
            LOGGER.info("    %s", cause)
        for crash in crashes:
            LOGGER.info("    %s", crash_cause(Path(crash)))
            LOGGER.info("    details: %s", crash)
        if not crashes and unfinished(config, item):
            LOGGER.info("    The run stopped before it was complete; run it again with the same work folder.")


def crash_cause(path: Path) -> str:
    """Return the last line of a crash file that names an error, or else its last line."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b.*:", line)]
    return causes[-1] if causes else (lines[-1] if lines else "no cause recorded")
