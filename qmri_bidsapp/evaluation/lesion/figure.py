"""Figure of the diffusivity, its expected bias, range and flags in a slice with a lesion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qmri_bidsapp.evaluation.figures import save_png
from qmri_bidsapp.evaluation.lesion.lesion import MAPS, Array, Brain
from qmri_bidsapp.uncertainty.ood import LEVEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "lesion.png"
#: Width and height of a panel, inch; resolution, dots per inch.
PANEL, RESOLUTION = (2.0, 2.1), 62
#: Map -> title, displayed range (um2/ms; p-values) and colours.
STYLES: dict[str, tuple[str, tuple[float, float], str]] = {
    "estimate": ("λ, µm²/ms", (0.5, 3.0), "viridis"),
    "bias": ("expected bias of λ", (-0.6, 0.6), "RdBu_r"),
    "width": ("width of the range of λ", (0.0, 2.5), "magma"),
    "p_value": (f"flagged (p ≤ {LEVEL:g})", (0.0, 1.0), "gray_r"),
}
#: um2/ms in mm2/s.
UM2_PER_MS = 1e-3


def draw_lesion(brain: Brain, found: dict[str, dict[str, Array]], folder: Path) -> Path:
    """Draw a row of maps for each estimator and SNR, with the lesion outlined.

    Parameters
    ----------
    brain : Brain
    found : dict
        Title of the row -> `lesion.Outcome.maps`.
    folder : Path
        Created if it does not exist.

    Returns
    -------
    Path
        The PNG file.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    from matplotlib.figure import Figure

    size = PANEL[0] * len(MAPS), PANEL[1] * len(found)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(found), len(MAPS), squeeze=False)
    middle = brain.brain.shape[2] // 2
    inside, lesion = brain.brain[..., middle], brain.lesion[..., middle]
    box = np.ix_(*(np.flatnonzero(inside.any(axis=1 - k)) for k in range(2)))
    for row, (title, maps) in zip(axes, found.items(), strict=True):
        row[0].set_ylabel(title)
        for axis, name in zip(row, MAPS, strict=True):
            image = np.full(inside.shape, np.nan)
            values = maps[name]
            image[inside] = ~(values > LEVEL) if name == "p_value" else values / UM2_PER_MS
            _show(axis, name, image[box], lesion[box])
    for axis, name in zip(axes[0], MAPS, strict=True):
        axis.set_title(STYLES[name][0], fontsize="medium")
    return save_png(figure, folder / NAME, RESOLUTION)


def _show(axis: Axes, name: str, image: Array, lesion: Any) -> None:
    _, (low, high), colours = STYLES[name]
    shown = axis.imshow(image.T, origin="lower", vmin=low, vmax=high, cmap=colours, interpolation="nearest")
    axis.contour(lesion.T, [0.5], colors="red", linewidths=0.7)
    axis.set(xticks=[], yticks=[])
    if name != "p_value":
        axis.figure.colorbar(shown, ax=axis, shrink=0.8, aspect=30)
