"""Magnitudes of several coils combined by the root of the sum of squares: found in air, and their floor removed."""

import numpy as np
import pytest

from qmri_bidsapp.core.noise import add_rician
from qmri_bidsapp.core.rice import signal_of_mean, variance_of_mean
from qmri_bidsapp.preprocess.coils import Coils, coils_of_air

SHAPE = (24, 24, 12)
HEAD = np.zeros(SHAPE, bool)
HEAD[9:15, 9:15, 4:8] = True


def acquired(n_coils: int, seed: int = 0) -> np.ndarray:
    """Return magnitudes, coil by coil, of a head whose signal falls with the volume."""
    rng = np.random.default_rng(seed)
    signal = HEAD[..., None] * np.linspace(60, 0, 40)
    square = np.zeros(signal.shape)
    for _ in range(n_coils):
        square += add_rician(signal / np.sqrt(n_coils), 5.0, rng) ** 2
    return np.sqrt(square)


@pytest.mark.parametrize("n_coils", [1, 2, 4, 8, 16])
def test_coils_are_counted_in_air(n_coils: int) -> None:
    found = coils_of_air(acquired(n_coils), HEAD)
    assert found.n == pytest.approx(n_coils, rel=0.12)
    if n_coils > 1:
        assert found.sigma == pytest.approx(5, rel=0.06)
        # The floor is that of air.
        assert 2 * found.n * found.sigma**2 == pytest.approx(2 * n_coils * 25, rel=0.01)


def test_what_is_no_sum_of_squares_is_one_coil() -> None:
    rng = np.random.default_rng(1)
    varying = np.linspace(0.5, 2, SHAPE[0])[:, None, None, None]
    assert coils_of_air(acquired(1) * varying, HEAD) == Coils()
    # Air that was removed, or too little of it, tells nothing.
    assert coils_of_air(acquired(8) * HEAD[..., None], HEAD) == Coils()
    assert coils_of_air(acquired(8), rng.random(SHAPE) < 0.5) == Coils()


@pytest.mark.parametrize("n_coils", [2, 8, 32])
@pytest.mark.parametrize("signal", [0.0, 1.0, 3.0, 10.0])
def test_the_floor_of_several_coils(n_coils: int, signal: float) -> None:
    """Against simulated magnitudes, coil by coil."""
    rng = np.random.default_rng(2)
    parts = rng.standard_normal((200_000, 2 * n_coils))
    parts[:, 0] += signal
    magnitude = np.sqrt(np.square(parts).sum(axis=1))
    assert variance_of_mean(magnitude.mean(), n_coils) == pytest.approx(magnitude.var(), rel=0.1)
    # In units of the noise; at the floor any small error of the mean is a root of it.
    assert float(signal_of_mean(magnitude.mean(), n_coils)) == pytest.approx(signal, abs=0.45 if signal < 1.5 else 0.1)


def test_magnitudes_of_several_coils_are_drawn_alike() -> None:
    rng = np.random.default_rng(3)
    drawn = add_rician(np.full(100_000, 3.0), 1.0, rng, n_coils=8)
    parts = rng.standard_normal((100_000, 16))
    parts[:, 0] += 3.0
    expected = np.sqrt(np.square(parts).sum(axis=1))
    assert drawn.mean() == pytest.approx(expected.mean(), rel=0.003)
    assert drawn.std() == pytest.approx(expected.std(), rel=0.02)
