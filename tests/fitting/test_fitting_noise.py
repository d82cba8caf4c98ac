"""Noise of a diffusion series that was not denoised: from what varies within shells."""

import numpy as np
import pytest

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.core.noise import add_rician
from qmri_bidsapp.evaluation.standards import shells
from qmri_bidsapp.fitting.noise import SeriesNoise, noise_of_shells

SHAPE = (16, 16, 4)
MASK = np.ones(SHAPE, bool)


def signals(protocol: Diffusion, diffusivity: float = 0.8e-3) -> np.ndarray:
    """Return the series of tensors along the first axis, (x, y, z, n)."""
    b, g = np.asarray(protocol.b_value), np.asarray(protocol.direction)
    return np.broadcast_to(200 * np.exp(-b * (0.4e-3 + diffusivity * g[:, 0] ** 2)), (*SHAPE, len(b)))


@pytest.mark.parametrize("sigma", [4.0, 40.0], ids=["bright", "near the noise floor"])
def test_recovers_it(sigma: float):
    protocol = shells(6, (1000.0, 30), (2500.0, 60))
    series = add_rician(signals(protocol), sigma, np.random.default_rng(0))
    found = noise_of_shells(series, MASK, protocol, is_magnitude=True)
    assert np.median(found) == pytest.approx(sigma, rel=0.03)


def test_pulsation_of_the_reference_volumes_hardly_counts():
    """The lowest volumes of a real series varied twice as much as the directions: standard deviations came out twice
    too large."""
    protocol = shells(6, (1000.0, 60))
    rng = np.random.default_rng(1)
    series = add_rician(signals(protocol), 4.0, rng)
    series[..., :6] += 8.0 * rng.standard_normal((*SHAPE, 6))
    found = noise_of_shells(series, MASK, protocol, is_magnitude=True)
    assert np.median(found) == pytest.approx(4.0, rel=0.2)


def test_perfusion_at_low_b_values_is_no_noise():
    protocol = Diffusion((0.0,) * 4 + (20.0,) * 4 + (45.0,) * 4, ((0.0, 0.0, 0.0),) * 4 + ((1.0, 0.0, 0.0),) * 8)
    means = np.repeat([200.0, 180.0, 170.0], 4)
    series = add_rician(np.broadcast_to(means, (*SHAPE, 12)), 3.0, np.random.default_rng(2))
    assert np.median(noise_of_shells(series, MASK, protocol, is_magnitude=True)) == pytest.approx(3.0, rel=0.05)


def test_unknown_where_nothing_repeats():
    protocol = shells(1, (1000.0, 6))
    series = np.ones((*SHAPE, 7), np.float32)
    assert noise_of_shells(series, MASK, protocol, is_magnitude=True) is None
    assert SeriesNoise.of_series(series, MASK, protocol).std is None
