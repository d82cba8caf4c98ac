"""Ringing is found where k-space was truncated, and nowhere else."""

import numpy as np
import pytest

from qmri_bidsapp.core.noise import add_rician
from qmri_bidsapp.preprocess.ringing import alternation, find_ringing

FINE, FACTOR = (240, 240, 240), 3
SIZE = (2.4, 2.4, 2.4)


@pytest.fixture(scope="module")
def objects():
    """Return ellipsoids of several intensities, on a fine grid."""
    rng = np.random.default_rng(0)
    place = np.indices(FINE, dtype=np.float32)
    image = np.zeros(FINE, np.float32)
    for _ in range(25):
        centre, radius = rng.uniform(70, 170, 3), rng.uniform(20, 60, 3)
        inside = sum(((place[i] - centre[i]) / radius[i]) ** 2 for i in range(3)) < 1
        image[inside] = rng.uniform(200, 1000)
    return image


def average(image: np.ndarray, axis: int) -> np.ndarray:
    """Return the means of blocks of voxels along an axis."""
    shape = list(image.shape)
    shape[axis : axis + 1] = [shape[axis] // FACTOR, FACTOR]
    return image.reshape(shape).mean(axis=axis + 1)


def truncate(image: np.ndarray, axis: int) -> np.ndarray:
    """Return what is left of an image of which the centre of k-space was acquired along an axis."""
    n = image.shape[axis]
    spectrum = np.fft.fftshift(np.fft.fft(image, axis=axis), axes=axis)
    kept = np.take(spectrum, np.arange(n // 2 - n // FACTOR // 2, n // 2 + n // FACTOR // 2), axis=axis)
    return np.fft.ifft(np.fft.ifftshift(kept, axes=axis), axis=axis) / FACTOR


def with_noise(image: np.ndarray) -> np.ndarray:
    return add_rician(np.abs(image), 8.0, np.random.default_rng(1))


def test_truncated_within_slices(objects):
    rings, reason = find_ringing(with_noise(truncate(truncate(average(objects, 2), 0), 1)), SIZE)
    assert rings
    assert "exceeds that across slices" in reason


def test_averaged_over_voxels(objects):
    rings, reason = find_ringing(with_noise(average(average(average(objects, 2), 1), 0)), SIZE)
    assert not rings
    assert "no ringing was found" in reason


def test_an_ideal_step_counts_as_one():
    line = np.zeros(720, np.float32)
    line[180:541] = 1000
    image = np.tile(np.real(truncate(line, 0)), (40, 40, 1))
    assert alternation(image, 2) == pytest.approx(1, abs=0.15)


def test_what_cannot_be_told(objects):
    coarse = average(average(average(objects, 2), 1), 0)
    assert find_ringing(coarse, (2.4, 2.4, 5.0)) == (False, "slices are too thick to tell ringing from anatomy")
    assert find_ringing(coarse[:, :, :3], SIZE)[1] == "there are too few edges to tell whether the images ring"
