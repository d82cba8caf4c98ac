"""Volumes are predicted by the others: unbiased, nearly as well as noise allows, and never by themselves."""

import numpy as np
import pytest

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.evaluation.standards import shells
from qmri_bidsapp.preprocess.prediction import LeaveOneOut

PROTOCOL = shells(6, (1000.0, 20), (2500.0, 40))
SIGMA = 30.0


def voxels(n: int = 1500, seed: int = 0) -> np.ndarray:
    """Return signals without noise, (n, n_volumes), of two crossing fibres and free water."""
    rng = np.random.default_rng(seed)
    b, g = np.asarray(PROTOCOL.b_value), np.asarray(PROTOCOL.direction)
    fibres = rng.standard_normal((2, n, 3))
    fibres /= np.linalg.norm(fibres, axis=-1, keepdims=True)
    share = rng.uniform(0, 1, (n, 1))
    signal = np.mean([np.exp(-b * (0.3e-3 + 1.6e-3 * (fibre @ g.T) ** 2)) for fibre in fibres], axis=0)
    return np.asarray(1000 * (share * signal + (1 - share) * np.exp(-b * 1e-3)))


def noisy(signal: np.ndarray) -> np.ndarray:
    return np.asarray(signal + SIGMA * np.random.default_rng(1).standard_normal(signal.shape))


def test_better_than_spherical_harmonics_and_close_to_the_noise():
    truth = voxels()
    values = noisy(truth)
    found = LeaveOneOut.of(values, PROTOCOL)
    error = np.sqrt(np.square(values @ found.matrix.T - truth).mean(axis=0))[6:]
    fit = PROTOCOL.angular_fit()
    own = np.diag(fit)
    harmonics = np.sqrt(np.square((values @ fit - own * values) / (1 - own) - truth).mean(axis=0))[6:]
    assert error.mean() < 0.75 * harmonics.mean()
    assert error.mean() < SIGMA
    assert found.noise_std == pytest.approx(SIGMA, rel=0.1)


def test_no_volume_predicts_itself():
    values = noisy(voxels())
    found = LeaveOneOut.of(values, PROTOCOL)
    np.testing.assert_array_equal(np.diag(found.matrix), 0)
    # A constant of a shell is predicted exactly, whatever the other shells.
    constant = np.where(np.asarray(PROTOCOL.b_value) == 1000, 7.0, 3.0)
    np.testing.assert_allclose(found.matrix @ constant, constant, rtol=1e-9)


def test_a_lone_volume_is_not_predicted():
    one = Diffusion((0.0, *PROTOCOL.b_value[6:]), ((0.0, 0.0, 0.0), *PROTOCOL.direction[6:]))
    found = LeaveOneOut.of(noisy(voxels())[:, 5:], one)
    assert found.is_predicted.tolist() == [False] + [True] * 60
    assert not found.matrix[0].any()
    assert np.isfinite(found.matrix).all()


def test_a_series_without_signal_has_finite_predictions():
    found = LeaveOneOut.of(np.zeros((100, 66)), PROTOCOL)
    assert np.isfinite(found.matrix).all()
