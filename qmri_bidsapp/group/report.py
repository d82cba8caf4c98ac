"""The group report: distributions over participants, with their outliers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qmri_bidsapp.bids.derivatives import save_text
from qmri_bidsapp.group.aggregate import GroupTable
from qmri_bidsapp.group.correction_report import inline_svg, motion_section, page_template
from qmri_bidsapp.group.motion_correction import MotionCorrection
from qmri_bidsapp.group.motion_scores import group_scores, scores_section

#: Values further from the median than this many scaled median absolute deviations are outliers.
OUTLIER_LIMIT = 3.5
#: With fewer participants, no outliers are reported.
MIN_SUBJECTS = 6


def write_group_report(
    out_dir: Path,
    tables: Sequence[GroupTable],
    warnings: Sequence[str],
    motion: MotionCorrection | None = None,
    no_motion: str = "",
    participant_labels: Sequence[str] = (),
) -> Path:
    """Write ``group_report.html``.

    Parameters
    ----------
    out_dir : Path
    tables : sequence of GroupTable
    warnings : sequence of str
        Records and maps that could not be read.
    motion : MotionCorrection, optional
        Correction of the tables.
    no_motion : str
        Why there is no correction for motion.
    participant_labels : sequence of str
        Participants whose motion scores are shown; empty for all.

    Returns
    -------
    Path
        The report.
    """
    subjects = {row["participant_id"] for table in tables for row in table.rows}
    shown = [
        {
            "name": table.name,
            "description": table.description,
            "file_name": table.file_name,
            "figure": _figure(table),
            "outliers": outliers(table),
            "missing": table.missing,
        }
        for table in tables
    ]
    page = page_template("group.html").render(
        tables=shown,
        unlike=list(dict.fromkeys(message for table in tables for message in table.unlike)),
        warnings=warnings,
        differences=protocol_differences(tables),
        n_subjects=len(subjects),
        motion=motion_section(motion, no_motion),
        scores=scores_section(group_scores(out_dir, participant_labels)),
    )
    save_text(page, out_dir, "group_report.html")
    return out_dir / "group_report.html"


def _values(table: GroupTable) -> dict[str, list[dict[str, Any]]]:
    """Return the rows with a median, per tissue."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in table.rows:
        if row["median"] is not None:
            groups.setdefault(row["tissue"], []).append(row)
    return groups


def _figure(table: GroupTable) -> str:
    """Return the figure as inline SVG."""
    from qmri_bidsapp.reports.figures import distribution_figure

    medians = {tissue: [row["median"] for row in rows] for tissue, rows in _values(table).items()}
    return inline_svg(distribution_figure(medians, title=table.description, unit=table.unit))


def protocol_differences(tables: Sequence[GroupTable]) -> list[str]:
    """Report series of one kind with different protocols: their maps may differ for that reason alone."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for (participant, series), (kind, parts) in sorted({k: v for t in tables for k, v in t.protocols.items()}.items()):
        for name, value in parts.items():
            found.setdefault((kind, name), {}).setdefault(value, []).append(f"{participant} ({series})")
    messages = []
    for (kind, name), values in found.items():
        if len(values) > 1:
            groups = sorted(values.items(), key=lambda item: -len(item[1]))
            listed = "; ".join(f"{value} in {_some(series)}" for value, series in groups)
            messages.append(f"{kind}, {name} differ: {listed}.")
    return messages


def _some(names: Sequence[str], limit: int = 5) -> str:
    """Return the first names, and the number of the others."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def outliers(table: GroupTable) -> list[str]:
    """Report participants whose median is an outlier, by the median absolute deviation (Leys et al. 2013)."""
    messages = []
    for tissue, rows in _values(table).items():
        medians = np.array([row["median"] for row in rows])
        if len(medians) < MIN_SUBJECTS:
            continue
        centre = np.median(medians)
        spread = 1.4826 * np.median(np.abs(medians - centre))
        for row, value in zip(rows, medians, strict=True):
            if spread > 0 and abs(value - centre) > OUTLIER_LIMIT * spread:
                messages.append(
                    f"{row['participant_id']}, {row['series']}, {tissue}: {value:.4g} {table.unit} is "
                    f"{abs(value - centre) / spread:.1f} deviations from the median of the group ({centre:.4g})."
                )
    return messages
