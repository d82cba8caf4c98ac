from __future__ import annotations

import numpy as np
import pytest

from qmri_bidsapp.core.noise import add_gaussian, add_rician


@pytest.mark.parametrize("add", [add_gaussian, add_rician])
def test_the_generator_decides(add) -> None:
    signal = np.full((100, 3), 10.0)
    first = add(signal, 1.0, np.random.default_rng(1))
    np.testing.assert_array_equal(first, add(signal, 1.0, np.random.default_rng(1)))
    assert np.abs(first - add(signal, 1.0, np.random.default_rng(2))).max() > 0.1
    assert first.shape == signal.shape


def test_gaussian_moments() -> None:
    noisy = add_gaussian(np.full(200_000, 5.0), 2.0, np.random.default_rng(0))
    assert noisy.mean() == pytest.approx(5.0, abs=0.02)
    assert noisy.std() == pytest.approx(2.0, rel=0.01)


def test_rician_moments() -> None:
    """E[M^2] = S^2 + 2 sigma^2 everywhere; without signal the mean is sigma sqrt(pi / 2) (Rayleigh)."""
    rng = np.random.default_rng(0)
    noisy = add_rician(np.full(200_000, 3.0), 2.0, rng)
    assert (noisy**2).mean() == pytest.approx(9 + 8, rel=0.01)
    assert add_rician(np.zeros(200_000), 2.0, rng).mean() == pytest.approx(2 * np.sqrt(np.pi / 2), rel=0.01)


def test_sigma_may_differ_between_measurements() -> None:
    noisy = add_rician(np.full((50_000, 2), 100.0), np.array([1.0, 5.0]), np.random.default_rng(0))
    np.testing.assert_allclose(noisy.std(axis=0), [1.0, 5.0], rtol=0.02)
