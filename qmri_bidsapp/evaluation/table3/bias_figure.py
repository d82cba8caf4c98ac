"""Figure of the bias over the whole parameter space, as in Figure 2 of Gyori et al. 2021."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.evaluation.figures import save_png
from qmri_bidsapp.evaluation.table3.table3 import truth

NAME = "table3_bias.png"
#: Maximum number of panels in a row; size of a panel, inch; resolution, dots per inch.
N_COLUMNS = 4
PANEL = 3.2
RESOLUTION = 80


def draw_bias(means: dict[str, npt.NDArray[np.float64]], folder: Path) -> Path:
    """Draw, for every method, arrows from the true parameters to the mean of the estimates.

    Parameters
    ----------
    means : dict
        Name -> (441, 2) mean estimates at the points of `table3.truth`.
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

    n_columns = min(N_COLUMNS, len(means))
    n_rows = -(-len(means) // n_columns)
    figure = Figure(figsize=(PANEL * n_columns, PANEL * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True).ravel()
    points = truth()
    for axis in axes[len(means) :]:
        axis.remove()
    for axis, (name, mean) in zip(axes, means.items(), strict=False):
        shift = mean - points
        axis.quiver(*points.T, *shift.T, angles="xy", scale_units="xy", scale=1, width=0.004, color="#1f4e79")
        axis.set(title=name, xlabel="v", ylabel="λ, µm²/ms", xlim=(-0.03, 1.03), ylim=(-0.1, 3.1))
    return save_png(figure, folder / NAME, RESOLUTION)
