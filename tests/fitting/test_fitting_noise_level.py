"""Is the noise of a series found again?"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qmri_bidsapp.core.acquisition import MultiEcho, SphericalMean, SpoiledGradientEcho
from qmri_bidsapp.fitting.noise_level import NoiseLevel, coarse
from qmri_bidsapp.registry import get_model

N = 20_000
MASK = np.ones((100, 200, 1), dtype=bool)


def level_of(name: str, acquisition, theta: np.ndarray, *, is_given: bool) -> NoiseLevel:
    """Return the level of voxels of one tissue with noise of standard deviation 10."""
    model, rng = get_model(name), np.random.default_rng(0)
    clean = model.signal(torch.tensor(theta), acquisition).numpy()
    signals = clean + 10 / np.sqrt(acquisition.n_averages) * rng.standard_normal((N, len(clean)))
    noise = np.full(N, 10.0) if is_given else None
    level = NoiseLevel(model, acquisition, MASK)
    level.add(np.arange(N), signals, noise, None)
    return level


@pytest.mark.parametrize("is_given", [True, False], ids=["given", "from residuals"])
def test_averages_with_two_residuals(is_given):
    """The reference is the mean without diffusion weighting, the noise that of one volume."""
    acquisition = SphericalMean((0.0, 1000.0, 2000.0, 3500.0, 5000.0), (12, 32, 32, 32, 32))
    level = level_of("smt", acquisition, np.array([300.0, 0.5, 1.5e-3]), is_given=is_given)
    assert level.snr == pytest.approx(30, rel=0.05)
    assert level.is_given == is_given


def test_echoes():
    acquisition = MultiEcho((0.01, 0.02, 0.04, 0.06, 0.1))
    level = level_of("t2", acquisition, np.array([500.0, 0.08]), is_given=False)
    # Relative to the largest measurement, nearly always the first.
    assert level.snr == pytest.approx(50 * np.exp(-0.01 / 0.08), rel=0.03)


def test_not_known_without_residuals_or_voxels():
    acquisition = MultiEcho((0.01, 0.05))
    assert level_of("t2", acquisition, np.array([500.0, 0.08]), is_given=False).snr is None
    assert level_of("t2", acquisition, np.array([500.0, 0.08]), is_given=True).snr is not None
    empty = NoiseLevel(get_model("t2"), acquisition, np.zeros((3, 3, 3), dtype=bool))
    assert empty.snr is None
    assert not empty.is_given


@pytest.mark.parametrize(
    ("snr", "expected"),
    [(24.0, 25.1), (26.0, 25.1), (25.1, 25.1), (31.0, 25.1), (32.0, 39.8), (0.1, 2.51), (np.inf, 1000.0), (10, 10.0)],
)
def test_levels_are_few(snr, expected):
    assert coarse(snr) == expected


def test_each_voxel_has_its_own():
    """Signals of different size with the same noise, which is given in some voxels only."""
    acquisition, model, rng = MultiEcho((0.01, 0.02, 0.04, 0.06, 0.1)), get_model("t2"), np.random.default_rng(0)
    amplitude = np.repeat([200.0, 1000.0], N // 2)
    signals = amplitude[:, None] * np.exp(-np.array(acquisition.echo_time) / 0.08) + 10 * rng.standard_normal((N, 5))
    for noise in (None, np.where(np.arange(N) % 3, 10.0, np.nan)):
        level = NoiseLevel(model, acquisition, MASK)
        for part in (np.arange(0, N, 2), np.arange(1, N, 2)):
            given = None if noise is None else noise[part]
            level.add(part, signals[part], given, None)
        found = level.by_voxel
        for half, size in ((slice(None, N // 2), 20.0), (slice(N // 2, None), 100.0)):
            assert np.median(found[half]) == pytest.approx(size * np.exp(-0.01 / 0.08), rel=0.04)


def test_what_the_model_cannot_follow_is_no_noise():
    """Two components of T2, alike in neighbouring voxels: residuals are several times the noise."""
    acquisition, model, rng = MultiEcho(tuple(0.01 * np.arange(1, 13))), get_model("t2"), np.random.default_rng(0)
    times = np.array(acquisition.echo_time)
    clean = 700 * np.exp(-times / 0.08) + 300 * np.exp(-times / 0.015)
    signals = clean + 5 * rng.standard_normal((N, 12))
    level = NoiseLevel(model, acquisition, MASK)
    level.add(np.arange(N), signals, None, None)
    assert level.snr == pytest.approx(clean.max() / 5, rel=0.04)


def test_transmit_field_is_known_to_the_fit_too():
    """With a wrong flip angle in one half of the brain residuals would be systematic there."""
    acquisition, model, rng = (
        SpoiledGradientEcho((3, 6, 12, 18, 24), (0.02,) * 5),
        get_model("vfa"),
        np.random.default_rng(0),
    )
    field = np.where(np.arange(N) < N // 2, 0.8, 1.2)[:, None]
    theta = np.hstack([np.tile([1000.0, 1.2], (N, 1)), field])
    signals = model.signal(torch.tensor(theta), acquisition).numpy() + rng.standard_normal((N, 5))
    level = NoiseLevel(model, acquisition, MASK)
    level.add(np.arange(N), signals, None, field)
    assert level.snr == pytest.approx(np.median(signals.max(axis=1)), rel=0.05)
