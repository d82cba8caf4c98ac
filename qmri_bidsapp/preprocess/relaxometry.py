"""Relaxometry series: rigid alignment of their images."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import numpy.typing as npt

from qmri_bidsapp.images.volumes import make_image
from qmri_bidsapp.preprocess.rigid import (
    IDENTITY,
    MAX_TRANSLATION,
    Rigid,
    head_points,
    register,
    resample,
    too_small,
)

#: Motion below this fraction of a voxel is not corrected: interpolation would blur more than alignment gains.
NEGLIGIBLE = 0.2


def align(image: nib.Nifti1Image) -> tuple[nib.Nifti1Image, npt.NDArray[np.float64], str]:
    """Align the images of a series with its brightest one, by mutual information.

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z, n).

    Returns
    -------
    image : Nifti1Image
        (x, y, z, n); an image that hardly moved is left as it is.
    motion : ndarray
        (n, 6) rotation, radian, and translation, mm, of each image against the reference.
    note : str
        How many images were resampled, or why none was aligned.
    """
    n_images = image.shape[3]
    if reason := too_small(image):
        return image, np.zeros((n_images, 6)), f"Alignment left out: {reason}."
    data = np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32))
    reference = int(np.argmax(data.mean(axis=(0, 1, 2))))
    volumes = [make_image(data[..., i], image) for i in range(n_images)]
    motions = [
        IDENTITY if i == reference else register(volumes[reference], volumes[i], effort="near") for i in range(n_images)
    ]
    return apply(image, volumes, volumes[reference], motions)


def apply(
    image: nib.Nifti1Image, volumes: list[nib.Nifti1Image], reference: nib.Nifti1Image, motions: list[Rigid]
) -> tuple[nib.Nifti1Image, npt.NDArray[np.float64], str]:
    """Resample the volumes that moved; implausible motions are refused.

    A volume moved if the root mean square displacement within the head is more than `NEGLIGIBLE` voxels; otherwise its
    motion is zero.

    Returns
    -------
    image, motion, note
        As of `align`.
    """
    data = np.asarray(image.dataobj, dtype=np.float32).copy()
    voxel = float(np.linalg.norm(image.affine[:3, :3], axis=0).min())
    points = head_points(reference)
    kept: list[Rigid] = []
    refused: list[int] = []
    n_resampled = 0
    for index, (volume, motion) in enumerate(zip(volumes, motions, strict=True)):
        displacement = motion.displacement(points)
        if not motion.is_plausible or displacement > MAX_TRANSLATION:
            refused.append(index + 1)
            motion = IDENTITY
        elif displacement <= NEGLIGIBLE * voxel:
            motion = IDENTITY
        else:
            defined = np.isfinite(data[..., index])
            data[..., index] = np.where(defined, resample(volume, reference, motion, order=3), np.nan)
            n_resampled += 1
        kept.append(motion)
    notes = []
    if refused:
        notes.append(f"Registration failed for image {', '.join(map(str, refused))}: left where it is.")
    notes.append(
        f"{n_resampled} of {len(volumes)} images moved by more than {NEGLIGIBLE:g} voxels (root mean square within the "
        "head) and were resampled."
    )
    return make_image(data, image), np.array([motion.parameters for motion in kept]), " ".join(notes)
