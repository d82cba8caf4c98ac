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
STEPS_PER_DECADE = 10
RANGE = (2.0, 1000.0)


def coarse(snr: float) -> float:
    """Return the nearest of the ratios 2, 2.51, 3.16, 3.98, 5.01, 6.31, 7.94, 10 and so on, at most 1000."""
    exponent = round(math.log10(min(max(snr, RANGE[0]), RANGE[1])) * STEPS_PER_DECADE) / STEPS_PER_DECADE
    return float(f"{10**exponent:.3g}")


class NoiseLevel:
    """Gathers the voxels of a series, to tell its median signal-to-noise ratio.

    The noise is what the fit was given or, where it was given none, what its residuals say: of a voxel with few
    measurements more than parameters these say little, but their distribution over voxels is known.

    Parameters
    ----------
    model : SignalModel
    acquisition : Acquisition
        Protocol, as the model uses it.
    """

    def __init__(self, model: SignalModel, acquisition: Acquisition) -> None:
        self._model, self._acquisition = model, acquisition
        self._size: list[npt.NDArray[Any]] = []
        self._given: list[npt.NDArray[Any]] = []
        self._residual: list[npt.NDArray[Any]] = []

    def add(
        self,
        signals: npt.NDArray[Any],
        maps: ParameterMaps,
        noise_std: npt.NDArray[Any] | None,
        covariates: npt.NDArray[Any] | None,
    ) -> None:
        """Take the voxels of one part of the series, as they were estimated; see `Estimator.predict`."""
        part = slice(None, None, 1 + len(signals) // N_PER_PART)
        known = covariates_of(self._model, covariates, len(signals))[part]
        measured = torch.as_tensor(np.ascontiguousarray(signals[part]), dtype=torch.float64)
        theta = np.hstack([maps.estimate[part, : len(self._model.parameters)], known])
        with torch.no_grad():
            fitted = self._model.signal(torch.tensor(theta, dtype=torch.float64), self._acquisition)
            size = reference(measured, self._acquisition).numpy().ravel()
        weight = np.asarray(self._acquisition.n_averages)
        cost = (weight * np.square((measured - fitted).numpy())).sum(axis=1)
        used = np.isfinite(cost) & (size > 0)
        given = np.full(len(signals), np.nan) if noise_std is None else np.asarray(noise_std, dtype=np.float64)
        self._size.append(size[used])
        self._given.append(given[part][used])
        self._residual.append(cost[used])

    @property
    def is_given(self) -> bool:
        """Whether the noise of most voxels was given."""
        given = np.concatenate(self._given) if self._given else np.empty(0)
        return bool(given.size and (given > 0).mean() > 0.5)

    def snr(self) -> float | None:
        """Return the median ratio of a voxel's reference signal to the noise of one raw measurement.

        None where nothing tells the noise.
        """
        size = np.concatenate(self._size) if self._size else np.empty(0)
        freedom = self._acquisition.n_measurements - len(self._model.parameters)
        if not size.size or (not self.is_given and freedom < 1):
            return None
        if self.is_given:
            given = np.concatenate(self._given)
            ratio = float(np.median(size[given > 0] / given[given > 0]))
        else:
            variance = np.median(np.concatenate(self._residual) / np.square(size)) / chi2.median(freedom)
            ratio = 1 / math.sqrt(variance) if variance > 0 else math.inf
        return ratio if ratio > 0 else None
