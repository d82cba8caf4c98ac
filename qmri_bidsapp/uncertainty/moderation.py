r"""What the voxels of a series tell of the noise together, where each of them was told it by its own residuals.

Few measurements leave few residuals, and a variance of few degrees of freedom d is often far too small. Variances of
the noise are taken as drawn from one distribution over the series, a scaled inverse chi-squared with :math:`d_0`
degrees of freedom around :math:`s_0^2`; those of residuals :math:`s^2` are then :math:`s_0^2 F_{d, d_0}`, and given a
voxel's own the variance is expected to be

.. math:: \tilde s^2 = \frac{d_0 s_0^2 + d s^2}{d_0 + d},

with :math:`d_0 + d` degrees of freedom (Smyth 2004, Stat Appl Genet Mol Biol 3:3, eq. 4). The data tell :math:`d_0`:
where all voxels have the same noise it is large, where the noise varies over space it is small, and voxels keep theirs.

It is found from quantiles, which a few voxels that the model cannot follow leave as they are (Phipson et al. 2016, Ann
Appl Stat 10:946, to the same end, take moments of a distribution cut off at both ends). Such voxels are to keep their
larger variance. Of voxels with residuals as large as these, a part is expected by chance, the false discovery rate
(Benjamini and Hochberg 1995, J R Stat Soc B 57:289); to this part the variance is the moderated one, otherwise the
voxel's own.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import f as f_distribution
from scipy.stats import false_discovery_control, norm, t

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.maps import ParameterMaps
from qmri_bidsapp.models.base import SignalModel

Array = npt.NDArray[np.float64]

#: Fewer voxels do not tell how the noise varies over a series.
MIN_VOXELS = 50
#: Quantiles of the variances that tell it: beyond the upper one there may be misfit.
LOWER, UPPER = 0.1, 0.9
#: Degrees of freedom of the distribution over voxels: less than the first tells nothing, more than the second all.
RANGE = (0.5, 1e4)
#: Level of the intervals that are to hold.
COVERAGE = 0.95


def moderate(
    maps: ParameterMaps, model: SignalModel, acquisition: Acquisition, *, noise_std: npt.ArrayLike = 1.0
) -> ParameterMaps:
    """Return the maps of a series with standard deviations that its voxels together tell.

    They carry the quantile of Student's t over that of the normal distribution, for the degrees of freedom that there
    are: an interval of 1.96 of them is one of 95 %. Maps of estimators that are not `std_from_residuals`, and voxels
    whose noise was given, stay what they were.

    Parameters
    ----------
    maps : ParameterMaps
        Of all voxels of one series.
    model : SignalModel
    acquisition : Acquisition
        Protocol, as the model uses it.
    noise_std : array_like
        (n_voxels,), of simulated voxels, which differ in noise where those of a series differ in amplitude: the unit
        in which all of them have the same.
    """
    freedom = acquisition.n_measurements - len(model.parameters)
    if maps.variance is None or freedom < 1:
        return maps
    variance = maps.variance / np.square(np.asarray(noise_std, dtype=np.float64))
    usable = variance > 0
    factor = np.ones(len(variance))
    factor[usable] = np.sqrt(moderated(variance[usable], freedom) / variance[usable])
    return replace(maps, std=(maps.std * factor[:, None]).astype(np.float32))


def moderated(variance: Array, freedom: int) -> Array:
    """Return the variances (n,) for standard deviations, from those of residuals (n,), all of them positive.

    They are larger than the expected ones by what Student's t takes more than the normal distribution.
    """
    added, centre = distribution_of(variance, freedom) if len(variance) >= MIN_VOXELS else (0.0, math.nan)
    if added == 0:
        return _widening(freedom) * variance
    share = 1.0 if math.isinf(added) else added / (added + freedom)
    expected = _widening(added + freedom) * (share * centre + (1 - share) * variance)
    # Of voxels that are chosen for their large variance it is not far too small.
    by_chance = false_discovery_control(_exceeded(variance / centre, freedom, added))
    return np.asarray(by_chance * expected + (1 - by_chance) * np.maximum(variance, expected))


def distribution_of(variance: Array, freedom: int) -> tuple[float, float]:
    r"""Return degrees of freedom :math:`d_0`, 0 where nothing is common to the voxels, and :math:`s_0^2`.

    Parameters
    ----------
    variance : ndarray
        (n,) of residuals, positive.
    freedom : int
        Of each.
    """
    lower, middle, upper = np.quantile(variance, [LOWER, 0.5, UPPER])

    def excess(log_added: float) -> float:
        ends = f_distribution.ppf([LOWER, UPPER], freedom, math.exp(log_added))
        return float(np.log(ends[1] / ends[0]) - np.log(upper / lower))

    least, most = (math.log(value) for value in RANGE)
    if excess(least) <= 0:
        return 0.0, float(middle)
    added = math.inf if excess(most) >= 0 else math.exp(brentq(excess, least, most))
    return added, float(middle / f_distribution.ppf(0.5, freedom, min(added, RANGE[1])))


def _exceeded(ratio: Array, freedom: int, added: float) -> Array:
    """Return the probability of larger ratios of variances."""
    return np.asarray(f_distribution.sf(ratio, freedom, min(added, RANGE[1])))


def _widening(freedom: float) -> float:
    """Return the square of the quantile of Student's t over that of the normal distribution."""
    upper = (1 + COVERAGE) / 2
    return float(t.ppf(upper, freedom) / norm.ppf(upper)) ** 2
