"""Noise of images: its distribution, and draws from an explicit generator."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.acquisition import Acquisition

#: Rician: the noise of a magnitude whose real and imaginary parts have Gaussian noise.
NoiseKind = Literal["gaussian", "rician"]


def noise_kind(acquisition: Acquisition, *, floor_removed: bool) -> NoiseKind:
    """Return the distribution of the noise in the images of a protocol.

    Parameters
    ----------
    acquisition : Acquisition
        Signed images have Gaussian noise, magnitudes Rician noise.
    floor_removed : bool
        Whether preprocessing removed the noise floor of the magnitudes; what is left is taken as Gaussian.
    """
    return "gaussian" if acquisition.has_sign or floor_removed else "rician"


def add_gaussian(
    signal: npt.NDArray[np.floating], sigma: float | npt.NDArray[np.floating], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Return the signal with Gaussian noise of standard deviation `sigma`, in the unit of the signal."""
    return signal + sigma * rng.standard_normal(np.shape(signal))


def add_rician(
    signal: npt.NDArray[np.floating],
    sigma: float | npt.NDArray[np.floating],
    rng: np.random.Generator,
    n_coils: float = 1.0,
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
    n_coils : float
        Coils whose magnitudes are combined by the root of their sum of squares.
    """
    real = add_gaussian(signal, sigma, rng)
    if n_coils > 1:
        others: npt.NDArray[np.float64] = rng.chisquare(2 * n_coils - 1, np.shape(signal))
        return np.sqrt(real**2 + sigma**2 * others)
    imaginary: npt.NDArray[np.float64] = sigma * rng.standard_normal(np.shape(signal))
    return np.hypot(real, imaginary)
