r"""The inverse reading: the distribution of the truth given an estimate.

It comes from simulated voxels whose truths were drawn from a stated prior, by the errors of those whose estimates are
nearest. The expected bias is :math:`E[\hat x - x \mid \hat x]`, the range contains 5 to 95 % of the truths. Voxels of
the same distribution are exchangeable with the simulated ones, so that the range holds the truth in 90 % of them,
whatever the estimator (as in distribution-free prediction, Lei and Wasserman 2014, J R Stat Soc B 76:71). Linear
regression corrects for errors that change with the estimate within the neighbourhood (Beaumont et al. 2002, Genetics
162:2025), and for a change of their size (Blum and Francois 2010, Stat Comput 20:63).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from qmri_bidsapp.core.parameters import on_physical_limits
from qmri_bidsapp.uncertainty.simulation import Pairs, conditions_of
from qmri_bidsapp.uncertainty.space import Space

Array = npt.NDArray[np.float64]

#: Nearest simulated voxels from which the error of a voxel is taken.
N_NEIGHBOURS = 150
#: Limits of the range of the truth.
LOWER, UPPER = 0.05, 0.95
#: Distance between these limits of a normal distribution, in standard deviations.
NORMAL_RANGE = 3.2897
#: An estimate less than this many standard deviations from a physical limit does not differ from it (one-sided, 5 %).
REACH = NORMAL_RANGE / 2
#: The quantile of a normal distribution that 10 % exceed.
ONE_SIDED = 1.2816
#: A range of the truth is wide if it is more than this many times what the standard deviation suggests, and more than
#: this share of the range of all truths.
WIDE_RATIO = 3.0
WIDE_SHARE = 0.25
#: Quantile of the distances between neighbouring simulated estimates; an estimate further away is unlike any.
UNLIKE = 0.999
#: Neighbourhoods are narrower by this factor along the signal-to-noise ratio and covariates, which set the size of
#: errors, than along estimates.
NARROWING = 2.0
#: Ridge of the regression, relative to the variance of the neighbours' places: the slope vanishes if all estimates are
#: equal, as on a bound.
RIDGE = 1e-4
#: Lowest size of a residual, relative to the mean, whose logarithm is taken, and largest logarithm of the factor that
#: rescales one.
LEAST_SIZE = 0.05
LARGEST_FACTOR = 1.0
#: Batch of simulated voxels whose neighbours are looked up.
BATCH = 4096
#: Lowest variance, relative to the largest, of a direction of the space that is used.
LEAST_VARIANCE = 1e-6


class Trust(IntEnum):
    """Outcome of the inverse reading in a voxel."""

    OUTSIDE = 0  #: not in the mask
    RANGE_GIVEN = 1  #: the range of the truth is given
    WIDE = 2  #: it is given, and much wider than the standard deviation suggests, as in a sink
    UNLIKE = 3  #: no simulated voxel has a similar estimate, noise and covariates: nothing is given
    NO_ESTIMATE = 4  #: the estimation failed, or the noise is unknown


@dataclass(frozen=True)
class Reading:
    """Expected bias and range of the truth of n estimates.

    Attributes
    ----------
    bias, lower, upper : ndarray
        (n, n_quantities) float32, expected bias and limits of the truth, in each quantity's unit; NaN if the estimate
        is missing or unlike any simulated one. Where the estimate does not differ from a physical limit, the range
        begins, or ends, there.
    trust : ndarray
        (n,) uint8, values of `Trust`.
    is_wide : ndarray
        (n, n_quantities) bool, whether the range of this quantity is wide.
    """

    bias: npt.NDArray[np.float32]
    lower: npt.NDArray[np.float32]
    upper: npt.NDArray[np.float32]
    trust: npt.NDArray[np.uint8]
    is_wide: npt.NDArray[np.bool_]

    def counts(self) -> dict[str, int]:
        """Return the number of voxels per name of `Trust` that occurs."""
        values, counts = np.unique(self.trust, return_counts=True)
        return {Trust(value).name: int(count) for value, count in zip(values, counts, strict=True)}


class LocalErrors(NamedTuple):
    """Errors around simulated voxels: level + slope (place - own place) + residual; all float32.

    Attributes
    ----------
    level : ndarray
        (n, n_quantities).
    slope : ndarray
        (n, n_dimensions, n_quantities).
    low, high : ndarray
        (n, n_quantities) limits of the residual.
    least, most : ndarray
        (n, n_quantities) the same of ranges that are open on the other side, which have all 10 % on this one.
    mean : ndarray
        (n, n_quantities) mean of minus the residual or, for ratios, of its exponential.
    farthest : ndarray
        Scalar, distance to the nearest simulated estimate that few exceed.
    """

    level: npt.NDArray[np.float32]
    slope: npt.NDArray[np.float32]
    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]
    least: npt.NDArray[np.float32]
    most: npt.NDArray[np.float32]
    mean: npt.NDArray[np.float32]
    farthest: npt.NDArray[np.float32]


class InverseReader:
    """Reads estimates back to truths.

    Errors are ratios if `Space` says so; always for the amplitude, whose scale the prior leaves open. Their
    distribution is computed once for every simulated voxel, from its neighbours. A measured voxel takes that of the
    nearest simulated one; distances include the signal-to-noise ratio and covariates.

    Parameters
    ----------
    space : Space
    pairs : Pairs
        Truths drawn from the stated prior, in random order.
    local : LocalErrors, optional
        `local` of a reader of the same pairs; computed if not given.

    Attributes
    ----------
    local : LocalErrors
    """

    def __init__(self, space: Space, pairs: Pairs, local: LocalErrors | None = None) -> None:
        self._space = space
        truths = space.forward(pairs.truth)
        self._centre, self._whiten = _whitening(space.place(pairs.estimate))
        spread = pairs.conditions.std(axis=0, dtype=np.float64)
        self._narrow = NARROWING / np.where(spread > 0, spread, 1.0)
        self._tree = cKDTree(self._placed(pairs.estimate, pairs.conditions))
        self._span = np.subtract(*np.quantile(truths, [UPPER, LOWER], axis=0))
        self.local = local or self._local_errors(space.forward(pairs.estimate) - truths)

    def _placed(self, estimate: npt.ArrayLike, conditions: npt.NDArray[np.float32]) -> Array:
        """Return the places of estimates in the space in which they are compared."""
        whitened = (self._space.place(estimate) - self._centre) @ self._whiten
        return np.hstack([whitened, conditions * self._narrow])

    def _usual_distance(self) -> float:
        """Return the distance between neighbouring simulated estimates that few exceed."""
        distance, _ = self._tree.query(self._tree.data, 2)
        return float(np.quantile(distance[:, 1], UNLIKE))

    def _local_errors(self, errors: Array) -> LocalErrors:
        """Return the distribution of the error around every simulated voxel."""
        n = len(errors)
        k = min(N_NEIGHBOURS, n)
        ratio = self._space.is_ratio
        # Residuals of a regression are smaller on its own data than on new data.
        share = min((self._tree.data.shape[1] + 1) / k, 0.5)
        inflation = np.sqrt((1 + share) / (1 - share))
        parts = []
        for first in range(0, n, BATCH):
            here = self._tree.data[first : first + BATCH]
            near = self._tree.query(here, k)[1]
            away = self._tree.data[near] - here[:, None]
            level, slope, residual = _regress(away, errors[near])
            residual *= _size_here(away, residual) * inflation
            # Of k exchangeable errors, the j-th is below the next one with probability j / (k + 1).
            limits = np.quantile(residual, [LOWER, UPPER, 2 * LOWER, 2 * UPPER - 1], axis=1, method="weibull")
            mean = np.where(ratio, np.exp(-residual * ratio), -residual).mean(axis=1)
            parts.append((level, slope, *limits, mean))
        arrays = (np.concatenate(part).astype(np.float32) for part in zip(*parts, strict=True))
        return LocalErrors._make([*arrays, np.array(self._usual_distance(), dtype=np.float32)])

    def read(
        self,
        estimate: npt.ArrayLike,
        std: npt.ArrayLike | None = None,
        *,
        snr: npt.ArrayLike,
        covariates: npt.ArrayLike | None = None,
    ) -> Reading:
        """Return expected bias and range of the truth of estimates.

        Parameters
        ----------
        estimate, std : array_like
            (n, n_quantities), in the quantities' units; NaN where there is none.
        snr : array_like
            (n,) signal-to-noise ratio of each voxel, see `simulation.conditions_of`; or one for all.
        covariates : array_like, optional
            (n, n_covariates) if the simulated voxels have any.
        """
        found = np.asarray(estimate, dtype=np.float64)
        n = len(found)
        known = conditions_of(np.broadcast_to(np.asarray(snr), n), covariates)
        usable = np.isfinite(found).all(axis=1) & np.isfinite(known).all(axis=1)
        trust = np.full(n, Trust.NO_ESTIMATE, dtype=np.uint8)
        bias, lower, upper = (np.full(found.shape, np.nan, dtype=np.float32) for _ in range(3))
        values = found[usable]
        place = self._placed(values, known[usable])
        distance, index = self._tree.query(place)
        like = distance <= self.local.farthest
        trust[usable] = np.where(like, Trust.RANGE_GIVEN, Trust.UNLIKE)
        rows, index, values = np.flatnonzero(usable)[like], index[like], values[like]
        is_wide, spread = np.zeros(found.shape, dtype=bool), np.zeros_like(values)
        if std is not None:
            spread = np.asarray(std, dtype=np.float64)[rows]
            is_wide[rows] = self._is_wide(values, spread, index)
            trust[is_wide.any(axis=1)] = Trust.WIDE
        low, high, mean = self._truths_of(values, spread, place[like], index)
        bias[rows], lower[rows], upper[rows] = values - mean, low, high
        return Reading(bias, lower, upper, trust, is_wide)

    def _truths_of(
        self, values: Array, std: Array, place: Array, index: npt.NDArray[np.intp]
    ) -> tuple[Array, Array, Array]:
        """Return limits and mean of the truth of estimates, given the index of the nearest simulated voxel.

        Where the estimate does not differ from a physical limit, the range begins, or ends, there, and has all 10 % on
        the other side. The prior has no truths on the limit itself, but tissue has: white matter has no free water. A
        central range would hardly ever contain them. An estimate on the limit has no standard deviation.
        """
        ratio, bounds, local = self._space.is_ratio, self._space.bounds(), self.local
        error = local.level[index] + np.einsum("nd,ndq->nq", place - self._tree.data[index], local.slope[index])
        margin = REACH * np.nan_to_num(std)
        from_low = on_physical_limits(self._space.parameters, values - margin)[0]
        to_high = on_physical_limits(self._space.parameters, values + margin)[1]
        from_low, to_high = from_low & ~to_high, to_high & ~from_low

        def without(error: Array) -> Array:
            return np.where(ratio, values * np.exp(-error * ratio), values - error)

        centre = without(error)
        mean = np.where(ratio, centre * local.mean[index], centre + local.mean[index])
        low = np.where(from_low, bounds[0], without(error + np.where(to_high, local.most[index], local.high[index])))
        high = np.where(to_high, bounds[1], without(error + np.where(from_low, local.least[index], local.low[index])))
        low, high, mean = (np.clip(part, *bounds) for part in (low, high, mean))
        return low, high, mean

    def _is_wide(self, values: Array, std: Array, index: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        """Return, per quantity, whether the range of the truth is wide, see `WIDE_RATIO`; never for the amplitude.

        The prior of the amplitude has no range.
        """
        width = self.local.high[index] - self.local.low[index]
        with np.errstate(invalid="ignore", divide="ignore"):
            stated = np.where(self._space.is_ratio, std / values, std)
        is_stated = width <= WIDE_RATIO * NORMAL_RANGE * stated
        is_wide = ~is_stated & (width > WIDE_SHARE * self._span)
        is_wide[:, 0] = False
        return np.asarray(is_wide)


def normal_range(space: Space, estimate: npt.ArrayLike, std: npt.ArrayLike) -> tuple[Array, Array]:
    """Return the 5 to 95 % range of normal errors about estimates, (n, n_quantities) each.

    As in `InverseReader`, it begins, or ends, at a physical limit from which the estimate does not differ, and has all
    10 % on the other side.

    Parameters
    ----------
    space : Space
    estimate, std : array_like
        (n, n_quantities), in the quantities' units.
    """
    values, bounds = np.asarray(estimate, dtype=np.float64), space.bounds()
    half = REACH * np.asarray(std, dtype=np.float64)
    from_low = on_physical_limits(space.parameters, values - half)[0]
    to_high = on_physical_limits(space.parameters, values + half)[1]
    from_low, to_high = from_low & ~to_high, to_high & ~from_low
    low = np.where(from_low, bounds[0], values - np.where(to_high, ONE_SIDED, REACH) / REACH * half)
    high = np.where(to_high, bounds[1], values + np.where(from_low, ONE_SIDED, REACH) / REACH * half)
    return np.clip(low, *bounds), np.clip(high, *bounds)


def _whitening(places: Array) -> tuple[Array, Array]:
    """Return centre and matrix that make the covariance of places one; directions without variance are left out."""
    # Outliers must not set the scale.
    limited = np.clip(places, *np.percentile(places, [0.5, 99.5], axis=0))
    spread = limited.std(axis=0)
    size = np.where(spread > 0, spread, 1.0)
    variance, axes = np.linalg.eigh(np.atleast_2d(np.cov((limited / size).T)))
    variance = np.maximum(variance, np.finfo(float).tiny)
    kept = variance > LEAST_VARIANCE * variance.max()
    return limited.mean(axis=0), axes[:, kept] / np.sqrt(variance[kept]) / size[:, None]


def _regress(places: Array, errors: Array) -> tuple[Array, Array, Array]:
    """Return level at place zero, slope, and residuals of errors, for many neighbourhoods at once.

    Parameters
    ----------
    places : ndarray
        (n, n_neighbours, n_dimensions).
    errors : ndarray
        (n, n_neighbours, n_quantities).
    """
    centre, mean = places.mean(axis=1, keepdims=True), errors.mean(axis=1, keepdims=True)
    away, over = places - centre, errors - mean
    square = np.einsum("nkd,nke->nde", away, away)
    n_dimensions = places.shape[2]
    ridge = RIDGE * np.trace(square, axis1=1, axis2=2) + np.finfo(float).tiny
    slope = np.linalg.solve(square + ridge[:, None, None] * np.eye(n_dimensions), np.einsum("nkd,nkq->ndq", away, over))
    return (mean - centre @ slope)[:, 0], slope, over - away @ slope


def _size_here(places: Array, residual: Array) -> Array:
    """Return the factors that rescale residuals to their size at place zero; see `_regress`."""
    size = np.abs(residual)
    least = LEAST_SIZE * size.mean(axis=1, keepdims=True) + np.finfo(float).tiny
    _, slope, _ = _regress(places, np.log(np.maximum(size, least)))
    return np.exp(np.clip(-(places @ slope), -LARGEST_FACTOR, LARGEST_FACTOR))
