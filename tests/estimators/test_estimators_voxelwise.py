"""What estimators of single voxels share: arguments, screening, chunks, maps."""

from __future__ import annotations

import re
from typing import ClassVar

import numpy as np
import pytest

from qmri_bidsapp.core.acquisition import Acquisition, Diffusion, MultiEcho
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.estimators.voxels import Solution, VoxelData
from qmri_bidsapp.estimators.voxelwise import VoxelwiseEstimator
from qmri_bidsapp.evaluation.standards import even_directions
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.registry import get_model

ECHOES = MultiEcho((0.02, 0.04, 0.08))


class LastOverFirst(VoxelwiseEstimator):
    """T2 from the first and the last echo, with the noise as the standard deviation of everything."""

    name: ClassVar[str] = "ratio"
    title: ClassVar[str] = "Two echoes"
    std_kind: ClassVar[str] = "The noise"
    reference: ClassVar[str] = ""
    chunk_size: ClassVar[int | None] = 2

    @classmethod
    def supports(cls, model: SignalModel) -> bool:
        return model.name == "t2"

    def _prepare(self, acquisition: Acquisition, seed: int) -> None:
        self._span = ECHOES.echo_time[-1] - ECHOES.echo_time[0]
        self.seen: list[VoxelData] = []

    def _solve(self, voxels: VoxelData) -> Solution:
        self.seen.append(voxels)
        t2 = self._span / np.log(voxels.signals[:, 0] / voxels.signals[:, -1])
        estimate = np.stack([voxels.signals[:, 0], t2, 1 / t2], axis=1)
        noise = np.full(len(t2), np.nan) if voxels.noise_std is None else voxels.noise_std
        return Solution(estimate, np.repeat(noise[:, None], 3, axis=1), np.full(len(t2), Status.OK, dtype=np.uint8))


SIGNALS = 100 * np.exp(-np.array(ECHOES.echo_time) / np.array([[0.05], [0.1], [0.2], [0.07], [0.09]]))


@pytest.mark.parametrize("chunk_size", [2, None])
def test_the_method_sees_voxels_that_can_be_fitted_and_maps_hold_all(
    monkeypatch: pytest.MonkeyPatch, chunk_size: int | None
) -> None:
    monkeypatch.setattr(LastOverFirst, "chunk_size", chunk_size)
    signals = SIGNALS.copy()
    signals[1], signals[3, 1] = 0.0, np.nan
    estimator = LastOverFirst(get_model("t2")).fit(ECHOES)
    maps = estimator.predict(signals, noise_std=[1.0, 1.0, np.inf, 1.0, 2.0])
    assert maps.status.tolist() == [Status.OK, Status.NO_SIGNAL, Status.OK, Status.INVALID_INPUT, Status.OK]
    np.testing.assert_allclose(maps.estimate[[0, 2, 4], 1], [0.05, 0.2, 0.09], rtol=1e-5)
    assert np.isnan(maps.estimate[[1, 3]]).all()
    np.testing.assert_array_equal(maps.std[:, 0], [1.0, np.nan, np.nan, np.nan, 2.0])
    assert sum(len(voxels.signals) for voxels in estimator.seen) == 3
    assert max(len(voxels.signals) for voxels in estimator.seen) <= (chunk_size or 3)
    assert {voxels.signals.dtype for voxels in estimator.seen} == {np.dtype(np.float32)}


def test_estimates_that_are_not_finite_have_failed() -> None:
    signals = SIGNALS.copy()
    signals[2, -1] = signals[2, 0]
    with np.errstate(divide="ignore"):
        maps = LastOverFirst(get_model("t2")).fit(ECHOES).predict(signals, noise_std=1.0)
    assert maps.status.tolist() == [Status.OK, Status.OK, Status.FAILED, Status.OK, Status.OK]
    assert np.isnan(maps.estimate[2]).all()
    assert np.isnan(maps.std[2]).all()


@pytest.mark.parametrize("name", ["smt", "ivim"])
def test_a_raw_series_is_refused_with_the_call_that_adapts_it(name: str) -> None:
    model = get_model(name)
    b_value = (0.0,) * 3 + tuple(np.repeat([10.0, 40, 100, 200, 400, 800, 1000, 3000], 12))
    series = Diffusion(b_value, ((0.0, 0.0, 0.0),) * 3 + even_directions(12) * 8)
    remedy = re.escape("call `protocol, matrix = model.adapt(acquisition)`")
    with pytest.raises(ProtocolError, match=rf"fitted to a SphericalMean .* this Diffusion series: {remedy}"):
        NonLinearLeastSquares(model).fit(series)
    with pytest.raises(ProtocolError, match=remedy):
        model.check(series)
    protocol, matrix = model.adapt(series)
    signals = np.full((2, series.n_measurements), 50.0) @ matrix
    assert len(NonLinearLeastSquares(model).fit(protocol).predict(signals).status) == 2
    with pytest.raises(ProtocolError, match=f"Model {name} needs a SphericalMean protocol, got MultiEcho"):
        model.check(ECHOES)
