"""The page of a report on simulated data: its maps against the truth of the data set."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from qmri_bidsapp.bids.record import SubjectRecord
from qmri_bidsapp.errors import InputMissingError, QmriError
from qmri_bidsapp.evaluation.truth.comparison import Comparison, compare_participant
from qmri_bidsapp.evaluation.truth.files import find_truth
from qmri_bidsapp.evaluation.truth.table import FLAG_HEADER, LEGEND, MAP_HEADER, flag_cells, map_cells
from qmri_bidsapp.reports import tables


def truth_text(out_dir: Path, record: SubjectRecord) -> str | None:
    """Return the comparison of a participant as HTML; None if the data set has no truth for it."""
    try:
        truth_dir = find_truth(out_dir)
    except InputMissingError:
        # Data of people have no truth.
        return None
    try:
        found = compare_participant(out_dir, truth_dir, record)
    except QmriError as error:
        return tables.notes([f"The maps cannot be compared with {truth_dir}: {error}"], "warning")
    return _html(found) if found.maps else None


def _html(found: Comparison) -> str:
    text = tables.notes(found.failures, "warning")
    text += f'<p class="elem-desc">{LEGEND}</p>'
    for identity, rows in groupby(found.maps, key=lambda row: (row.series, row.model, row.estimator)):
        text += f'<p class="elem-desc">{", ".join(identity)}</p>'
        text += tables.table(MAP_HEADER, [map_cells(row) for row in rows])
    if found.flags:
        text += '<p class="elem-desc">Flags</p>'
        text += tables.table(FLAG_HEADER, [flag_cells(row) for row in found.flags])
    if found.without_truth:
        text += tables.notes([f"{len(found.without_truth)} maps have no truth and are not compared."])
    return text
