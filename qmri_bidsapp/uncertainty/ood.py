"""Out-of-distribution voxels: those that differ from all simulated ones, each with a reason.

Scores are compared with those of simulated voxels of similar signal-to-noise ratio. The share of these that is at least
as extreme is a p-value, whatever the distribution of the score (Lei and Wasserman 2014, J R Stat Soc B 76:71). Of
several scores the smallest p-value counts, which is compared with its distribution in turn, so that the level is the
share of typical voxels that are flagged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from typing_extensions import Self

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.uncertainty.ood_measures import Measures

Array = npt.NDArray[np.float64]

#: Share of typical voxels that are flagged.
LEVEL = 0.05
#: Neighbours whose distance is averaged, and largest dimension of the space of distances.
N_NEIGHBOURS = 10
MAX_DIMENSIONS = 6
#: How much narrower neighbourhoods are along the logarithm of the signal-to-noise ratio than along features.
NARROWING = 2.0
#: Share of the simulated voxels that are neighbours; the others give the distribution of scores.
BASE = 1 / 8
#: Groups of the latter of like signal-to-noise ratio, each of this part of them: of 7,200, 0.05 are known to 0.003.
N_WINDOWS = 32
WINDOW = 0.25
#: Smaller p-values are not distinguished: hardly any simulated voxel is as unusual.
ALIKE = 0.002
#: Degree of the polynomial that takes the dependence of a score on the signal-to-noise ratio out beforehand.
TREND = 3
#: Lowest number of simulated voxels.
MIN_VOXELS = 40
#: Least standard deviation of the logarithm of the signal-to-noise ratio by which it is scaled.
FIXED_SNR = 1e-3
#: Least variance of a direction of feature space relative to the largest.
LEAST_VARIANCE = 1e-8


class Reason(IntEnum):
    """Why a voxel is flagged: the score that differs most from those of simulated voxels."""

    OUTSIDE = 0  #: not in the mask
    TYPICAL = 1  #: not flagged
    MISFIT = 2  #: residuals of the fit larger or smaller than the noise
    DISTANCE = 3  #: signals unlike those of any simulated tissue
    DIRECTIONS = 4  #: scatter over directions larger or smaller than the noise
    OUTLIER = 5  #: a single image stands out
    NETWORK = 6  #: least squares fits much better than the learned estimator
    BOUND = 7  #: a parameter is at a bound, where hardly any simulated voxel has it
    FLOOR = 8  #: low signals have a noise floor where none is expected, or none where one is
    NO_ESTIMATE = 9  #: the estimation failed


#: Share of the false positives given to large values; the rest is for small ones, as from less noise than stated.
UPPER_SHARE = {Reason.MISFIT: 0.9, Reason.DIRECTIONS: 0.5, Reason.FLOOR: 0.5}


@dataclass(frozen=True)
class Flags:
    """Flags of n voxels.

    Attributes
    ----------
    p_value : ndarray
        (n,) float32: share of simulated voxels of similar signal-to-noise ratio that are at least as unusual; NaN
        without an estimate.
    reason : ndarray
        (n,) uint8, values of `Reason`: that of the smallest p-value if `p_value` is at most the level. Among p-values
        below `ALIKE` it is the first of `p_values`, which are ordered by how much they explain.
    p_values : dict
        Reason -> (n,) float32, p-value of this score alone; only of scores that exist.
    """

    p_value: npt.NDArray[np.float32]
    reason: npt.NDArray[np.uint8]
    p_values: dict[Reason, npt.NDArray[np.float32]]

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Return the voxels of all parts."""
        p_value, reason = (np.concatenate([getattr(part, name) for part in parts]) for name in ("p_value", "reason"))
        names = parts[0].p_values
        return cls(p_value, reason, {key: np.concatenate([part.p_values[key] for part in parts]) for key in names})

    def counts(self) -> dict[str, int]:
        """Return the number of voxels per name of `Reason` that occurs."""
        values, counts = np.unique(self.reason, return_counts=True)
        return {Reason(value).name: int(count) for value, count in zip(values, counts, strict=True)}


class OutOfDistribution:
    """Compares voxels with simulated ones.

    Parameters
    ----------
    measures : Measures
        Of simulated voxels in random order: the first eighth are neighbours, the others give the distribution of
        scores. Voxels without an estimate are left out.
    noise_std : array_like
        (n,) of the noise of one raw measurement, in the unit of their signals.
    is_uneven : bool
        Whether simulated voxels are spread unevenly, e.g. over decades of a relaxation time, so that distances are
        taken relative to those between the neighbours (as in Breunig et al. 2000, SIGMOD Rec 29:93).

    Raises
    ------
    InputError
        If there are fewer than `MIN_VOXELS` voxels.
    """

    def __init__(self, measures: Measures, noise_std: npt.ArrayLike, *, is_uneven: bool = False) -> None:
        usable = np.isfinite(measures.misfit) & np.isfinite(measures.features).all(axis=1)
        if usable.sum() < MIN_VOXELS:
            raise InputError(f"Flags need at least {MIN_VOXELS} simulated voxels with an estimate, got {usable.sum()}.")
        self._measures, self._noise = measures.part(usable), np.asarray(noise_std, dtype=np.float32)[usable]
        n_base = round(BASE * len(self._measures))
        base, rest = self._measures.part(slice(n_base)), self._measures.part(slice(n_base, None))
        log_snr = _log_snr(base, self._noise[:n_base])
        self._limits = (float(log_snr.min()), float(log_snr.max()))
        self._narrow = NARROWING / max(float(log_snr.std()), FIXED_SNR)
        self._centre, self._whiten = _whitening(base.features.astype(np.float64))
        self._tree = cKDTree(self._placed(base.features, log_snr))
        self._nearest = np.arange(1, min(N_NEIGHBOURS, n_base - 1) + 1)
        self._is_uneven = is_uneven
        # The nearest neighbour of a voxel of the tree is the voxel itself.
        self._usual = self._tree.query(self._tree.data, self._nearest + 1)[0].mean(axis=1)
        snr, scores = self.scores(rest, self._noise[n_base:])
        self._reference = _Reference(snr, scores)

    def _placed(self, features: npt.NDArray[np.float32], log_snr: Array) -> Array:
        """Return the places of voxels in the space in which they are compared."""
        return np.column_stack([(features - self._centre) @ self._whiten, log_snr * self._narrow])

    def scores(self, measures: Measures, noise_std: npt.ArrayLike) -> tuple[Array, dict[Reason, Array]]:
        """Return the logarithm of the signal-to-noise ratio, clipped to the simulated range, and all scores, (n,) each.

        Large scores are unusual, and small ones too for those in `UPPER_SHARE`.
        """
        noise = np.asarray(np.broadcast_to(noise_std, len(measures)), dtype=np.float64)
        noise = np.where(noise > 0, noise, np.nan)
        log_snr = np.clip(_log_snr(measures, noise), *self._limits)
        place = self._placed(measures.features, log_snr)
        distance, usable = np.full(len(place), np.nan), np.isfinite(place).all(axis=1)
        away, neighbours = self._tree.query(place[usable], self._nearest)
        distance[usable] = away.mean(axis=1)
        if self._is_uneven:
            distance[usable] /= self._usual[neighbours].mean(axis=1)
        # More noise than stated, or a bad image, must not count as misfit.
        scatter = np.fmax(noise**2, measures.directions)
        scores = {
            Reason.FLOOR: measures.floor.astype(np.float64),
            Reason.DIRECTIONS: measures.directions / noise**2,
            Reason.OUTLIER: measures.outlier / np.sqrt(np.fmax(noise**2, measures.others)),
            Reason.MISFIT: measures.misfit / scatter,
            Reason.NETWORK: measures.network / scatter,
            Reason.BOUND: measures.at_bound.astype(np.float64),
            Reason.DISTANCE: distance,
        }
        return log_snr, scores

    def flag(
        self, measures: Measures, noise_std: npt.ArrayLike, *, level: float = LEVEL, less_is_fine: bool = False
    ) -> Flags:
        """Compare voxels.

        Parameters
        ----------
        measures : Measures
            From a `Meter` of the same estimator and protocol.
        noise_std : array_like
            (n,) or one for all: standard deviation of the noise of one raw measurement, in the unit of the signals;
            voxels without a positive one have no p-value.
        level : float
            Share of typical voxels that is flagged.
        less_is_fine : bool
            Whether residuals smaller than the noise are accepted, as in denoised series; fewer voxels are then flagged.
        """
        p_value, p_values = self._reference.compare(*self.scores(measures, noise_std), less_is_fine=less_is_fine)
        names = list(p_values)
        table = np.column_stack([np.maximum(np.where(np.isnan(p), np.inf, p), ALIKE) for p in p_values.values()])
        smallest = np.array(names, dtype=np.uint8)[table.argmin(axis=1)]
        reason = np.where(p_value <= level, smallest, np.uint8(Reason.TYPICAL))
        reason[np.isnan(p_value)] = Reason.NO_ESTIMATE
        return Flags(p_value.astype(np.float32), reason, {key: p.astype(np.float32) for key, p in p_values.items()})

    def noise_in_use(self, measures: Measures, stated: npt.ArrayLike, smooth: Callable[[Array], Array]) -> Array:
        """Return the noise that voxels are compared with, (n,): the stated noise, lowered where the data show less.

        Noise measured from repeats is too large where these differ by pulsation and motion. It is lowered by the
        scatter over directions in the neighbourhood, relative to the usual one at the signal-to-noise ratio. Not for
        denoised series, whose scatter says little about the noise that is left in estimates.

        Parameters
        ----------
        measures : Measures
        stated : array_like
            (n,), see `flag`.
        smooth : callable
            Returns the mean over each voxel's neighbourhood, without NaN.
        """
        noise = np.array(stated, dtype=np.float64)
        excess = self._reference.excess(Reason.DIRECTIONS, *self.scores(measures, noise))
        return noise if excess is None else np.asarray(noise * np.exp(np.fmin(smooth(excess), 0.0) / 2))

    def to_arrays(self, prefix: str = "") -> dict[str, npt.NDArray[Any]]:
        """Return the measures and noise that it is made from, by name."""
        own = {"noise_std": self._noise, "is_uneven": np.array(self._is_uneven)}
        return {**self._measures.to_arrays(prefix), **{f"{prefix}{name}": values for name, values in own.items()}}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], prefix: str = "") -> Self:
        """Rebuild from the arrays of `to_arrays`; KeyError if one is missing."""
        own = {name: arrays[f"{prefix}{name}"] for name in ("noise_std", "is_uneven")}
        return cls(Measures.from_arrays(arrays, prefix), own["noise_std"], is_uneven=bool(own["is_uneven"]))


class _Reference:
    """Scores of simulated voxels, by signal-to-noise ratio.

    Parameters
    ----------
    log_snr : ndarray
        (n,).
    scores : dict
        Reason -> (n,); a score that is NaN in most voxels is left out.
    """

    def __init__(self, log_snr: Array, scores: dict[Reason, Array]) -> None:
        order = np.argsort(log_snr, kind="stable")
        n = len(order)
        width = max(round(WINDOW * n), 1)
        first = np.linspace(0, n - width, N_WINDOWS).round().astype(int)
        self._rows = [order[i : i + width] for i in first]
        self._centres = np.array([log_snr[rows].mean() for rows in self._rows])
        known = {key: values for key, values in scores.items() if np.isfinite(values).mean() > 0.5}
        self._trends = {
            key: _trend(log_snr, values)
            for key, values in known.items()
            if np.nanmin(values) > 0 and np.ptp(log_snr) > 0
        }
        self._scores = self._without_trend(log_snr, known)
        own = self._p_values(self._window_of(log_snr), self._scores, are_known=True)
        self._smallest = np.fmin.reduce(list(own.values()))

    def _without_trend(self, log_snr: Array, scores: dict[Reason, Array]) -> dict[Reason, Array]:
        """Return scores divided by their trend over the signal-to-noise ratio."""
        return {
            key: values / np.exp(self._trends[key](log_snr)) if key in self._trends else values
            for key, values in scores.items()
        }

    def _window_of(self, log_snr: Array) -> npt.NDArray[np.intp]:
        """Return the index of the window with the nearest centre."""
        return np.searchsorted((self._centres[1:] + self._centres[:-1]) / 2, np.nan_to_num(log_snr))

    def _p_values(
        self, window: npt.NDArray[np.intp], scores: dict[Reason, Array], *, are_known: bool = False
    ) -> dict[Reason, Array]:
        """Return Reason -> (n,) p-values."""
        result = {}
        for key, known in self._scores.items():
            values, p = scores[key], np.empty(len(window))
            for k, rows in enumerate(self._rows):
                here, own = window == k, known[rows]
                own = np.sort(own[np.isfinite(own)])
                p[here] = _share_as_extreme(own, values[here], UPPER_SHARE.get(key, 1.0), are_known)
            result[key] = p
        return result

    def compare(
        self, log_snr: Array, scores: dict[Reason, Array], *, less_is_fine: bool
    ) -> tuple[Array, dict[Reason, Array]]:
        """Return the p-value of each voxel, and of each score that exists; see `OutOfDistribution.flag`."""
        window, usual = self._window_of(log_snr), self._without_trend(log_snr, scores)
        p_values = self._p_values(window, usual)
        if less_is_fine:
            for key in UPPER_SHARE.keys() & p_values.keys():
                # With less noise than simulated there are fewer negative values.
                limit = np.inf if key is Reason.FLOOR else np.nanmedian(self._scores[key])
                p_values[key] = np.where(usual[key] < limit, 1.0, p_values[key])
        smallest, p = np.fmin.reduce(list(p_values.values())), np.empty(len(window))
        for k, rows in enumerate(self._rows):
            here = window == k
            p[here] = _share_as_extreme(np.sort(-self._smallest[rows]), -smallest[here])
        missing = np.isnan(scores[Reason.MISFIT]) | np.isnan(log_snr)
        return np.where(missing, np.nan, p), {key: np.where(missing, np.nan, q) for key, q in p_values.items()}

    def excess(self, reason: Reason, log_snr: Array, scores: dict[Reason, Array]) -> Array | None:
        """Return the logarithm of a score relative to its trend; NaN where it is not positive, None without a trend."""
        if reason not in self._trends or not np.isfinite(scores[reason]).any():
            return None
        ratio = scores[reason] / np.exp(self._trends[reason](log_snr))
        return np.asarray(np.log(np.where(ratio > 0, ratio, np.nan)))


def _trend(log_snr: Array, values: Array) -> np.polynomial.Polynomial:
    """Return a polynomial fit of the logarithm of a score over the signal-to-noise ratio."""
    seen = np.isfinite(values)
    return np.polynomial.Polynomial.fit(log_snr[seen], np.log(values[seen]), TREND)


def _share_as_extreme(known: Array, values: Array, upper_share: float = 1.0, are_known: bool = False) -> Array:
    """Return p-values: the share of known scores (ascending) and the value itself that are at least as extreme.

    If small values are extreme too, the p-value is the smaller of both sides, each divided by its share of the false
    positives. Values that are among the known ones count once.
    """
    n, itself = len(known), 0 if are_known else 1
    p = (itself + n - np.searchsorted(known, values, side="left")) / (itself + n) / upper_share
    if upper_share < 1:
        p = np.minimum(p, (itself + np.searchsorted(known, values, side="right")) / (itself + n) / (1 - upper_share))
    return np.where(np.isnan(values), np.nan, np.minimum(p, 1.0))


def _log_snr(measures: Measures, noise_std: npt.NDArray[np.floating]) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.log(measures.size.astype(np.float64) / noise_std))


def _whitening(features: Array) -> tuple[Array, Array]:
    """Return centre and matrix that whiten features, along the axes of largest variance."""
    limited = np.clip(features, *np.percentile(features, [0.5, 99.5], axis=0))
    variance, axes = np.linalg.eigh(np.atleast_2d(np.cov(limited.T)))
    kept = np.flatnonzero(variance > LEAST_VARIANCE * variance.max())[-MAX_DIMENSIONS:]
    return limited.mean(axis=0), axes[:, kept] / np.sqrt(variance[kept])
