"""A simulated head with a known field, as two EPIs of opposite phase encoding show it."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter
from scipy.spatial.transform import Rotation

from qmri_bidsapp.core.phase_encoding import PhaseEncoding
from qmri_bidsapp.preprocess.resampling import distort_volume

#: 4 mm voxels.
SHAPE, ZOOM = (46, 54, 32), 4.0
#: SNR of the images.
SNR = 40.0


@dataclass(frozen=True)
class Pair:
    """Two images, and what is true of them.

    Attributes
    ----------
    up, down : Nifti1Image
        (x, y, z).
    encodings : tuple of PhaseEncoding
        ``j`` and ``j-``.
    head : ndarray
        (x, y, z) undistorted image.
    mask : ndarray
        (x, y, z) bool.
    field : ndarray
        (x, y, z) Hz.
    """

    up: nib.Nifti1Image
    down: nib.Nifti1Image
    encodings: tuple[PhaseEncoding, PhaseEncoding]
    head: np.ndarray
    mask: np.ndarray
    field: np.ndarray


def simulated_pair(
    *,
    readouts: tuple[float, float] = (0.05, 0.05),
    peak: float = 80.0,
    rotation: tuple[float, float, float] = (0.0, 0.0, 0.0),
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
    seed: int = 1,
) -> Pair:
    """Simulate a pair.

    Parameters
    ----------
    readouts : tuple of float
        s, of each image.
    peak : float
        Of the field above the nose, Hz; the ears have half of it.
    rotation, shift : tuple of float
        Motion of the head before the second image: degrees about each axis, and mm. The field moves with it.
    """
    rng = np.random.default_rng(seed)
    place = (np.indices(SHAPE) - (np.array(SHAPE)[:, None, None, None] - 1) / 2) * ZOOM
    x, y, z = place
    mask = (x / 72) ** 2 + (y / 90) ** 2 + (z / 55) ** 2 < 1
    texture = gaussian_filter(rng.standard_normal(SHAPE), 1.2)
    head = gaussian_filter(np.where(mask, 100 * (1 + 0.3 * texture / texture.std()), 0.0), 0.6).clip(0)
    field = 8 * y / 90 - 5 * z / 55
    for centre, amplitude, width in (
        ((0, 60, -20), peak, 20),
        ((45, -5, -25), peak / 2, 14),
        ((-45, -5, -25), peak / 2, 14),
    ):
        distance = sum((along - middle) ** 2 for along, middle in zip(place, centre, strict=True))
        field = field + amplitude * np.exp(-distance / (2 * width**2))
    encodings = (PhaseEncoding(1, 1, readouts[0]), PhaseEncoding(1, -1, readouts[1]))
    matrix = Rotation.from_euler("xyz", rotation, degrees=True).as_matrix()
    offset = (np.array(SHAPE) - 1) / 2 - matrix @ (np.array(SHAPE) - 1) / 2 + np.array(shift) / ZOOM
    moved = [affine_transform(values, matrix, offset, order=3, mode="nearest") for values in (head, field)]
    images = []
    for encoding, (object_, hertz) in zip(encodings, ((head, field), moved), strict=True):
        seen = distort_volume(object_, encoding.displacement(hertz), 1)
        noisy = np.abs(seen + rng.standard_normal(SHAPE) * 100 / SNR)
        images.append(nib.Nifti1Image(noisy.astype(np.float32), np.diag([ZOOM, ZOOM, ZOOM, 1.0])))
    return Pair(images[0], images[1], encodings, head, mask, field)


def share_removed(pair: Pair, field: np.ndarray, *, least: float = 2.0) -> float:
    """Return the median share of the displacement that a field explains, where it exceeds `least` mm in the head."""
    to_mm = ZOOM * max(float(encoding.readout or 1) for encoding in pair.encodings)
    far = pair.mask & (np.abs(pair.field) * to_mm > least)
    return float(np.median(1 - np.abs(field - pair.field)[far] / np.abs(pair.field)[far]))
