"""Save the figures of `qmri evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qmri_bidsapp.errors import OutputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_png(figure: Figure, path: Path, resolution: int) -> Path:
    """Save a figure and return its path.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    path : Path
        PNG file. Its folder is created if it does not exist.
    resolution : int
        Dots per inch.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=resolution)
    except OSError as error:
        raise OutputError(f"--figures: {path} cannot be written ({error.strerror}).") from error
    return path
