r"""Moderated noise variances: where the noise is estimated from residuals, voxels of a series share what they know.

Few measurements leave few residuals, and a variance with few degrees of freedom d is often far too small. The noise
variances of a series are modelled as drawn from a scaled inverse chi-squared distribution with :math:`d_0` degrees of
freedom around :math:`s_0^2`; residual variances :math:`s^2` then follow :math:`s_0^2 F_{d, d_0}`, and the expected
variance given a voxel's own is

.. math:: \tilde s^2 = \frac{d_0 s_0^2 + d s^2}{d_0 + d},

with :math:`d_0 + d` degrees of freedom (Smyth 2004, Stat Appl Genet Mol Biol 3:3, eq. 4). :math:`d_0` is estimated
from the data: it is large if all voxels have the same noise, and small, so that voxels keep their own variance, if the
noise varies over space.

The estimate uses quantiles, which a few voxels with misfit hardly change (Phipson et al. 2016, Ann Appl Stat 10:946,
use moments of a truncated distribution to the same end). Voxels with misfit should keep their larger variance. The
false discovery rate (Benjamini and Hochberg 1995, J R Stat Soc B 57:289) is the share of voxels with residuals this
large that noise alone explains: the variance is the moderated one with this weight, and the voxel's own otherwise.
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
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.models.base import SignalModel

Array = npt.NDArray[np.float64]

#: With fewer voxels the distribution over the series cannot be estimated.
MIN_VOXELS = 50
#: Quantiles of the variances that determine it; misfit lies above the upper one.
LOWER, UPPER = 0.1, 0.9
#: Smallest and largest degrees of freedom of the distribution over voxels: below, voxels share nothing; above, all.
RANGE = (0.5, 1e4)
#: Nominal coverage of intervals of 1.96 standard deviations.
COVERAGE = 0.95


def estimate(
    estimator: Estimator,
    acquisition: Acquisition,
    signals: npt.ArrayLike,
    *,
    noise_std: npt.ArrayLike | None = None,
    covariates: npt.ArrayLike | None = None,
    noise_unit: npt.ArrayLike = 1.0,
) -> ParameterMaps:
    """Estimate all voxels of a series, with standard deviations as the app gives them: `predict`, then `moderate`.

    Parameters
    ----------
    estimator : Estimator
        Fitted to the protocol.
    acquisition : Acquisition
        Protocol as the model uses it.
    signals, noise_std, covariates : array_like
        As for `Estimator.predict`.
    noise_unit : array_like
        `noise_std` of `moderate`.
    """
    maps = estimator.predict(signals, noise_std=noise_std, covariates=covariates)
    return moderate(maps, estimator.model, acquisition, noise_std=noise_unit)


def moderate(
    maps: ParameterMaps, model: SignalModel, acquisition: Acquisition, *, noise_std: npt.ArrayLike = 1.0
) -> ParameterMaps:
    """Return the maps of a series with standard deviations from moderated variances.

    The standard deviations include the ratio of the quantiles of Student's t and the normal distribution for the
    available degrees of freedom, so that 1.96 of them are a 95 % interval. Maps of estimators that are not
    `std_from_residuals`, and voxels whose noise was given, do not change.

    Parameters
    ----------
    maps : ParameterMaps
        Of all voxels of one series.
    model : SignalModel
    acquisition : Acquisition
        Protocol, as the model uses it.
    noise_std : array_like
        (n_voxels,) unit of each voxel's noise. Simulated voxels differ in noise where those of a series differ in
        amplitude; in this unit all have the same noise.
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
    """Return moderated variances (n,) of positive residual variances (n,), widened by Student's t; see `moderate`."""
    added, centre = distribution_of(variance, freedom) if len(variance) >= MIN_VOXELS else (0.0, math.nan)
    if added == 0:
        return _widening(freedom) * variance
    share = 1.0 if math.isinf(added) else added / (added + freedom)
    expected = _widening(added + freedom) * (share * centre + (1 - share) * variance)
    # A variance that stands out as large is not an underestimate.
    null_share = false_discovery_control(_exceeded(variance / centre, freedom, added))
    return np.asarray(null_share * expected + (1 - null_share) * np.maximum(variance, expected))


def distribution_of(variance: Array, freedom: int) -> tuple[float, float]:
    r"""Return degrees of freedom :math:`d_0`, 0 if voxels share nothing, and :math:`s_0^2`.

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
