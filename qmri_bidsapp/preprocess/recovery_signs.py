"""Check of the signs of an inversion recovery: an image of the wrong sign fits another recovery than its magnitude."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Voxels compared: more do not change the shares.
MAX_VOXELS = 5000
#: T1, s, on which recoveries are compared.
T1_GRID = np.geomspace(0.05, 6.0, 60)
#: Inversion factors of a recovery.
FACTORS = (0.5, 3.0)
#: The magnitude fits other signs better where its sum of squares is below this share of that of the signed signal.
BETTER = 0.2


def opposite_signs(signed: npt.NDArray[np.float32], inversion_time: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return, for each image, the share of its energy in voxels whose magnitude asks for the opposite sign.

    A recovery A (1 - B exp(-TI / T1)) crosses zero once. To the magnitude of each voxel it is fitted with the null
    before, between and behind the images, and to the signed signal as it is. A voxel counts where one of the first fits
    much better (`BETTER`) with another sign of the image; near the null, where a sign means little, it has no energy.

    Parameters
    ----------
    signed : ndarray
        (x, y, z, n) by ascending inversion time.
    inversion_time : ndarray
        (n,) s.

    Returns
    -------
    ndarray
        (n,) from 0 to 1; zeros with fewer than four images, which any signs fit.
    """
    n_images = len(inversion_time)
    voxels = signed.reshape(-1, n_images).astype(np.float64)
    energy = np.square(voxels).sum(axis=1)
    # Background is noise, whose signs mean nothing.
    voxels = voxels[energy > 0.5 * energy.mean()]
    if n_images < 4 or not len(voxels):
        return np.zeros(n_images)
    voxels = voxels[:: -(-len(voxels) // MAX_VOXELS)]
    patterns = np.where(np.arange(n_images) < np.arange(n_images + 1)[:, None], -1.0, 1.0)
    misfits = np.stack([_misfit(np.abs(voxels) * pattern, inversion_time) for pattern in patterns], axis=1)
    best = misfits.argmin(axis=1)
    better = misfits.min(axis=1) < BETTER * _misfit(voxels, inversion_time)
    differs = (np.sign(voxels) != patterns[best]) & better[:, None]
    share: npt.NDArray[np.float64] = (differs * np.square(voxels)).sum(axis=0) / np.square(voxels).sum(axis=0)
    return share


def _misfit(signals: npt.NDArray[np.float64], inversion_time: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the least sum of squares, (n_voxels,), of recoveries fitted to signals, (n_voxels, n)."""
    least = np.square(signals).sum(axis=1)
    for t1 in T1_GRID:
        basis = np.stack([np.ones_like(inversion_time), -np.exp(-inversion_time / t1)], axis=1)
        coefficients = signals @ np.linalg.pinv(basis).T
        residual = np.square(signals - coefficients @ basis.T).sum(axis=1)
        amplitude, product = coefficients.T
        allowed = (amplitude > 0) & (product >= FACTORS[0] * amplitude) & (product <= FACTORS[1] * amplitude)
        least = np.where(allowed, np.minimum(least, residual), least)
    return least
