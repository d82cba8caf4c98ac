"""One interpolation: forward and back in a field of known form, mass, motion, edges."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from qmri_bidsapp.preprocess.resampling import resample_volume, stretching_of

SHAPE = (24, 28, 20)


def smooth_image(seed: int = 1) -> np.ndarray:
    """An image that a grid represents, zero at its edges."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(SHAPE), 2.0)
    window = np.ones(SHAPE)
    for axis, size in enumerate(SHAPE):
        shape = [1, 1, 1]
        shape[axis] = size
        window *= (np.sin(np.pi * np.arange(size) / (size - 1)) ** 2).reshape(shape)
    return (1 + noise / noise.std() / 4) * window * 100


def bump(amplitude: float, width: float = 5.0) -> np.ndarray:
    """A displacement: a Gaussian about the centre."""
    centred = np.indices(SHAPE) - (np.array(SHAPE)[:, None, None, None] - 1) / 2
    return amplitude * np.exp(-np.square(centred).sum(axis=0) / (2 * width**2))


def distorted(image: np.ndarray, displacement: np.ndarray, axis: int) -> np.ndarray:
    """What a scanner shows of an image: each point moved, by inversion line by line on a fine grid."""
    moved = np.moveaxis(image, axis, -1)
    shift = np.moveaxis(displacement, axis, -1)
    y = np.arange(moved.shape[-1], dtype=float)
    result = np.zeros_like(moved)
    for index in np.ndindex(moved.shape[:-1]):
        back = np.interp(y, y + shift[index], y)
        values = np.interp(back, y, moved[index])
        result[index] = values * np.gradient(back)
    return np.moveaxis(result, -1, axis)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("amplitude", [2.5, -2.5])
def test_a_known_distortion_is_undone(axis: int, amplitude: float) -> None:
    image, displacement = smooth_image(), bump(amplitude)
    seen = distorted(image, displacement, axis)
    restored = resample_volume(seen, np.eye(4), displacement, axis)
    inner = (slice(4, -4),) * 3
    before = np.abs(seen - image)[inner].mean()
    after = np.abs(restored - image)[inner].mean()
    assert after < 0.1 * before
    wrong = resample_volume(seen, np.eye(4), -displacement, axis)
    assert np.abs(wrong - image)[inner].mean() > before


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_signal_is_kept(axis: int) -> None:
    image, displacement = smooth_image(), bump(3.0)
    restored = resample_volume(image, np.eye(4), displacement, axis)
    np.testing.assert_allclose(np.nansum(restored), image.sum(), rtol=1e-3)


def test_a_uniform_image_shows_the_stretching() -> None:
    displacement = 0.2 * np.indices(SHAPE)[1] - 2.0
    restored = resample_volume(np.ones(SHAPE), np.eye(4), displacement, 1)
    np.testing.assert_allclose(restored[np.isfinite(restored)], 1.2, rtol=1e-5)
    np.testing.assert_allclose(stretching_of(displacement, np.eye(4), 0), 1.0)


def test_motion_and_displacement_are_composed() -> None:
    # A rotation by 90 degrees about the third axis: the second axis of the volume is the first of the reference.
    volume = np.random.default_rng(1).standard_normal((12, 12, 6))
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    matrix[0, 3] = 11.0
    turned = resample_volume(volume, matrix, np.zeros((12, 12, 6)), 1)
    np.testing.assert_allclose(turned, np.rot90(volume, -1, axes=(0, 1)), atol=1e-4)
    ramp = np.broadcast_to(0.1 * np.arange(12.0)[:, None, None], (12, 12, 6))
    np.testing.assert_allclose(stretching_of(ramp, matrix, 1), 1.1)
    np.testing.assert_allclose(stretching_of(ramp, matrix, 0), 1.0, atol=1e-12)


def test_nothing_to_do_leaves_an_image_as_it_is() -> None:
    image = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    np.testing.assert_allclose(resample_volume(image, np.eye(4), np.zeros(SHAPE), 1), image, atol=1e-5)


def test_values_that_are_not_known_are_nan() -> None:
    image = np.ones(SHAPE)
    shift = np.full(SHAPE, 3.0)
    beyond = resample_volume(image, np.eye(4), shift, 1)
    assert np.isnan(beyond[:, -3:]).all()
    assert np.isfinite(beyond[:, :-3]).all()
    folding = -1.5 * np.indices(SHAPE)[1].astype(float) + 40
    assert np.isnan(resample_volume(image, np.eye(4), folding, 1)).all()
    image[4, 5, 6] = np.nan
    hole = resample_volume(image, np.eye(4), np.zeros(SHAPE), 1)
    assert np.isnan(hole).sum() == 1
    shift[1, 2, 3] = np.nan
    assert np.isnan(resample_volume(np.ones(SHAPE), np.eye(4), shift, 0)[1, 2, 3])
