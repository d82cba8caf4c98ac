"""Noise of magnitude images, drawn from an explicit generator."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def add_gaussian(
    signal: npt.NDArray[np.floating], sigma: float | npt.NDArray[np.floating], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Return the signal with Gaussian noise of standard deviation `sigma`, in the unit of the signal."""
    return signal + sigma * rng.standard_normal(np.shape(signal))


def add_rician(
    signal: npt.NDArray[np.floating], sigma: float | npt.NDArray[np.floating], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Return the magnitude of the signal with complex Gaussian noise.

    Parameters
    ----------
    signal : ndarray
        Noise-free magnitudes.
    sigma : float or ndarray
        Standard deviation of the real and of the imaginary part (Gudbjartsson and Patz 1995, eq. 1), in the
        unit of the signal.
    rng : numpy.random.Generator
    """
    real = add_gaussian(signal, sigma, rng)
    imaginary: npt.NDArray[np.float64] = sigma * rng.standard_normal(np.shape(signal))
    return np.hypot(real, imaginary)
