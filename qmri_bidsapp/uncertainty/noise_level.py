"""The signal-to-noise ratio of a series, at which its certificate is made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import chi2

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.maps import ParameterMaps
from qmri_bidsapp.core.simulation import reference
from qmri_bidsapp.estimators.voxels import covariates_of
from qmri_bidsapp.models.base import SignalModel

#: Voxels that are looked at of those given together: plenty for a median.
N_PER_PART = 4096
#: Steps per factor of ten of the levels at which certificates are made, so that subjects share them, and the range of
#: the latter: outside, all series are alike.
STEPS_PER_DECADE = 5
RANGE = (2.51, 1000.0)


def coarse(snr: float) -> float:
    """Return the nearest of the ratios 2.51, 3.98, 6.31, 10, 15.8, 25.1 and so on, at most 1000."""
    exponent = round(math.log10(min(max(snr, RANGE[0]), RANGE[1])) * STEPS_PER_DECADE) / STEPS_PER_DECADE
    return float(f"{10**exponent:.3g}")


class NoiseLevel:
    """Gathers the voxels of a series, to tell their signal-to-noise ratios.

    The noise is what the fit was given or, where it was given none, that of the series by the fit's residuals: of a
    voxel with few measurements more than parameters these say little, but their distribution over voxels is known.

    Parameters
    ----------
    model : SignalModel
    acquisition : Acquisition
        Protocol, as the model uses it.
    n_voxels : int
    """

    def __init__(self, model: SignalModel, acquisition: Acquisition, n_voxels: int) -> None:
        self._model, self._acquisition = model, acquisition
        self._size, self._given = (np.full(n_voxels, np.nan) for _ in range(2))
        self._residual: list[npt.NDArray[Any]] = []

    def add(
        self,
        index: npt.NDArray[np.intp],
        signals: npt.NDArray[Any],
        maps: ParameterMaps,
        noise_std: npt.NDArray[Any] | None,
        covariates: npt.NDArray[Any] | None,
    ) -> None:
        """Take the voxels of one part of the series, as they were estimated; see `Estimator.predict`."""
        measured = torch.as_tensor(np.ascontiguousarray(signals), dtype=torch.float64)
        size = reference(measured, self._acquisition).numpy().ravel()
        self._size[index] = np.where(size > 0, size, np.nan)
        if noise_std is not None:
            self._given[index] = np.where(np.asarray(noise_std) > 0, noise_std, np.nan)
        part = slice(None, None, 1 + len(signals) // N_PER_PART)
        known = covariates_of(self._model, covariates, len(signals))[part]
        theta = np.hstack([maps.estimate[part, : len(self._model.parameters)], known])
        with torch.no_grad():
            fitted = self._model.signal(torch.tensor(theta, dtype=torch.float64), self._acquisition)
        weight = np.asarray(self._acquisition.n_averages)
        cost = (weight * np.square((measured[part] - fitted).numpy())).sum(axis=1)
        self._residual.append(cost[np.isfinite(cost)])

    @property
    def is_given(self) -> bool:
        """Whether the noise of most voxels was given."""
        return bool(np.isfinite(self._given).mean() > 0.5) if len(self._given) else False

    def _of_the_series(self) -> float:
        """Return the noise of one raw measurement in the unit of the signals, NaN where nothing tells it."""
        if self.is_given:
            return float(np.nanmedian(self._given))
        freedom = self._acquisition.n_measurements - len(self._model.parameters)
        residual = np.concatenate(self._residual) if self._residual else np.empty(0)
        if not residual.size or freedom < 1:
            return math.nan
        return math.sqrt(float(np.median(residual)) / chi2.median(freedom))

    def by_voxel(self) -> npt.NDArray[np.float32]:
        """Return (n_voxels,) ratios of reference signal to the noise of one raw measurement, NaN where not known."""
        noise = np.where(np.isfinite(self._given), self._given, self._of_the_series())
        with np.errstate(divide="ignore"):
            return np.asarray(self._size / noise, dtype=np.float32)

    def snr(self) -> float | None:
        """Return the median over voxels, None where it is not known."""
        ratio = self.by_voxel()
        known = ratio[ratio > 0]
        return float(np.median(known)) if len(known) else None
