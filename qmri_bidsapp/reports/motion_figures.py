"""Figures of the motion score, and of the correction of measures for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOUR, CLEAR, FAINT = "#2a7fb8", "#c0392b", "#8a97a5"


#: Most affected slices that are shown, and the brightest value of the window for air, over the 99th percentile.
N_AFFECTED, AIR_WINDOW = 3, 0.12


def score_figure(
    centres: Sequence[float], probability: Sequence[float], mean: float, interval: tuple[float, float]
) -> Figure:
    """Draw the distribution of a motion score with its mean and interval.

    Parameters
    ----------
    centres, probability : (bin,) sequences
        mm, and the probability of each bin.
    mean : float
        mm.
    interval : tuple of float
        Limits, mm.
    """
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    axis = figure.add_subplot()
    width = centres[1] - centres[0]
    inside = [interval[0] <= centre <= interval[1] for centre in centres]
    axis.bar(centres, probability, width, color=[COLOUR if own else "#c9d3dc" for own in inside], linewidth=0)
    axis.axvline(mean, color=CLEAR, linewidth=1.6)
    axis.set_xlim(centres[0] - width / 2, centres[-1] + width / 2)
    axis.set_xlabel("motion score (mm)")
    axis.set_ylabel(f"probability per {width:.2g} mm")
    title = f"Mean {mean:.2f} mm (line), 90 % interval {interval[0]:.2f} to {interval[1]:.2f} mm (dark)"
    axis.set_title(title, loc="left", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def air_figure(volume: npt.NDArray[np.floating], air: npt.NDArray[np.float64]) -> Figure:
    """Draw the signal in the air by slice, and the slices with most of it, in a window for air.

    Parameters
    ----------
    volume : ndarray
        (x, y, z) towards right, anterior, superior.
    air : ndarray
        (z,) percent of the head; NaN where not known.
    """
    bright = float(np.percentile(volume, 99)) or 1.0
    chosen = most_affected(air)
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.subplots(1, 1 + len(chosen), width_ratios=[1.6, *[1.0] * len(chosen)], squeeze=False)[0]
    axes[0].plot(np.arange(len(air)), air, color=COLOUR, linewidth=1.4)
    axes[0].plot(chosen, air[chosen], "o", color=CLEAR, markersize=4)
    axes[0].set_xlabel("axial slice, inferior to superior")
    axes[0].set_ylabel("signal in the air (% of the head)")
    axes[0].set_ylim(0, 1.2 * float(np.nanmax(air)) or 1.0)
    axes[0].spines[["top", "right"]].set_visible(False)
    for axis, k in zip(axes[1:], chosen, strict=True):
        axis.imshow(volume[:, :, k].T[::-1], cmap="gray", vmin=0, vmax=AIR_WINDOW * bright, interpolation="nearest")
        axis.set_title(f"slice {k}", fontsize=9)
        axis.set_axis_off()
    return figure


def most_affected(air: npt.NDArray[np.float64]) -> list[int]:
    """Return the slices with most signal in the air, at least a twentieth of the volume apart, in their order."""
    apart = max(1, len(air) // 20)
    chosen: list[int] = []
    for k in np.argsort(-np.nan_to_num(air, nan=-1.0), kind="stable").tolist():
        if len(chosen) < N_AFFECTED and np.isfinite(air[k]) and all(abs(k - other) >= apart for other in chosen):
            chosen.append(k)
    return sorted(chosen)


def scores_figure(scores: Sequence[float], outside: Sequence[bool]) -> Figure:
    """Draw the motion scores of a group, those that are named as outliers in red.

    Parameters
    ----------
    scores : (n,) sequence
        mm.
    outside : (n,) sequence of bool
    """
    figure = Figure(figsize=(6.5, 2.4), layout="constrained")
    axis = figure.add_subplot()
    values = np.asarray(scores, dtype=float)
    edges = np.arange(min(0.0, values.min(initial=0)), max(4.0, values.max(initial=0)) + 0.25, 0.25)
    axis.hist(values, bins=edges.tolist(), color="#c9d3dc")
    axis.scatter(
        values, np.full(len(values), -0.35), s=16, c=[CLEAR if out else COLOUR for out in outside], linewidths=0
    )
    axis.set_xlabel("motion score (mm)")
    axis.set_ylabel("T1w images")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylim(bottom=-0.7)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def scatter_figure(
    motion: npt.NDArray[np.float64],
    values: npt.NDArray[np.float64],
    *,
    slope: float,
    intercept: float,
    title: str,
    unit: str,
) -> Figure:
    """Draw a measure against the motion score, with the fitted line.

    Parameters
    ----------
    motion, values : (n,) arrays
        mm, and `unit`; NaN where missing.
    slope, intercept : float
        Of the line, in `unit` per mm and `unit`.
    title, unit : str
    """
    figure = Figure(figsize=(4.6, 3.1), layout="constrained")
    axis = figure.add_subplot()
    axis.scatter(motion, values, s=18, color=COLOUR, alpha=0.7, linewidths=0)
    shown = motion[np.isfinite(motion) & np.isfinite(values)]
    ends = np.array([shown.min(), shown.max()])
    axis.plot(ends, intercept + slope * ends, color=CLEAR, linewidth=1.6)
    axis.set_xlabel("motion score (mm)")
    axis.set_ylabel(unit)
    axis.set_title(title.replace("_", " "), loc="left", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def forest_figure(slopes: pd.DataFrame) -> Figure:
    """Draw slopes with their intervals, in standard deviations per mm; red where the corrected p is below 0.05.

    Parameters
    ----------
    slopes : DataFrame
        Columns ``measure``, ``slope``, ``slope_low``, ``slope_high``, ``p_fdr`` and ``spread``, the
        standard deviation of the measure.
    """
    figure = Figure(figsize=(7.5, 0.9 + 0.24 * len(slopes)), layout="constrained")
    axis = figure.add_subplot()
    spread = slopes["spread"].to_numpy()
    centre, low, high = (slopes[name].to_numpy() / spread for name in ("slope", "slope_low", "slope_high"))
    for row, is_clear in enumerate(slopes["p_fdr"] < 0.05):
        colour = CLEAR if is_clear else FAINT
        axis.plot([low[row], high[row]], [row, row], color=colour, linewidth=1.6)
        axis.plot(centre[row], row, "o", color=colour, markersize=4)
    axis.axvline(0, color="black", linewidth=0.7)
    axis.set_yticks(range(len(slopes)), [str(name).replace("_", " ") for name in slopes["measure"]], fontsize=8)
    axis.set_ylim(len(slopes) - 0.4, -0.6)
    axis.set_xlabel("change per mm of motion (standard deviations of the measure)")
    axis.spines[["top", "right"]].set_visible(False)
    return figure
