"""Flagged voxels in the report: number, reasons and a map of voxels unlike all simulated voxels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from qmri_bidsapp.fitting.clusters import Clusters
from qmri_bidsapp.reports.figures import mosaic, mosaic_height, tile
from qmri_bidsapp.reports.tables import notes, table
from qmri_bidsapp.uncertainty.ood import LEVEL, Reason
from qmri_bidsapp.units import to_display

MEANING = {
    Reason.MISFIT: "the model does not fit: residuals larger, or smaller, than the noise",
    Reason.DISTANCE: "signals unlike those of all simulated tissue",
    Reason.DIRECTIONS: "scatter over directions larger, or smaller, than the noise",
    Reason.OUTLIER: "a single image stands out",
    Reason.FLOOR: "low signals have an unexpected noise floor, or lack the expected one",
    Reason.NETWORK: "least squares fits much better than the learned estimator",
    Reason.BOUND: "a parameter is at a bound, as in almost no simulated voxel",
}
COLOURS = {
    Reason.MISFIT: "#d62728",
    Reason.DISTANCE: "#ff7f0e",
    Reason.DIRECTIONS: "#9467bd",
    Reason.OUTLIER: "#17becf",
    Reason.FLOOR: "#8c564b",
    Reason.NETWORK: "#e377c2",
    Reason.BOUND: "#bcbd22",
}
#: Fraction of flagged voxels above which they come first in the section of a fit, and above which the summary warns.
MANY, MOST = 0.2, 0.5
#: Assumed over measured noise below which the report mentions it.
LESS_NOISE = 0.95


def part_flagged(counts: Mapping[str, int]) -> float:
    """Return the fraction of compared voxels that are flagged; `counts` maps names of `Reason` to voxels."""
    flagged = sum(counts.get(reason.name, 0) for reason in MEANING)
    return flagged / max(1, flagged + counts.get(Reason.TYPICAL.name, 0))


def main_reason(counts: Mapping[str, int]) -> str:
    """Return the most frequent reason in words; empty if no voxel is flagged."""
    found = {reason: counts.get(reason.name, 0) for reason in MEANING}
    most = max(found, key=lambda reason: found[reason])
    return MEANING[most] if found[most] else ""


def flag_text(
    counts: Mapping[str, int], noise_factor: float, flags: npt.NDArray[np.integer], regions: Mapping[str, Any]
) -> str:
    """Return the number of flagged voxels by reason and tissue, as HTML.

    Parameters
    ----------
    counts : mapping
        Name of `Reason` -> voxels.
    noise_factor : float
        Median of the assumed over the measured noise.
    flags : ndarray
        (x, y, z) values of `Reason`.
    regions : mapping
        Name -> (x, y, z) bool.
    """
    about = (
        f"Voxels unlike all simulated voxels of this protocol and noise. {LEVEL:.0%} of ordinary voxels are flagged "
        "too."
    )
    if noise_factor < LESS_NOISE:
        about += (
            f" The comparison assumes {noise_factor:.2f} times the measured noise (median): residuals are that small."
        )
    text = f"<p class='elem-desc'>{about}</p>"
    part = part_flagged(counts)
    if part > MANY:
        message = f"{part:.0%} of the voxels are unlike all simulated voxels; main reason: {main_reason(counts)}."
        text += notes([message], "error" if part > MOST else "warning")
    compared = {
        name: flags[region & (flags >= Reason.TYPICAL) & (flags < Reason.NO_ESTIMATE)]
        for name, region in regions.items()
    }
    header = ("Reason", *(f"{name} ({values.size:,})" for name, values in compared.items()), "Meaning")
    sets = [(reason.name, [reason], meaning) for reason, meaning in MEANING.items()]
    sets.append(("flagged", list(MEANING), "any reason"))
    rows = []
    for name, reasons, meaning in sets:
        found = [np.isin(values, reasons) for values in compared.values()]
        if any(part.any() for part in found):
            rows.append((name, *(f"{100 * part.mean():.1f} %" if part.size else "" for part in found), meaning))
    return text + (table(header, rows) if rows else notes(["No voxel is flagged."]))


def cluster_text(clusters: Clusters) -> str:
    """Return the largest clusters of flagged voxels, as HTML; empty without any."""
    if not clusters.largest:
        return ""
    about = (
        "Largest clusters of voxels unlike all simulated voxels (neighbours share faces). Flags at random places make "
        f"clusters of up to {clusters.scattered}; a fault or a lesion makes one that is much larger than the next."
    )
    rows = [
        (
            f"{item.n_voxels:,}",
            ", ".join(f"{value:.0f}" for value in item.centre),
            item.place,
            " x ".join(f"{value:.0f}" for value in item.extent),
        )
        for item in clusters.largest
    ]
    header = ("Voxels", "Centre x, y, z (world mm)", "From the centre of the mask", "Extent x, y, z (mm)")
    return f"<p class='elem-desc'>{about}</p>" + table(header, rows)


def flag_figure(
    values: npt.NDArray[np.floating],
    flags: npt.NDArray[np.integer],
    mask: npt.NDArray[np.bool_],
    *,
    title: str,
    unit: str,
) -> Figure:
    """Draw the flagged voxels over a map, coloured by reason.

    Parameters
    ----------
    values, flags : ndarray
        (x, y, z), RAS: a map, in `unit`, and values of `Reason`.
    mask : ndarray
        (x, y, z) bool.
    title, unit : str
    """
    _, factor = to_display(unit)
    inside = values[mask & np.isfinite(values)] * factor
    low, high = np.percentile(inside, [2, 98]) if inside.size else (0.0, 1.0)
    figure = Figure(figsize=(11, mosaic_height(mask, 9.5) + 0.9), layout="constrained")
    axis = figure.subplots()
    mosaic(axis, np.where(mask, values, np.nan) * factor, mask, "gray", (float(low), float(high)))
    reasons = list(MEANING)
    found = np.full(flags.shape, np.nan)
    for k, reason in enumerate(reasons):
        found[(flags == reason) & mask] = k
    colours = ListedColormap([COLOURS[reason] for reason in reasons])
    norm = BoundaryNorm(np.arange(len(reasons) + 1) - 0.5, len(reasons))
    axis.imshow(tile(found, mask), cmap=colours, norm=norm, interpolation="nearest", aspect="equal")
    present = [reason for k, reason in enumerate(reasons) if (found == k).any()]
    if present:
        handles = [Patch(color=COLOURS[reason], label=f"{reason.name}: {MEANING[reason]}") for reason in present]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=7.5, frameon=False)
    axis.set_title(f"Flagged voxels over: {title}", loc="left", fontsize=10)
    return figure
