"""The signal-to-noise ratio of a series, at which its certificate is made."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import chi2

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.simulation import reference
from qmri_bidsapp.estimators.voxels import covariates_of
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.registry import get_estimator

#: Pairs of voxels from which the noise of a series is found: plenty for a median.
N_PAIRS = 2048
#: Voxels between the two of a pair: near enough to share the misfit of the model, far enough that interpolation does
#: not correlate their noise.
DISTANCE = 2
#: Least-squares estimators; the first that supports the model is used.
LEAST_SQUARES = ("nlls", "wls")
#: Certificates are made at this many signal-to-noise ratios per decade, so that subjects share them, within this range:
#: beyond it certificates hardly differ.
STEPS_PER_DECADE = 5
RANGE = (2.51, 1000.0)


def coarse(snr: float) -> float:
    """Return the nearest of the ratios 2.51, 3.98, 6.31, 10, 15.8, 25.1 and so on, at most 1000."""
    exponent = round(math.log10(min(max(snr, RANGE[0]), RANGE[1])) * STEPS_PER_DECADE) / STEPS_PER_DECADE
    return float(f"{10**exponent:.3g}")


class NoiseLevel:
    """Determines the signal-to-noise ratio of the voxels of a series.

    The noise is the one that the fit was given. Where it was given none, one value is estimated for the series from
    differences of least-squares residuals between nearby voxels, the same for every estimator: residuals of other
    estimators contain their bias, and differences cancel the misfit of the model, which neighbours share. A single
    voxel has few residuals, but the distribution of their sum of squares over voxels is known.

    Parameters
    ----------
    model : SignalModel
    acquisition : Acquisition
        Protocol, as the model uses it.
    mask : ndarray
        (x, y, z) bool, the voxels of the series, which are given in C order.
    """

    def __init__(self, model: SignalModel, acquisition: Acquisition, mask: npt.NDArray[np.bool_]) -> None:
        self._model, self._acquisition = model, acquisition
        n_voxels = int(mask.sum())
        self._size, self._given = (np.full(n_voxels, np.nan) for _ in range(2))
        self._pairs = _neighbours(mask)
        self._wanted = np.unique(self._pairs)
        self._signals = np.full((len(self._wanted), acquisition.n_measurements), np.nan)
        self._covariates = np.full((len(self._wanted), len(model.covariates)), np.nan)

    def add(
        self,
        index: npt.NDArray[np.intp],
        signals: npt.NDArray[Any],
        noise_std: npt.NDArray[Any] | None,
        covariates: npt.NDArray[Any] | None,
    ) -> None:
        """Add the voxels of one chunk; `signals`, `noise_std` and `covariates` as for `Estimator.predict`."""
        measured = torch.as_tensor(np.ascontiguousarray(signals), dtype=torch.float64)
        size = reference(measured, self._acquisition).numpy().ravel()
        self._size[index] = np.where(size > 0, size, np.nan)
        if noise_std is not None:
            self._given[index] = np.where(np.asarray(noise_std) > 0, noise_std, np.nan)
        _, own, kept = np.intersect1d(index, self._wanted, assume_unique=True, return_indices=True)
        self._signals[kept] = signals[own]
        self._covariates[kept] = covariates_of(self._model, covariates, len(signals))[own]

    @property
    def is_given(self) -> bool:
        """Whether the noise of most voxels was given."""
        return bool(np.isfinite(self._given).mean() > 0.5) if len(self._given) else False

    def _of_the_series(self) -> float:
        """Return the noise of one raw measurement in the unit of the signals; NaN if it cannot be estimated."""
        if self.is_given:
            return float(np.nanmedian(self._given))
        freedom = self._acquisition.n_measurements - len(self._model.parameters)
        if freedom < 1 or not len(self._pairs):
            return math.nan
        residual = self._residuals()[np.searchsorted(self._wanted, self._pairs)]
        cost = np.square(residual[:, 0] - residual[:, 1]).sum(axis=1) / 2
        cost = cost[np.isfinite(cost)]
        return math.sqrt(float(np.median(cost)) / chi2.median(freedom)) if len(cost) else math.nan

    def _residuals(self) -> npt.NDArray[np.float64]:
        """Return the residuals of least squares, scaled to the noise of one raw measurement."""
        kind = next(kind for name in LEAST_SQUARES if (kind := get_estimator(name)).supports(self._model))
        known = self._covariates if self._model.covariates else None
        estimator = kind(self._model).fit(self._acquisition)
        maps = estimator.predict(self._signals, covariates=known)
        theta = np.hstack([maps.estimate[:, : len(self._model.parameters)], self._covariates])
        with torch.no_grad():
            fitted = self._model.signal(torch.tensor(theta, dtype=torch.float64), self._acquisition).numpy()
        return np.asarray(np.sqrt(self._acquisition.n_averages) * (self._signals - fitted))

    @cached_property
    def noise_std(self) -> npt.NDArray[np.float64]:
        """(n_voxels,) standard deviation of the noise of one raw measurement; NaN where it is unknown."""
        return np.asarray(np.where(np.isfinite(self._given), self._given, self._of_the_series()))

    @cached_property
    def by_voxel(self) -> npt.NDArray[np.float32]:
        """(n_voxels,) ratio of reference signal to the noise of one raw measurement; NaN where it is unknown."""
        with np.errstate(divide="ignore"):
            return np.asarray(self._size / self.noise_std, dtype=np.float32)

    @property
    def snr(self) -> float | None:
        """Median over voxels; None if it is unknown."""
        known = self.by_voxel[self.by_voxel > 0]
        return float(np.median(known)) if len(known) else None


def _neighbours(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Return (n, 2) indices, in C order, of pairs of masked voxels `DISTANCE` apart, spread evenly over the mask.

    Pairs lie along the axis with most voxels, which is within slices.
    """
    number = np.full(mask.shape, -1, dtype=np.intp)
    number[mask] = np.arange(int(mask.sum()))
    number = np.moveaxis(number, int(np.argmax(mask.shape)), 0)
    pairs = np.stack([number[:-DISTANCE], number[DISTANCE:]], axis=-1).reshape(-1, 2)
    pairs = pairs[(pairs >= 0).all(axis=1)]
    return pairs[np.linspace(0, len(pairs) - 1, min(N_PAIRS, len(pairs))).astype(np.intp)]
