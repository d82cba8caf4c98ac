"""Drift of the signal is found where it is and not where it is not."""

import numpy as np
import pytest

from qmri_bidsapp.preprocess.drift import estimate_drift

N_VOXELS, N_VOLUMES = 300, 81
INDEX = np.arange(0, N_VOLUMES, 10)


def volumes(factor: np.ndarray, seed: int, spread: float = 0.003) -> np.ndarray:
    """Return volumes at b = 0 whose signal varies by pulsation, a volume as a whole, and by noise."""
    rng = np.random.default_rng(seed)
    pulsation = 1 + spread * rng.standard_normal(len(factor))
    return rng.uniform(200, 900, (N_VOXELS, 1)) * factor * pulsation + 20 * rng.standard_normal((N_VOXELS, len(factor)))


@pytest.mark.parametrize("shape", ["linear", "quadratic"])
def test_drift_is_recovered(shape):
    place = np.arange(N_VOLUMES) / (N_VOLUMES - 1)
    true = 1 - 0.05 * place if shape == "linear" else 1 - 0.16 * place + 0.1 * place**2
    found = estimate_drift(volumes(true[INDEX], 1), INDEX, N_VOLUMES)
    assert found.is_corrected
    assert shape in found.note
    np.testing.assert_allclose(found.factor, true, atol=0.006)


def test_a_stable_series_is_left_alone():
    """At a level of 1 % for either degree, at most 2 % of stable series are corrected."""
    found = [estimate_drift(volumes(np.ones(len(INDEX)), seed), INDEX, N_VOLUMES) for seed in range(200)]
    assert sum(drift.is_corrected for drift in found) <= 10
    assert "No significant drift" in found[0].note
    same = estimate_drift(np.repeat(volumes(np.ones(1), 0), len(INDEX), axis=1), INDEX, N_VOLUMES)
    assert not same.is_corrected


@pytest.mark.parametrize(
    ("index", "reason"), [(np.arange(6), "span 6 of 81 (needs 50%)"), (np.array([0, 40, 80]), "3 volumes at b = 0")]
)
def test_volumes_that_do_not_determine_drift(index, reason):
    found = estimate_drift(volumes(np.linspace(1, 0.9, len(index)), 2), index, N_VOLUMES)
    assert not found.is_corrected
    assert reason in found.note
