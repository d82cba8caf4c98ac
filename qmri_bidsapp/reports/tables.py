"""Tables of the subject report, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from qmri_bidsapp.bids.record import SeriesRecord, SubjectRecord

STATUS_MEANING = {
    "OK": "estimated",
    "NOT_CONVERGED": "iteration limit reached; the best point is in the map",
    "AT_BOUND": "a parameter lies on a bound that the program drew, which is no physical limit",
    "NO_SIGNAL": "no positive value; not estimated",
    "INVALID_INPUT": "a value is not finite, or the transmit field is unknown; not estimated",
    "FAILED": "the estimate is not finite; NaN in the map",
}


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return an HTML table; all text is escaped."""
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def notes(messages: Sequence[str], kind: str = "note") -> str:
    """Return messages as boxes; `kind` is ``note``, ``warning`` or ``error``."""
    return "".join(f'<p class="{kind}">{escape(message)}</p>' for message in messages)


def protocol_rows(series: SeriesRecord) -> list[tuple[str, str]]:
    """Return the acquisition of a series as names and values."""
    maps = "".join(f"; {name.upper()}: {file}" for name, file in series.covariates.items())
    rows = [("Files", f"{len(series.files)}, first: {series.files[0]}{maps}")]
    if series.acquisition is not None:
        rows += series.acquisition.rows()
    rows += [(str(name), str(value)) for name, value in series.metadata.items()]
    return rows


def status_table(counts: Mapping[str, int]) -> str:
    """Return the voxels per status, with percentages and meanings."""
    total = sum(counts.values())
    rows = [
        (name, f"{count:,}", f"{100 * count / total:.1f} %", STATUS_MEANING.get(name, ""))
        for name, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    return table(("Status", "Voxels", "Fraction", "Meaning"), rows)


def overview_table(record: SubjectRecord) -> str:
    """Return one row per fit: number of maps, voxels, and fractions that are usable and unlike simulated voxels."""
    rows = []
    for fit in record.fits:
        total, found = sum(fit.status_counts.values()), record.usable_of(fit)
        rows.append(
            (
                fit.series,
                fit.model_title,
                fit.estimator_title,
                len(fit.maps),
                f"{total:,}",
                f"{100 * fit.status_counts.get('OK', 0) / total:.1f} %",
                percent(found.part_usable if found else None),
                percent(found.part_unlike if found else None),
                f"{fit.seconds:.1f} s",
            )
        )
    header = ("Series", "Model", "Estimator", "Maps", "Voxels", "Estimated (OK)", "Usable", "Unlike", "Time of the fit")
    return table(header, rows)


def percent(part: float | None) -> str:
    """Return a fraction in words; n/a without one."""
    return "n/a" if part is None else f"{100 * part:.1f} %"
