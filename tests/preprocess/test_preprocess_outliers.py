"""Slices that lost signal are found at the stated rate of false alarms."""

import numpy as np

from qmri_bidsapp.preprocess.outliers import MIN_VOXELS, find_outliers, slice_difference

N_SLICES, N = 50, 60
SHELLS = [np.arange(8), np.arange(8, 60)]


def scores(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return differences of slices of varying size, with a systematic error of each slice, and their level."""
    rng = np.random.default_rng(seed)
    count = np.repeat(rng.integers(100, 2000, (N_SLICES, 1)), N, axis=1)
    systematic = rng.normal(0, 5, (N_SLICES, 1))
    difference = systematic + 30 / np.sqrt(count) * rng.standard_normal((N_SLICES, N))
    return difference, np.full((N_SLICES, N), 50.0), count


def test_false_alarms_are_rare():
    found = [find_outliers(*scores(seed), SHELLS).slices for seed in range(10)]
    assert np.mean(found) < 1e-3


def test_lost_signal_is_found_and_gained_signal_is_not():
    difference, level, count = scores(0)
    lost = [(3, 2), (17, 30), (40, 59)]
    for place in lost:
        difference[place] -= 15.0
    difference[25, 20] += 15.0
    found = find_outliers(difference, level, count, SHELLS)
    assert all(found.slices[place] for place in lost)
    assert found.slices.sum() <= len(lost) + 2
    assert found.z[25, 20] > 4
    assert not found.slices[25, 20]


def test_small_slices_and_lone_volumes_are_not_judged():
    volume, predicted = np.full((10, 10, 3), 50.0), np.full((10, 10, 3), 60.0)
    predicted[2:, :, 1] = np.nan
    difference, level, count = slice_difference(volume, predicted)
    np.testing.assert_array_equal(count, [100, 20, 100])
    assert count[1] < MIN_VOXELS
    np.testing.assert_array_equal(difference, [-10, np.nan, -10])
    np.testing.assert_array_equal(level, [60, np.nan, 60])
    found = find_outliers(
        np.full((3, 3), -1000.0), np.full((3, 3), 2000.0), np.full((3, 3), 500), [np.array([0]), np.array([1, 2])]
    )
    assert not found.slices.any()
    assert np.isnan(found.z[:, 0]).all()


def test_a_small_loss_is_none():
    """Where noise is low, differences of interpolation are significant."""
    rng = np.random.default_rng(0)
    difference = 0.01 * rng.standard_normal((N_SLICES, N))
    difference[[5, 9], 30] -= [2.0, 3.0]
    found = find_outliers(difference, np.full((N_SLICES, N), 50.0), np.full((N_SLICES, N), 400), SHELLS)
    assert np.argwhere(found.slices).tolist() == [[9, 30]]
