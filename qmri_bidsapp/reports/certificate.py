"""The certificate in the report: figures of bias, tables of sinks, maps of the range of the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MultipleLocator, NullLocator

from qmri_bidsapp.reports.figures import mosaic, mosaic_height
from qmri_bidsapp.reports.tables import notes, table
from qmri_bidsapp.units import to_display

MEANING = {
    "RANGE_GIVEN": "the range of the truth is given",
    "WIDE": "the range of the truth is wide, beyond the standard deviation: do not trust the estimate",
    "UNLIKE": "no simulated voxel has a similar estimate and noise: the certificate does not hold",
    "NO_ESTIMATE": "not estimated, or its noise is unknown",
}
#: Fraction of WIDE or UNLIKE voxels above which the report warns.
MANY = 0.1
ARROW, SINK, TRUTH = "#1f4e79", "#e8308a", "#d62728"
#: Panels side by side, and grid columns: a multiple of one, two and three panels.
MOST_PANELS, N_COLUMNS = 3, 6


def certificate_figure(summary: Mapping[str, Any]) -> Figure:
    """Draw estimates over the truth for all plausible tissue: arrows for two parameters, lines otherwise.

    Named tissues are below.

    Parameters
    ----------
    summary : mapping
        From `uncertainty.certificate.Certificate.summary`.
    """
    axes = summary["axes"]
    has_arrows = bool(summary["arrows"])
    lines = [] if has_arrows else [axes[k : k + MOST_PANELS] for k in range(0, len(axes), MOST_PANELS)]
    boxes = [axes] if summary["tissues"] else []
    heights = [4.2] * has_arrows + [3.4] * len(lines) + [2.6] * len(boxes)
    figure = Figure(figsize=(11, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), N_COLUMNS, height_ratios=heights)
    if has_arrows:
        _arrows(figure.add_subplot(grid[0, :]), summary)
    for row, names in enumerate([*lines, *boxes], start=int(has_arrows)):
        width = N_COLUMNS // min(MOST_PANELS, max(len(names), len(lines)))
        for k, name in enumerate(names):
            axis = figure.add_subplot(grid[row, k * width : (k + 1) * width])
            if row < len(heights) - len(boxes):
                _line(axis, summary, axes.index(name), name)
            else:
                _boxes(axis, summary, name)
    return figure


def _scaled(summary: Mapping[str, Any], name: str) -> tuple[str, float]:
    """Return the label of an axis, and the factor from the BIDS unit to its unit."""
    unit, factor = to_display(summary["quantities"][name]["unit"])
    return f"{summary['quantities'][name]['description']}{f' ({unit})' if unit else ''}", factor


def _arrows(axis: Any, summary: Mapping[str, Any]) -> None:
    """Draw sinks, and arrows from the truth to the mean estimate as in Gyori et al. 2021, Figure 2."""
    axes = summary["axes"]
    places = [_Axis(summary, name) for name in axes]

    def placed(rows: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
        return np.stack([place(column) for place, column in zip(places, np.array(rows).T, strict=True)], axis=1)

    truth, estimate = (placed([row[key] for row in summary["arrows"]]) for key in ("truth", "estimate"))
    shift = estimate - truth
    axis.quiver(*truth.T, *shift.T, angles="xy", scale_units="xy", scale=1, width=0.0018, color=ARROW)
    axis.scatter(*truth.T, s=5, color=ARROW)
    for number, sink in enumerate(summary["sinks"] or (), start=1):
        low, high = placed(np.array(sink["extent"]).T.tolist())
        axis.add_patch(Rectangle(low, *(high - low), color=SINK, alpha=0.25))
        (centre,) = placed([sink["centre"]])
        axis.plot(*centre, "o", markersize=11, markerfacecolor="none", color=SINK, markeredgewidth=2)
        axis.annotate(f"sink {number}", centre, xytext=(9, 9), textcoords="offset points", color=SINK, fontsize=9)
    places[0].label(axis.xaxis)
    places[1].label(axis.yaxis)
    axis.set_title("Arrows from the truth to the mean estimate", loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)


def _line(axis: Any, summary: Mapping[str, Any], position: int, name: str) -> None:
    """Draw the mean estimate over the truth of one parameter, with one standard deviation."""
    label, factor = _scaled(summary, name)
    bins = summary["quantities"][name]["by_truth"]
    truth, bias, std = (
        np.array([np.nan if v is None else v for v in bins[key]], dtype=float) * factor
        for key in ("truth", "bias", "std")
    )
    known = np.isfinite(truth)
    truth, mean, std = truth[known], (truth + bias)[known], std[known]
    if not known.any():
        axis.set_axis_off()
        return
    axis.plot(truth, truth, color="#888888", linewidth=1, linestyle="--", label="truth")
    axis.plot(truth, mean, color=ARROW, label="mean estimate")
    axis.fill_between(truth, mean - std, mean + std, color=ARROW, alpha=0.18, label="one standard deviation")
    for number, sink in enumerate(summary["sinks"] or (), start=1):
        low, high = (value * factor for value in sink["extent"][position])
        axis.axhspan(low, high, color=SINK, alpha=0.15, linewidth=1)
        axis.annotate(f"sink {number}", (truth[-1], high), color=SINK, fontsize=8, ha="right", va="top")
    if summary["quantities"][name]["is_scale"]:
        axis.set(xscale="log", yscale="log", ylim=(truth.min() / 2, truth.max() * 2))
    axis.set_xlabel(f"True {label[:1].lower()}{label[1:]}", fontsize=8)
    axis.set_ylabel("Estimate", fontsize=8)
    if position == 0:
        axis.legend(fontsize=7.5, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


class _Axis:
    """Position of the values of one parameter on an axis: their logarithm for scale parameters.

    The axis itself stays linear, as arrows need.
    """

    def __init__(self, summary: Mapping[str, Any], name: str) -> None:
        self._text, self._factor = _scaled(summary, name)
        self._is_scale = summary["quantities"][name]["is_scale"]

    def __call__(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        shown = values * self._factor
        return np.log10(shown) if self._is_scale else shown

    def label(self, axis: Any) -> None:
        """Label an axis of matplotlib."""
        axis.set_label_text(self._text)
        if self._is_scale:
            axis.set_major_locator(MultipleLocator(1.0))
            axis.set_major_formatter(lambda value, _: f"{10**value:g}")


def _boxes(axis: Any, summary: Mapping[str, Any], name: str) -> None:
    """Draw the estimates of the named tissues: 5th to 95th percentile, quartiles, median; and the truth."""
    label, factor = _scaled(summary, name)
    tissues = {key: item for key, item in summary["tissues"].items() if item["estimates"]}
    keys = ("whislo", "q1", "med", "q3", "whishi")
    boxes = [
        {**dict(zip(keys, np.array(item["estimates"][name]["percentiles"]) * factor, strict=True)), "label": tissue}
        for tissue, item in tissues.items()
    ]
    axis.bxp(boxes, showfliers=False, orientation="horizontal", widths=0.5, medianprops={"color": ARROW})
    for place, item in enumerate(tissues.values(), start=1):
        value = item["truth"][name] * factor
        axis.plot([value, value], [place - 0.38, place + 0.38], color=TRUTH, linestyle="--", linewidth=1.4)
    if summary["quantities"][name]["is_scale"]:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter("{x:g}")
    axis.invert_yaxis()
    axis.set_xlabel(label)
    axis.set_title("Named tissues: estimates, and the truth dashed", loc="left", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def certificate_text(
    summary: Mapping[str, Any], counts: Mapping[str, int], wide_counts: Mapping[str, int], certificate: str
) -> str:
    """Return the conditions of the certificate, the number of voxels of each kind, and the sinks, as HTML."""
    total = max(1, sum(counts.values()))
    rows = [
        (name, f"{counts[name]:,}", f"{100 * counts[name] / total:.1f} %", text)
        for name, text in MEANING.items()
        if name in counts
    ]
    wide = ", ".join(f"{name} {n / total:.1%}" for name, n in wide_counts.items() if n)
    rows = [(*row[:3], f"{row[3]} ({wide})" if row[0] == "WIDE" and wide else row[3]) for row in rows]
    many = [
        f"{counts[name] / total:.0%} of the voxels: {MEANING[name]}."
        for name in ("WIDE", "UNLIKE")
        if counts.get(name, 0) > MANY * total
    ]
    text = f"<p class='elem-desc'>{escape(_about(summary))} {escape(certificate)}</p>" + notes(many, "warning")
    return text + table(("Reading", "Voxels", "Fraction", "Meaning"), rows) + _debiasing(summary) + _sinks(summary)


def _about(summary: Mapping[str, Any]) -> str:
    """Return the conditions of the simulation."""
    identity, noise = summary["identity"], summary["identity"]["noise"]
    level, spread = noise["snr"][0], identity["spread"]
    about = (
        f"Ranges and expected bias: from {identity['n']:,} simulated voxels of this protocol, {noise['kind']} noise, "
        f"signal-to-noise ratio {level / spread:.3g} to {level * spread:.3g}; prior of the truth: "
        f"{identity['prior']['name']}. Figures and sinks: from the same number of voxels of all plausible "
        f"tissue, signal-to-noise ratio {level:g}"
    )
    failed = summary["n_failed"]
    return about + (f" ({failed:,} could not be estimated)." if failed else ".")


def _debiasing(summary: Mapping[str, Any]) -> str:
    """Return a table of bias, standard deviation and root mean square error without and with `--debias`."""
    rows = []
    for name, found in summary["debiasing"].items():
        unit, factor = to_display(summary["quantities"][name]["unit"])
        cells = [
            f"{before * factor:.3g} to {after * factor:.3g}"
            for before, after in (found[key] for key in ("bias", "std", "rmse"))
        ]
        rows.append((f"{name}{unit and f' ({unit})'}", *cells))
    header = ("Minus its expected bias (--debias)", "bias", "standard deviation", "root mean square error")
    return table(header, rows)


def _sinks(summary: Mapping[str, Any]) -> str:
    """Return a table of the sinks, or the reason for its absence."""
    sinks = summary["sinks"]
    if sinks is None:
        return "<p class='elem-desc'>No search for sinks: the model has too many parameters.</p>"
    if not sinks:
        return "<p class='elem-desc'>No sinks: estimates gather nowhere.</p>"
    header = ("Sink", *summary["axes"], "attracts from", "fraction of all tissue", "pull")
    return table(header, [_sink_row(summary, k, sink) for k, sink in enumerate(sinks, start=1)])


def _sink_row(summary: Mapping[str, Any], number: int, sink: Mapping[str, Any]) -> tuple[str, ...]:
    """Return number, centre with its extent, basin, fraction of all tissue, and pull of a sink."""
    units = [to_display(summary["quantities"][name]["unit"]) for name in summary["axes"]]

    def span(limits: Sequence[float], k: int) -> str:
        return f"{limits[0] * units[k][1]:.3g} to {limits[1] * units[k][1]:.3g}"

    places = [
        f"{value * factor:.3g}{unit and f' {unit}'} ({span(sink['extent'][k], k)})"
        for k, (value, (unit, factor)) in enumerate(zip(sink["centre"], units, strict=True))
    ]
    basin = "; ".join(f"{name} {span(sink['basin'][k], k)}" for k, name in enumerate(summary["axes"]))
    return f"{number}", *places, basin, f"{sink['share']:.0%}", f"{sink['pull']:.0%} of the way"


def truth_figure(
    bias: npt.NDArray[np.float32],
    low: npt.NDArray[np.float32],
    high: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    *,
    title: str,
    unit: str,
) -> Figure:
    """Draw the expected bias and the width of the range of the truth.

    Parameters
    ----------
    bias, low, high : ndarray
        (x, y, z), RAS, in `unit`; NaN where unknown.
    mask : ndarray
        (x, y, z) bool.
    title, unit : str
        Title of the quantity, BIDS unit.
    """
    label, factor = to_display(unit)
    figure = Figure(figsize=(11, 2 * mosaic_height(mask, 9.5) + 0.7), layout="constrained")
    parts = ((bias, "Expected bias", "RdBu_r"), (high - low, "Width of the 5 to 95 % range of the truth", "magma"))
    for axis, (values, name, colours) in zip(figure.subplots(2, 1), parts, strict=True):
        inside = np.abs(values[mask & np.isfinite(values)]) * factor
        top = float(np.percentile(inside, 98)) if inside.size else 0.0
        limits = (-(top or 1.0) if values is bias else 0.0, top or 1.0)
        shown = mosaic(axis, np.where(mask, values, np.nan) * factor, mask, colours, limits)
        figure.colorbar(shown, ax=axis, fraction=0.03, pad=0.01, extend="both").set_label(label or "fraction")
        axis.set_title(f"{name}: {title}", loc="left", fontsize=10)
    return figure
