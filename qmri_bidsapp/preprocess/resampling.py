"""One interpolation of an EPI volume for all that moves or distorts it."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates

from qmri_bidsapp.preprocess.rigid import Rigid

#: Steps of the fixed point that inverts a displacement.
N_INVERSIONS = 30
#: Signal does not pile up further than this in a simulated image.
MIN_STRETCHING = 0.1


def resample_volume(
    data: npt.NDArray[np.floating],
    matrix: npt.NDArray[np.floating],
    displacement: npt.NDArray[np.floating],
    axis: int,
) -> npt.NDArray[np.float32]:
    """Return a volume as it were without motion and distortion, by cubic splines.

    Reference voxel -> `matrix` -> plus `displacement` -> value of the volume, times the stretching, so that signal is
    kept. Displacements of several causes (susceptibility, eddy currents) are added before.

    Parameters
    ----------
    data : ndarray
        (x, y, z) volume as acquired.
    matrix : ndarray
        (4, 4) rigid motion, from voxels of the reference to voxels of the volume. It does not change intensities.
    displacement : ndarray
        (x, y, z) of the reference, voxels of the volume along its phase-encoding axis, see `PhaseEncoding`.
    axis : int
        Phase-encoding axis of the volume.

    Returns
    -------
    ndarray
        (x, y, z) of the reference, float32. NaN beyond the volume (further than half a voxel from its edge), where the
        volume is not finite, where the displacement is not, and where it folds (stretching not positive).
    """
    stretching = stretching_of(displacement, matrix, axis)
    place = np.einsum("ij,j...->i...", matrix[:3, :3], np.indices(displacement.shape, dtype=np.float64))
    place += matrix[:3, 3, None, None, None]
    place[axis] += displacement
    known = np.isfinite(place).all(axis=0) & (stretching > 0)
    place[:, ~known] = 0.0
    finite = np.isfinite(data)
    source = data if finite.all() else np.where(finite, data, 0)
    values = map_coordinates(np.asarray(source, dtype=np.float32), place, order=3, mode="nearest")
    inside = map_coordinates(finite.astype(np.uint8), place, order=0, mode="grid-constant")
    return np.where(known & (inside > 0), values * stretching, np.nan).astype(np.float32)


def distort_volume(
    data: npt.NDArray[np.floating], displacement: npt.NDArray[np.floating], axis: int
) -> npt.NDArray[np.float64]:
    """Return the image that a scanner shows of an undistorted volume: the reverse of `resample_volume`.

    Where several places are displaced to the same one, only one of them is seen.

    Parameters
    ----------
    data, displacement : ndarray
        (x, y, z) both; displacement in voxels.
    axis : int
        Phase-encoding axis.
    """
    place = np.indices(data.shape, dtype=np.float64)
    own = place[axis].copy()
    for _ in range(N_INVERSIONS):
        place[axis] = own - map_coordinates(np.asarray(displacement, dtype=np.float64), place, order=1, mode="nearest")
    stretching = map_coordinates(stretching_of(displacement, np.eye(4), axis), place, order=1, mode="nearest")
    values = map_coordinates(np.asarray(data, dtype=np.float64), place, order=3, mode="constant")
    return np.asarray(values / np.clip(stretching, MIN_STRETCHING, None))


def voxel_matrix(moving: nib.Nifti1Image, reference: nib.Nifti1Image, motion: Rigid) -> npt.NDArray[np.float64]:
    """Return the matrix (4, 4) from voxels of a reference to those of a moving image, for a motion in RAS mm."""
    return np.asarray(np.linalg.inv(moving.affine) @ motion.matrix @ reference.affine)


def stretching_of(
    displacement: npt.NDArray[np.floating], matrix: npt.NDArray[np.floating], axis: int
) -> npt.NDArray[np.float64]:
    """Return by how much a displacement stretches the image along the phase-encoding axis: its Jacobian.

    Parameters
    ----------
    displacement, matrix, axis
        As for `resample_volume`.

    Returns
    -------
    ndarray
        (x, y, z): 1 where nothing is stretched, below 1 where signal piles up, negative where the image folds.
    """
    # The axis of the volume, in voxels of the reference.
    direction = np.linalg.inv(matrix[:3, :3])[:, axis]
    stretching = np.ones(displacement.shape)
    for along in range(3):
        # A component of rounding errors does not need the derivative.
        if abs(direction[along]) > 1e-9 and displacement.shape[along] > 1:
            stretching += direction[along] * np.gradient(displacement.astype(np.float64), axis=along)
    return stretching
