"""Relaxometry series: rigid alignment of their images."""

from __future__ import annotations

from collections.abc import Sequence

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
    kept, note = that_count(volumes[reference], motions)
    return resampled(image, kept), np.array([motion.parameters for motion in kept]), note


def resampled(image: nib.Nifti1Image, motions: Sequence[Rigid]) -> nib.Nifti1Image:
    """Return a series whose volumes are moved back; those that did not move, and undefined voxels, stay as they are."""
    data = np.asarray(image.dataobj, dtype=np.float32).copy()
    for index, motion in enumerate(motions):
        if motion is not IDENTITY:
            volume = make_image(np.nan_to_num(data[..., index]), image)
            data[..., index] = np.where(
                np.isfinite(data[..., index]), resample(volume, volume, motion, order=3), np.nan
            )
    return make_image(data, image)


def that_count(reference: nib.Nifti1Image, motions: Sequence[Rigid]) -> tuple[list[Rigid], str]:
    """Return motions without those that are implausible or negligible, and how many were left.

    A volume moved if the root mean square displacement within the head is more than `NEGLIGIBLE` voxels; otherwise its
    motion is zero.
    """
    voxel = float(np.linalg.norm(reference.affine[:3, :3], axis=0).min())
    points = head_points(reference)
    kept: list[Rigid] = []
    refused: list[int] = []
    for index, motion in enumerate(motions):
        displacement = motion.displacement(points)
        is_failure = not motion.is_plausible or displacement > MAX_TRANSLATION
        if is_failure:
            refused.append(index + 1)
        kept.append(IDENTITY if is_failure or displacement <= NEGLIGIBLE * voxel else motion)
    n_moved = sum(motion is not IDENTITY for motion in kept)
    notes = []
    if refused:
        notes.append(f"Registration failed for image {', '.join(map(str, refused))}: left where it is.")
    notes.append(
        f"{n_moved} of {len(motions)} images moved by more than {NEGLIGIBLE:g} voxels (root mean square within the "
        "head) and were resampled."
    )
    return kept, " ".join(notes)
