"""Figures of the reports: arrays in, matplotlib figures out, no global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from qmri_bidsapp.artifacts.atomic import atomic_file
from qmri_bidsapp.bids.result_names import TISSUE_LABELS
from qmri_bidsapp.units import to_display

#: Slices shown, and how many side by side.
N_SLICES, N_COLUMNS = 12, 6
TISSUE_COLOURS = {"GM": "#2a7fb8", "WM": "#d95f02", "CSF": "#54a24b", "brain": "#555555"}
CONTOUR = "#e8308a"
#: Width of a mosaic beside a distribution, inch.
_MOSAIC_WIDTH = 6.7
#: Resolution of images within SVG figures.
_IMAGE_DPI = 130
_STYLE = {"svg.hashsalt": "qmri", "svg.fonttype": "path", "font.size": 9, "font.family": "DejaVu Sans"}


def choose_slices(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Return up to `N_SLICES` axial slices, evenly spaced over the extent of the mask."""
    inside = np.flatnonzero(mask.any(axis=(0, 1)))
    if len(inside) <= N_SLICES:
        return [int(k) for k in inside]
    spread = np.linspace(0.06, 0.94, N_SLICES) * (len(inside) - 1)
    return [int(inside[round(position)]) for position in spread]


def tile(volume: npt.NDArray[Any], mask: npt.NDArray[np.bool_], fill: float = np.nan) -> npt.NDArray[np.float64]:
    """Arrange axial slices side by side, cropped to the mask, anterior up, left on the left.

    Parameters
    ----------
    volume : ndarray
        (x, y, z) in RAS orientation.
    mask : ndarray
        (x, y, z) bool.
    fill : float
        Value of the gaps.
    """
    slices = choose_slices(mask)
    rows, columns = np.flatnonzero(mask.any(axis=(1, 2))), np.flatnonzero(mask.any(axis=(0, 2)))
    x = slice(max(0, rows[0] - 2), rows[-1] + 3)
    y = slice(max(0, columns[0] - 2), columns[-1] + 3)
    panels = [np.asarray(volume[x, y, k], dtype=float).T[::-1] for k in slices]
    n_columns = min(N_COLUMNS, len(panels))
    while len(panels) % n_columns:
        panels.append(np.full_like(panels[0], fill))
    return np.vstack([np.hstack(panels[i : i + n_columns]) for i in range(0, len(panels), n_columns)])


def _show(axis: Any, tiled: npt.NDArray[np.float64], colours: str, limits: tuple[float, float]) -> Any:
    """Draw a tiled mosaic without frame."""
    from matplotlib import colormaps

    shades = colormaps[colours].with_extremes(bad="#e9e9e9")
    shown = axis.imshow(tiled, cmap=shades, vmin=limits[0], vmax=limits[1], interpolation="nearest", aspect="equal")
    axis.set_axis_off()
    axis.text(0.003, 0.99, "L", transform=axis.transAxes, va="top", color="#888888", fontsize=8)
    return shown


def _outline(axis: Any, mask: npt.NDArray[np.bool_]) -> None:
    tiled = tile(mask.astype(float), mask, fill=0.0)
    if 0 < tiled.mean() < 1:
        axis.contour(tiled, levels=[0.5], colors=CONTOUR, linewidths=0.6)


def mosaic(
    axis: Any,
    values: npt.NDArray[np.floating],
    mask: npt.NDArray[np.bool_],
    colours: str,
    limits: tuple[float, float],
) -> Any:
    """Draw axial slices of a volume with the outline of the mask; return the image for a colour bar."""
    shown = _show(axis, tile(values, mask), colours, limits)
    _outline(axis, mask)
    return shown


def mosaic_height(mask: npt.NDArray[np.bool_], width: float) -> float:
    """Return the height of a mosaic of that width, inch."""
    return _height(tile(mask, mask), width)


def _height(tiled: npt.NDArray[np.float64], width: float) -> float:
    return float(np.clip(width * tiled.shape[0] / tiled.shape[1], 1.2, 6.0))


def map_figure(
    values: npt.NDArray[np.float32],
    std: npt.NDArray[np.float32] | None,
    mask: npt.NDArray[np.bool_],
    tissues: npt.NDArray[np.uint8] | None,
    *,
    title: str,
    unit: str,
    display_range: tuple[float, float] | None,
) -> Figure:
    """Draw a map, its standard deviation and its distribution per tissue.

    Parameters
    ----------
    values, std : ndarray
        (x, y, z), RAS, in `unit`; NaN where there is no estimate.
    mask : ndarray
        (x, y, z) bool.
    tissues : ndarray or None
        (x, y, z) labels: 1 GM, 2 WM, 3 CSF.
    title, unit : str
        Title of the quantity, BIDS unit.
    display_range : tuple or None
        Range of the colour bar, in `unit`; None: 2nd to 98th percentile.
    """
    label, factor = to_display(unit)
    inside = values[mask & np.isfinite(values)] * factor
    limits = _limits(inside, display_range, factor)
    panels = [(title, values, "viridis", limits, "both")]
    if std is not None:
        spread = std[mask & np.isfinite(std)] * factor
        top = float(np.percentile(spread, 95)) if spread.size else 1.0
        panels.append(("Standard deviation", std, "magma", (0.0, top or 1.0), "max"))
    mosaics = [tile(np.where(mask, volume, np.nan) * factor, mask) for _, volume, *_ in panels]
    height = _height(mosaics[0], _MOSAIC_WIDTH)
    figure = Figure(figsize=(11, len(panels) * (height + 0.3) + 0.1))
    bottom = figure.get_figheight()
    for (name, _, colours, shades, extend), tiled in zip(panels, mosaics, strict=True):
        bottom -= height + 0.3
        axis = _axes(figure, 0.1, bottom, _MOSAIC_WIDTH, height)
        axis.set_title(name, loc="left", fontsize=10)
        bar = _axes(figure, 0.2 + _MOSAIC_WIDTH, bottom, 0.15, height)
        figure.colorbar(_show(axis, tiled, colours, shades), cax=bar, extend=extend).set_label(label or "fraction")
    _outline(figure.axes[0], mask)
    distribution = _axes(figure, _MOSAIC_WIDTH + 1.7, 0.5, 2.4, figure.get_figheight() - 0.8)
    _histogram(distribution, values * factor, mask, tissues, limits, label)
    return figure


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Any:
    """Add axes at a position in inches: the layout engine of matplotlib would take most of the time of a report."""
    size = np.tile(figure.get_size_inches(), 2)
    return figure.add_axes(tuple(np.array([left, bottom, width, height]) / size))


def _limits(
    inside: npt.NDArray[np.floating], display_range: tuple[float, float] | None, factor: float
) -> tuple[float, float]:
    if display_range is not None:
        return display_range[0] * factor, display_range[1] * factor
    if not inside.size:
        return 0.0, 1.0
    low, high = np.percentile(inside, [2, 98])
    return float(low), float(high if high > low else low + 1)


def _histogram(
    axis: Any,
    values: npt.NDArray[np.floating],
    mask: npt.NDArray[np.bool_],
    tissues: npt.NDArray[np.uint8] | None,
    limits: tuple[float, float],
    unit: str,
) -> None:
    """Draw the distribution of each tissue, with its median and interquartile range."""
    regions = {"brain": mask} if tissues is None else {name: mask & (tissues == k) for name, k in TISSUE_LABELS.items()}
    bins = np.linspace(*limits, 81)
    for name, region in regions.items():
        part = values[region & np.isfinite(values)]
        if not part.size:
            continue
        q1, median, q3 = np.percentile(part, [25, 50, 75])
        text = f"{name}: {median:.4g} [{q1:.4g}, {q3:.4g}] {unit}"
        weights = np.full(part.size, 1 / part.size)
        axis.hist(
            part,
            bins=bins,
            weights=weights,
            histtype="step",
            color=TISSUE_COLOURS[name],
            label=text,
            linewidth=1.4,
        )
        axis.axvline(median, color=TISSUE_COLOURS[name], linewidth=0.7, linestyle=":")
    axis.set_xlabel(unit or "fraction")
    axis.set_ylabel("fraction of the voxels per bin")
    axis.set_xlim(*limits)
    axis.set_title("Median [interquartile range]", loc="left", fontsize=9)
    if axis.get_legend_handles_labels()[0]:
        axis.set_ylim(top=1.15 * axis.get_ylim()[1])
        axis.legend(loc="upper right", fontsize=7.5, frameon=False, handlelength=1, borderpad=0)
    axis.spines[["top", "right"]].set_visible(False)


def image_figure(
    image: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    tissues: npt.NDArray[np.uint8] | None,
    *,
    title: str,
) -> Figure:
    """Draw an image in grey with the outline of the mask and, if there are any, of white matter and CSF."""
    finite = image[np.isfinite(image)]
    # Images with restored polarity are negative before the null.
    low, high = np.percentile(finite, [0.5, 99.5])
    limits = (min(0.0, float(low)), max(0.0, float(high)) or (0.0 if low < 0 else 1.0))
    # The whole field of view in plane shows what the mask leaves out.
    everything = np.zeros_like(mask)
    everything[:, :, choose_slices(mask)] = True
    tiled = tile(image, everything)
    figure = Figure(figsize=(11, _height(tiled, 11) + 0.4), layout="constrained")
    axis = figure.add_subplot()
    _show(axis, tiled, "gray", limits)
    outlines = [(mask, CONTOUR)]
    if tissues is not None:
        outlines += [(tissues == TISSUE_LABELS[name], TISSUE_COLOURS[name]) for name in ("WM", "CSF")]
    for region, colour in outlines:
        outline = tile(region.astype(float), everything, fill=0.0)
        if 0 < outline.mean() < 1:
            axis.contour(outline, levels=[0.5], colors=colour, linewidths=0.6)
    axis.set_title(title, loc="left", fontsize=10)
    return figure


def head_motion_figure(motion: npt.NDArray[np.float64]) -> Figure:
    """Draw rotations and translations of the volumes of a series, (n, 6): radian, mm."""
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    rotation, translation = figure.subplots(1, 2)
    numbers = np.arange(1, len(motion) + 1)
    parts = (
        (rotation, np.rad2deg(motion[:, :3]), "rotation (degree)"),
        (translation, motion[:, 3:], "translation (mm)"),
    )
    for axis, columns, label in parts:
        for column, name in zip(columns.T, "xyz", strict=True):
            axis.plot(numbers, column, label=name, linewidth=1)
        axis.set_xlabel("volume")
        axis.set_ylabel(label)
        axis.legend(fontsize=8, frameon=False, ncols=3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure as SVG; the same figure gives the same bytes."""
    figure.set_dpi(_IMAGE_DPI)
    with rc_context(_STYLE), atomic_file(path) as temporary:
        FigureCanvasSVG(figure).print_svg(temporary, metadata={"Date": None})


def distribution_figure(groups: Mapping[str, Sequence[float]], *, title: str, unit: str) -> Figure:
    """Draw one point per participant, and a box plot, for each tissue.

    Parameters
    ----------
    groups : mapping
        Tissue -> medians of the participants, in `unit`.
    title, unit : str
        Title of the quantity, BIDS unit.
    """
    label, factor = to_display(unit)
    figure = Figure(figsize=(6.5, 0.7 + 0.55 * max(2, len(groups))), layout="constrained")
    axis = figure.add_subplot()
    rng = np.random.default_rng(0)
    for position, (name, medians) in enumerate(groups.items()):
        values = np.asarray(medians, dtype=float) * factor
        colour = TISSUE_COLOURS.get(name, "#555555")
        if len(values) >= 5:
            axis.boxplot(values, positions=[position], orientation="horizontal", widths=0.5, showfliers=False)
        axis.scatter(values, position + rng.uniform(-0.12, 0.12, len(values)), s=22, color=colour, alpha=0.8, zorder=3)
    axis.set_yticks(range(len(groups)), list(groups))
    axis.invert_yaxis()
    axis.set_xlabel(label or "fraction")
    axis.set_title(title, loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    return figure
