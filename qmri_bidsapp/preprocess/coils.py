"""How many coils were combined by the root of the sum of squares: the noise floor tells, in air."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

#: Voxels between the head and what counts as air, which ringing and ghosts hardly reach.
DISTANCE = 4
#: Fewer voxels of air do not tell.
MIN_AIR = 500
#: Effective numbers of coils below this are of one coil, whose noise is correlated or varies.
MIN_COILS = 1.5
#: Of the ratios over voxels of air: those that ghosts raise are above.
QUANTILE = 0.4


class Coils(NamedTuple):
    """Coils that were combined by the root of the sum of squares.

    Attributes
    ----------
    n : float
        Effective number; 1 where there is one coil, or where air is not known: removed, or too little.
    sigma : float or None
        Standard deviation of the noise of one coil, the same everywhere, with which the floor is that of air; None for
        one coil, whose noise may vary.
    """

    n: float = 1.0
    sigma: float | None = None


def coils_of_air(data: npt.NDArray[np.floating], head: npt.NDArray[np.bool_]) -> Coils:
    """Find the effective number of coils from the noise in air.

    A root of the sum of squares over n coils has, without signal, a squared mean of about 4 n - 1/2 times its variance
    (Constantinides et al. 1997, Magn Reson Med 38:852); one coil, or a combination that weights coils by their
    sensitivity, 3.7 times.

    Parameters
    ----------
    data : ndarray
        (x, y, z, n) magnitudes as acquired.
    head : ndarray
        (x, y, z) bool.
    """
    air = ~ndimage.binary_dilation(head, iterations=DISTANCE)
    values = data[air]
    values = values[(np.isfinite(values) & (values > 0)).all(axis=1)].astype(np.float64)
    if len(values) < MIN_AIR:
        return Coils()
    variance = values.var(axis=1, ddof=1)
    ratio = np.square(values.mean(axis=1)) / np.where(variance > 0, variance, np.inf)
    n = (float(np.quantile(ratio, QUANTILE)) + 0.5) / 4
    if n < MIN_COILS:
        return Coils()
    floor = float(np.median(np.square(values).mean(axis=1)))
    return Coils(n, float(np.sqrt(floor / (2 * n))))
