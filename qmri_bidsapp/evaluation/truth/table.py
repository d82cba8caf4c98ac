"""A comparison with the truth as tables of text, for the console and the report."""

from __future__ import annotations

from qmri_bidsapp.evaluation.truth.agreement import INTERVAL_LIMITS, RANGE_LIMITS
from qmri_bidsapp.evaluation.truth.comparison import FlagRow, MapRow

MAP_HEADER = (
    "map",
    "unit",
    "where",
    "voxels",
    "usable, %",
    "median bias",
    "RMSE",
    "z: mean",
    "z: robust sd",
    "in interval, %",
    "in range, %",
    "outside the limits",
)
FLAG_HEADER = ("fit", "where", "voxels", "flagged, %", "these are")
#: What the columns mean, and which coverage passes.
LEGEND = (
    "Statistics are over the usable voxels. Interval: estimate and 1.96 standard deviations on each side, or the 95 % "
    "interval of the estimator; in grey and in white matter it must hold the truth in "
    f"{100 * INTERVAL_LIMITS[0]:.0f} to {100 * INTERVAL_LIMITS[1]:.0f} % of the voxels. Range: 5 to 95 % range of the "
    f"truth; it must do so in {100 * RANGE_LIMITS[0]:.0f} to {100 * RANGE_LIMITS[1]:.0f} %."
)


def map_cells(row: MapRow) -> tuple[str, ...]:
    """Return the cells of `MAP_HEADER`; empty where there is nothing to count."""
    found = row.agreement
    faults = " and ".join(text.partition(" holds")[0] for text in row.faults)
    return (
        row.parameter,
        row.unit,
        row.region,
        f"{row.n_voxels:,}",
        _percent(row.n_usable / row.n_voxels if row.n_voxels else None),
        _number(found.median_bias),
        _number(found.rmse),
        "" if found.mean_z is None else f"{found.mean_z:.2f}",
        "" if found.robust_sd_z is None else f"{found.robust_sd_z:.2f}",
        _percent(found.interval_coverage),
        _percent(found.range_coverage),
        faults,
    )


def flag_cells(row: FlagRow) -> tuple[str, ...]:
    """Return the cells of `FLAG_HEADER`."""
    share = _percent(row.n_flagged / row.n_voxels if row.n_voxels else None)
    return (
        f"{row.model}, {row.estimator}",
        row.region,
        f"{row.n_voxels:,}",
        share,
        "found" if row.is_found else "false",
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
