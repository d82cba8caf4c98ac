"""Figures of `qmri evaluate relaxometry`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qmri_bidsapp.evaluation.figures import save_png

#: Dots per inch.
RESOLUTION = 110
COLOURS = ("#2166ac", "#67a9cf", "#b2182b", "#4d9221", "#762a83")


def save_figures(results: dict[str, Any], folder: Path) -> None:
    """Write a figure, ``relaxometry_<model>_<experiment>.png``, for each experiment in the results.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    draw = {"noise": _noise, "structures": _structures, "protocols": _protocols, "edge": _edge}
    for part, plot in draw.items():
        if part in results:
            figure = Figure(figsize=(9, 3.4), layout="constrained")
            plot(figure, results[part])
            save_png(figure, folder / f"relaxometry_{results['model']}_{part}.png", RESOLUTION)


def _boxes(axes: Axes, position: float, percentiles: list[float], colour: str, label: str | None) -> None:
    """Draw the 5th to 95th percentile as a thin line, the quartiles as a thick one, the median as a dot, in percent."""
    low, first, middle, third, high = (100 * value if value is not None else float("nan") for value in percentiles)
    axes.plot([position, position], [low, high], color=colour, linewidth=1)
    axes.plot([position, position], [first, third], color=colour, linewidth=5, alpha=0.5)
    axes.plot([position], [middle], "o", color=colour, markersize=4, label=label)


def _spreads(figure: Figure, results: dict[str, Any], label: str) -> None:
    """Draw bias and variation of every estimator against the keys of the results, with an axis label."""
    left, right = figure.subplots(1, 2)
    for axes, key, title in ((left, "bias", "Relative bias, %"), (right, "cv", "Coefficient of variation, %")):
        for index, by_name in enumerate(results.values()):
            for j, (name, part) in enumerate(by_name.items()):
                position = index + 0.8 * (j + 0.5) / len(by_name) - 0.4
                _boxes(axes, position, part[key], COLOURS[j], name if index == 0 else None)
        axes.set_xticks(range(len(results)), list(results))
        axes.set_xlabel(label)
        axes.set_title(title)
    left.axhline(0, color="grey", linewidth=0.8)
    left.set_ylim(-50, 50)
    right.set_yscale("log")
    right.legend(frameon=False)


def _noise(figure: Figure, results: dict[str, Any]) -> None:
    _spreads(figure, results, "SNR")


def _structures(figure: Figure, results: dict[str, Any]) -> None:
    grid = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axes, (kind, by_factor) in zip(grid, results.items(), strict=True):
        names = list(next(iter(by_factor.values())))
        for j, name in enumerate(names):
            kept = [100 * found[name]["kept"] for found in by_factor.values()]
            axes.plot([float(factor) for factor in by_factor], kept, "o-", color=COLOURS[j], label=name)
        axes.axhline(100, color="grey", linewidth=0.8)
        axes.set_title(kind, fontsize=9)
        axes.set_xlabel("time, relative to its neighbours")
    grid[0].set_ylabel("contrast kept, %")
    grid[-1].legend(frameon=False)


def _protocols(figure: Figure, results: dict[str, Any]) -> None:
    _spreads(figure, results, "inversion or echo times")


def _edge(figure: Figure, results: dict[str, Any]) -> None:
    axes = figure.subplots()
    for j, (name, part) in enumerate(results.items()):
        profile = part["profile"]
        axes.plot([float(x) for x in profile], list(profile.values()), "o-", color=COLOURS[j], markersize=3, label=name)
    axes.set_xlabel("distance from the edge, voxels")
    axes.set_ylabel("median estimate, s")
    axes.legend(frameon=False)
