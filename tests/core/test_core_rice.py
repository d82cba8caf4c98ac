"""The signal behind a mean magnitude."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import rice

from qmri_bidsapp.core.rice import signal_of_mean


def test_it_inverts_the_mean_of_rice() -> None:
    signal = np.concatenate([np.linspace(0, 70, 1401), [100.0, 1e3, 1e5]])
    found = signal_of_mean(_means(signal))
    np.testing.assert_allclose(found, signal, atol=2e-3)
    np.testing.assert_allclose(found[signal > 1], signal[signal > 1], rtol=1e-5)


def _means(signal: np.ndarray) -> np.ndarray:
    """Return mean magnitudes by SciPy, and by their expansion where it overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        closed = rice.mean(np.minimum(signal, 30.0))
    large = np.maximum(signal, 1.0)
    return np.where(signal <= 30, closed, large + 1 / (2 * large) + 1 / (8 * large**3))


@pytest.mark.parametrize("mean", [0.0, 1.0, math.sqrt(math.pi / 2)])
def test_noise_alone_is_no_signal(mean: float) -> None:
    assert signal_of_mean(mean) == 0
