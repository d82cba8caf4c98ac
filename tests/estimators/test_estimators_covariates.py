"""Quantities known per voxel: a decay whose times are stretched by a factor from another map."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch

from qmri_bidsapp.core.acquisition import MultiEcho
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.errors import InputError
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.fitting.series import fit_series
from qmri_bidsapp.models.base import SignalModel

ECHOES = MultiEcho((0.01, 0.02, 0.04, 0.08, 0.16))


class StretchedDecay(SignalModel):
    """a exp(-stretch TE / t), with the stretched time as derived parameter."""

    name = "stretched"
    title = "Decay with a known stretch"
    reference = "none"
    parameters: ClassVar = (
        Parameter("a", "arbitrary", (0.0, 20.0), 1.0, "amplitude"),
        Parameter("t", "s", (0.001, 4.0), 0.1, "time"),
    )
    derived: ClassVar = (Parameter("effective", "s", (0.0, 9.0), 0.1, "t / stretch"),)
    covariates: ClassVar = (Parameter("stretch", "1", (0.2, 3.0), 1.0, "factor of the times"),)
    acquisition_type = MultiEcho
    bids_suffixes = ()

    def signal(self, theta: torch.Tensor, acquisition: MultiEcho) -> torch.Tensor:
        amplitude, time, stretch = (column.unsqueeze(-1) for column in theta.unbind(-1))
        times = torch.as_tensor(acquisition.echo_time, dtype=theta.dtype)
        return amplitude * torch.exp(-stretch * times / time)

    def derive(self, theta: torch.Tensor) -> torch.Tensor:
        return theta[..., 1:2] / theta[..., 2:3]


def simulated(n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, factors and signals of amplitude 80."""
    rng = np.random.default_rng(0)
    time, stretch = rng.uniform(0.04, 0.12, n), rng.uniform(0.5, 2.0, n)
    theta = torch.tensor(np.stack([np.full(n, 80.0), time, stretch], axis=1))
    return time, stretch, StretchedDecay().signal(theta, ECHOES).numpy()


def test_each_voxel_is_fitted_with_its_own_covariate() -> None:
    time, stretch, signals = simulated()
    estimator = NonLinearLeastSquares(StretchedDecay()).fit(ECHOES)
    maps = estimator.predict(signals, covariates=stretch[:, None])
    np.testing.assert_allclose(maps.estimate[:, 1], time, rtol=1e-3)
    np.testing.assert_allclose(maps.estimate[:, 2], time / stretch, rtol=1e-3)
    neutral = estimator.predict(signals)
    np.testing.assert_allclose(neutral.estimate[:, 1], time / stretch, rtol=1e-3)


def test_standard_deviations_use_the_covariate() -> None:
    """The voxel's own protocol has stretched echo times: the bound is that of a fit with those."""
    _, stretch, signals = simulated(1)
    maps = (
        NonLinearLeastSquares(StretchedDecay()).fit(ECHOES).predict(signals, noise_std=1.0, covariates=stretch[:, None])
    )
    stretched = MultiEcho(tuple(float(t * stretch[0]) for t in ECHOES.echo_time))
    expected = NonLinearLeastSquares(StretchedDecay()).fit(stretched).predict(signals, noise_std=1.0)
    np.testing.assert_allclose(maps.std[:, :2], expected.std[:, :2], rtol=1e-3)
    np.testing.assert_allclose(maps.std[:, 2], expected.std[:, 1] / stretch, rtol=1e-3)


def test_a_voxel_without_a_usable_covariate_is_flagged() -> None:
    _, _, signals = simulated(4)
    known = np.array([[1.0], [np.nan], [0.0], [1.0]])
    maps = NonLinearLeastSquares(StretchedDecay()).fit(ECHOES).predict(signals, covariates=known)
    assert maps.status.tolist() == [Status.OK, Status.INVALID_INPUT, Status.INVALID_INPUT, Status.OK]
    assert np.isnan(maps.estimate[1:3]).all()


def test_covariate_maps_reach_the_voxels_of_a_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    time, stretch, signals = simulated(60)
    data = signals.reshape(5, 4, 3, -1).astype(np.float32)
    mask = np.ones((5, 4, 3), dtype=bool)
    mask[0, 0, 0] = False
    monkeypatch.setattr("qmri_bidsapp.fitting.series.CHUNK_SIZE", 7)
    estimator = NonLinearLeastSquares(StretchedDecay())
    volume = stretch.reshape(mask.shape)
    maps = fit_series(estimator, data, mask, ECHOES, covariates=[volume]).maps
    np.testing.assert_allclose(maps.estimate[:, 1], time[1:], rtol=1e-3)
    with pytest.raises(InputError, match="A covariate has shape"):
        fit_series(estimator, data, mask, ECHOES, covariates=[volume[:4]])
