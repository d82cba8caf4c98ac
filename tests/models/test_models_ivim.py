"""IVIM against published numbers and limits, and the protocols it takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qmri_bidsapp.core.acquisition import Diffusion, MultiEcho, SphericalMean
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.models.ivim import IntravoxelIncoherentMotion

MODEL = IntravoxelIncoherentMotion()
AXES = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def series(*b_values: float) -> Diffusion:
    return Diffusion(tuple(b for b in b_values for _ in AXES), AXES * len(b_values))


def test_signal_is_that_of_dipy() -> None:
    from dipy.core.gradients import gradient_table
    from dipy.reconst.ivim import ivim_prediction

    b_value = np.array([0.0, 10.0, 50.0, 200.0, 800.0])
    table = gradient_table(b_value, bvecs=np.tile(AXES[0], (5, 1)) * (b_value[:, None] > 0), b0_threshold=0)
    expected = ivim_prediction([1000.0, 0.12, 0.011, 0.0009], table)
    theta = torch.tensor([1000.0, 0.12, 0.011, 0.0009], dtype=torch.float64)
    np.testing.assert_allclose(MODEL.signal(theta, SphericalMean(tuple(b_value))).numpy(), expected, rtol=1e-12)


def test_compartments_cannot_change_places() -> None:
    bounds = {p.name: p.bounds for p in MODEL.parameters}
    assert bounds["diffusivity"][1] <= bounds["pseudodiffusivity"][0]


def test_low_b_values_are_kept_apart_and_high_ones_left_out() -> None:
    protocol, matrix = MODEL.adapt(
        series(0.0, 5.0, 10.0, 20.0, 30.0, 100.0, 398.0, 402.0, 995.0, 1005.0, 1100.0, 2000.0)
    )
    assert protocol == SphericalMean((0.0, 5.0, 10.0, 20.0, 30.0, 100.0, 400.0, 1000.0), (3, 3, 3, 3, 3, 3, 6, 6))
    assert matrix is not None
    assert matrix.shape == (36, 8)
    np.testing.assert_allclose(matrix.sum(axis=0), 1)
    MODEL.check(protocol)


@pytest.mark.parametrize(
    "b_values",
    [
        (0.0, 1000.0, 2000.0, 3000.0),
        (0.0, 700.0, 1000.0),
        (0.0, 20.0, 50.0, 800.0),
        (50.0, 100.0, 150.0, 400.0, 800.0),
        (1500.0, 3000.0),
    ],
    ids=["multi-shell", "no-low", "one-high", "no-b0", "only-high"],
)
def test_protocols_that_leave_perfusion_open_are_refused(b_values: tuple[float, ...]) -> None:
    with pytest.raises(ProtocolError, match=r"ivim needs b = 0, at least 2 b-values up to 200 and 2 from there"):
        MODEL.check(MODEL.adapt(series(*b_values))[0])


def test_other_series_are_refused() -> None:
    with pytest.raises(ProtocolError, match="needs a SphericalMean protocol, got"):
        MODEL.check(MODEL.adapt(MultiEcho((0.01, 0.02)))[0])
