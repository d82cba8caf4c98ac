"""Images of which the centre of k-space was acquired, beside what they should show."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def ellipses(size: int, n_slices: int, *, texture: float = 0.1, seed: int = 0) -> Array:
    """Return slices of 25 overlapping ellipses of several intensities, (size, size, slice).

    Parameters
    ----------
    size, n_slices : int
    texture : float
        Standard deviation of smooth variation, relative to the intensity.
    seed : int
    """
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    place = np.indices((size, size)) / size
    slices = []
    for _ in range(n_slices):
        image = np.zeros((size, size))
        for _ in range(25):
            centre, radius, angle = rng.uniform(0.3, 0.7, 2), rng.uniform(0.05, 0.25, 2), rng.uniform(0, np.pi)
            x, y = place - centre[:, None, None]
            along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
            image[(along / radius[0]) ** 2 + (across / radius[1]) ** 2 < 1] = rng.uniform(200, 1000)
        variation = gaussian_filter(rng.standard_normal((size, size)), size / 40, mode="wrap")
        slices.append(image * (1 + texture * variation / variation.std()))
    return np.stack(slices, axis=2)


def averaged(image: Array, factor: int) -> Array:
    """Return the means of blocks of voxels along the first two axes: what the acquired image should show."""
    for axis in (0, 1):
        shape = list(image.shape)
        shape[axis : axis + 1] = [shape[axis] // factor, factor]
        image = image.reshape(shape).mean(axis=axis + 1)
    return image


def truncated(image: Array, factor: int, *, partial_fourier: float = 1.0) -> npt.NDArray[np.complex128]:
    """Return what the centre of k-space gives on the grid of `averaged`.

    Parameters
    ----------
    image : ndarray
        (x, y, ...) real or complex; lengths are multiples of twice the factor.
    factor : int
        Length of a voxel of the result.
    partial_fourier : float
        Acquired part of k-space along y; the rest is filled with zeros.
    """
    result = np.asarray(image, dtype=complex)
    for axis in (0, 1):
        n = image.shape[axis]
        frequency = np.rint(np.fft.fftfreq(n // factor) * (n // factor)).astype(int)
        # Voxels of the result begin where blocks of voxels begin.
        weight = np.exp(1j * np.pi * frequency * (factor - 1) / n) / factor
        if axis == 1:
            weight[frequency >= (partial_fourier - 0.5) * (n // factor)] = 0
        shape = [1] * image.ndim
        shape[axis] = -1
        spectrum = np.take(np.fft.fft(result, axis=axis), frequency, axis=axis)
        result = np.fft.ifft(spectrum * weight.reshape(shape), axis=axis)
    return result
