"""Diffusion series: denoising, unringing, alignment of the volumes with their gradient directions."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.core.rice import signal_of_mean
from qmri_bidsapp.images.volumes import make_image
from qmri_bidsapp.preprocess.relaxometry import apply
from qmri_bidsapp.preprocess.rigid import IDENTITY, Rigid, register, too_small

#: MP-PCA needs a patch of this depth, and enough volumes for a spectrum of noise.
MIN_DENOISE_SLICES = 5
MIN_DENOISE_VOLUMES = 20
#: Gibbs ringing is removed along whole lines of k-space: small fields of view have too few.
MIN_UNRING_SIZE = 32


class Denoised(NamedTuple):
    """A series after `denoise`.

    Attributes
    ----------
    image : Nifti1Image
        (x, y, z, n).
    noise_std : ndarray or None
        (x, y, z) standard deviation of the noise of one volume before denoising, in the unit of the image; NaN where
        it was not measured.
    floor_removed : bool
        Whether the noise floor of the magnitudes was removed.
    note : str or None
        Why the step was left out.
    """

    image: nib.Nifti1Image
    noise_std: npt.NDArray[np.float32] | None = None
    floor_removed: bool = False
    note: str | None = None


def denoise(image: nib.Nifti1Image, *, mask: nib.Nifti1Image, skip: Collection[str] = ()) -> Denoised:
    """Remove noise by MP-PCA (Veraart et al. 2016), and the noise floor of the magnitudes.

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z, n), as acquired: any interpolation before would break the noise model.
    mask : Nifti1Image
        Where denoised values are needed; others stay as they are.
    skip : collection of str
        Steps left out, see `config.STEPS`: without ``"denoise"`` the noise is still measured, and the noise floor
        stays too, since its correction holds for denoised magnitudes only.
    """
    if image.shape[2] < MIN_DENOISE_SLICES or image.shape[3] < MIN_DENOISE_VOLUMES:
        note = (
            f"Denoising left out: {image.shape[2]} slices and {image.shape[3]} volumes (needs {MIN_DENOISE_SLICES} "
            f"and {MIN_DENOISE_VOLUMES})."
        )
        return Denoised(image, note=note)
    from dipy.denoise.localpca import mppca

    data = np.asarray(image.dataobj, dtype=np.float32)
    inside = _surroundings(mask)
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        # dipy divides by zero outside the mask, and recommends larger patches, which blur more.
        warnings.filterwarnings("ignore", message="Number of samples")
        # One undefined value would invalidate every patch around it: it is zero there, and undefined in the result.
        denoised, noise_std = mppca(
            np.where(np.isfinite(data), data, 0), mask=inside, patch_radius=2, return_sigma=True
        )
    noise_std = np.asarray(noise_std, dtype=np.float32)
    known = np.where(inside, noise_std, np.float32(np.nan))
    if "denoise" in skip:
        return Denoised(image, known)
    floor_removed = "noise-floor" not in skip
    if floor_removed:
        denoised = remove_noise_floor(denoised, noise_std)
    values = np.where(inside[..., None] & np.isfinite(data), denoised, data).astype(np.float32)
    return Denoised(make_image(values, image), known, floor_removed)


def remove_noise_floor(
    magnitude: npt.NDArray[np.float32], noise_std: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Correct the Rician bias of denoised magnitudes by inverting the mean of the Rice distribution.

    Denoising brings a magnitude near its expectation, which exceeds the signal (Koay and Basser 2006, J Magn Reson
    179:317). Without the correction, powder averages at high b-values come out too high.

    Parameters
    ----------
    magnitude : ndarray
        (x, y, z, n).
    noise_std : ndarray
        (x, y, z) standard deviation of the noise of the real and of the imaginary part.
    """
    corrected, noisy = np.array(magnitude, dtype=np.float32), noise_std > 0
    sigma = noise_std[noisy]
    # Volume by volume, since the inverse is computed in double precision.
    for volume in np.moveaxis(corrected, 3, 0):
        volume[noisy] = signal_of_mean(volume[noisy] / sigma) * sigma
    return corrected


def unring(image: nib.Nifti1Image, *, mask: nib.Nifti1Image, n_threads: int = 1) -> tuple[nib.Nifti1Image, str | None]:
    """Remove Gibbs ringing by local subvoxel shifts (Kellner et al. 2016), slice by slice.

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z, n).
    mask : Nifti1Image
        Slices beyond it stay as they are: the step is slow, and slices do not influence each other.
    n_threads : int

    Returns
    -------
    image : Nifti1Image
        (x, y, z, n).
    note : str or None
        Why the step was left out.
    """
    if min(image.shape[:2]) < MIN_UNRING_SIZE:
        note = f"Unringing left out: {image.shape[0]} x {image.shape[1]} voxels in plane (needs {MIN_UNRING_SIZE})."
        return image, note
    from dipy.denoise.gibbs import gibbs_removal

    data = np.array(image.dataobj, dtype=np.float32)
    slices = np.flatnonzero(_surroundings(mask).any(axis=(0, 1)))
    chosen = data[:, :, slices]
    # The Fourier transform would spread one undefined value over its slice.
    defined = np.isfinite(chosen)
    cleaned = gibbs_removal(np.where(defined, chosen, 0), slice_axis=2, inplace=False, num_processes=n_threads)
    data[:, :, slices] = np.where(defined, cleaned, np.nan)
    return make_image(data, image), None


def _surroundings(mask: nib.Nifti1Image) -> npt.NDArray[np.bool_]:
    """Return the mask dilated by two voxels, which alignment may move into it."""
    from scipy import ndimage

    return np.asarray(ndimage.binary_dilation(np.asarray(mask.dataobj) > 0, iterations=2))


def align(
    image: nib.Nifti1Image,
    b_value: npt.NDArray[np.float64],
    direction: npt.NDArray[np.float64],
) -> tuple[nib.Nifti1Image, npt.NDArray[np.float64], npt.NDArray[np.float64], str]:
    """Align the volumes rigidly and rotate their gradient directions (Leemans and Jones 2009).

    Every volume is registered to the mean of its shell, whose contrast it shares, and that mean to the mean of the
    lowest shell.

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z, n).
    b_value : ndarray
        (n,) s/mm2.
    direction : ndarray
        (n, 3) unit vectors, FSL convention.

    Returns
    -------
    image : Nifti1Image
        (x, y, z, n).
    direction : ndarray
        (n, 3) rotated.
    motion : ndarray
        (n, 6) rotation, radian, and translation, mm.
    note : str
        How many volumes were resampled, or why none was aligned.
    """
    if reason := too_small(image):
        return image, direction, np.zeros((image.shape[3], 6)), f"Alignment left out: {reason}."
    data = np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32))
    volumes = [make_image(data[..., i], image) for i in range(image.shape[3])]
    shells = Diffusion(tuple(b_value), tuple(map(tuple, direction))).shells()
    means = [make_image(data[..., shell].mean(axis=3), image) for shell in shells]
    motions = [IDENTITY] * len(volumes)
    for mean, shell in zip(means, shells, strict=True):
        to_lowest = IDENTITY if mean is means[0] else register(means[0], mean, effort="near")
        for index in shell:
            within = register(mean, volumes[index], effort="quick") if len(shell) > 1 else IDENTITY
            motions[index] = Rigid(within.matrix @ to_lowest.matrix)
    aligned, motion, note = apply(image, volumes, means[0], motions)
    return aligned, rotate_directions(direction, motion, image.affine), motion, note


def rotate_directions(
    direction: npt.NDArray[np.float64], motion: npt.NDArray[np.float64], affine: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Turn gradient directions with the volumes.

    Parameters
    ----------
    direction : ndarray
        (n, 3) unit vectors, FSL convention: voxel axes, x reversed where the affine's determinant is positive.
    motion : ndarray
        (n, 6) rotation, radian, and translation, mm, from the reference to each volume, RAS.
    affine : ndarray
        (4, 4) of the image.
    """
    from scipy.spatial.transform import Rotation

    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.linalg.det(axes) > 0:
        axes = axes @ np.diag([-1.0, 1.0, 1.0])
    # A motion maps reference points to where they were found in the volume: its inverse brings directions back.
    inverse = Rotation.from_euler("xyz", motion[:, :3]).inv()
    rotated: npt.NDArray[np.float64] = inverse.apply(direction @ axes.T) @ np.linalg.inv(axes).T
    return rotated
