"""Figures of the correction of measures for motion."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

#: Points; lines and slopes that differ from zero; other slopes.
COLOUR, CLEAR, FAINT = "#2a7fb8", "#c0392b", "#8a97a5"


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
