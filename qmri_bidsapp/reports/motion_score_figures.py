"""Figures of motion scores of T1w images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOUR, CLEAR = "#2a7fb8", "#c0392b"
#: Number of most affected slices shown; upper end of the window for air, as a fraction of the 99th percentile.
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
    """Draw the signal in the air by slice, and the slices with the highest values in a window for air.

    Parameters
    ----------
    volume : ndarray
        (x, y, z), RAS.
    air : ndarray
        (z,) percent of the median of the head; NaN where unknown.
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
    """Return the slices with the highest signal in the air, at least a twentieth of the volume apart, in order."""
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
