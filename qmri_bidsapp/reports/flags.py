"""What the report shows of voxels that are unlike all that was simulated: how many, why, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from qmri_bidsapp.reports.figures import mosaic, mosaic_height, tile
from qmri_bidsapp.reports.tables import notes, table
from qmri_bidsapp.uncertainty.ood import LEVEL, Reason
from qmri_bidsapp.units import to_display

MEANING = {
    Reason.MISFIT: "the model does not fit: residuals larger, or smaller, than the noise",
    Reason.DISTANCE: "signals unlike those of all simulated tissue",
    Reason.DIRECTIONS: "scatter over directions larger, or smaller, than the noise",
    Reason.OUTLIER: "a single image stands out",
    Reason.FLOOR: "low signals have a noise floor where none is expected, or none where one is",
    Reason.NETWORK: "least squares fits much better than the learned estimator",
    Reason.BOUND: "a parameter is at a bound, where next to no simulated voxel has it",
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
#: A part of flagged voxels above which the section of a fit leads with them, and the whole series is called out.
MANY, MOST = 0.2, 0.5
#: Of the noise that was measured; more is not worth a word.
LESS_NOISE = 0.95


def part_flagged(counts: Mapping[str, int]) -> float:
    """Return the part of the compared voxels that are flagged, given the counts by name of `Reason`."""
    flagged = sum(counts.get(reason.name, 0) for reason in MEANING)
    return flagged / max(1, flagged + counts.get(Reason.TYPICAL.name, 0))


def main_reason(counts: Mapping[str, int]) -> str:
    """Return the most frequent reason, in words; empty where nothing is flagged."""
    found = {reason: counts.get(reason.name, 0) for reason in MEANING}
    most = max(found, key=lambda reason: found[reason])
    return MEANING[most] if found[most] else ""


def flag_text(
    counts: Mapping[str, int], noise_factor: float, flags: npt.NDArray[np.integer], regions: Mapping[str, Any]
) -> str:
    """Return how many voxels are flagged, why, and in which tissue, as HTML.

    Parameters
    ----------
    counts : mapping
        Name of `Reason` -> voxels.
    noise_factor : float
        Median of the noise that they are compared with over that which was measured.
    flags : ndarray
        (x, y, z) values of `Reason`.
    regions : mapping
        Name -> (x, y, z) bool.
    """
    about = (
        f"Voxels unlike all that was simulated for this protocol and noise. {LEVEL:.0%} of voxels like the simulated "
        "ones are flagged too."
    )
    if noise_factor < LESS_NOISE:
        about += (
            f" They are compared with {noise_factor:.2f} times the noise that was measured (median): there is less."
        )
    text = f"<p class='elem-desc'>{about}</p>"
    part = part_flagged(counts)
    if part > MANY:
        message = f"{part:.0%} of the voxels are unlike all that was simulated; mostly: {main_reason(counts)}."
        text += notes([message], "error" if part > MOST else "warning")
    compared = {
        name: flags[region & (flags >= Reason.TYPICAL) & (flags < Reason.NO_ESTIMATE)]
        for name, region in regions.items()
    }
    header = ("Reason", *(f"{name} ({values.size:,})" for name, values in compared.items()), "Meaning")
    sets = [(reason.name, [reason], meaning) for reason, meaning in MEANING.items()]
    sets.append(("flagged", list(MEANING), "all reasons together"))
    rows = []
    for name, reasons, meaning in sets:
        found = [np.isin(values, reasons) for values in compared.values()]
        if any(part.any() for part in found):
            rows.append((name, *(f"{100 * part.mean():.1f} %" if part.size else "" for part in found), meaning))
    return text + (table(header, rows) if rows else notes(["No voxel is flagged."]))


def flag_figure(
    values: npt.NDArray[np.floating],
    flags: npt.NDArray[np.integer],
    mask: npt.NDArray[np.bool_],
    *,
    title: str,
    unit: str,
) -> Figure:
    """Draw the flagged voxels, coloured by their reason, over a map.

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
