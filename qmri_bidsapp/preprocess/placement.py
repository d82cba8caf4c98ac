"""Where the values of corrected volumes lie in the volumes as acquired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates

from qmri_bidsapp.images.volumes import make_image
from qmri_bidsapp.preprocess.resampling import resample_volume, stretching_of

#: Steps that invert a displacement, and the smallest stretching that intensities are divided by.
N_INVERSIONS, MIN_STRETCHING = 6, 0.2


@dataclass(frozen=True)
class Placement:
    """Place of one volume.

    Attributes
    ----------
    matrix : ndarray
        (4, 4) from voxels of the reference to voxels of the volume.
    displacement : ndarray or None
        (x, y, z) of the reference, voxels of the volume along `axis`; None without distortion.
    axis : int
        Phase-encoding axis.
    """

    matrix: npt.NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    displacement: npt.NDArray[np.floating] | None = None
    axis: int = 1

    @property
    def is_identity(self) -> bool:
        """Whether the volume stays as it is."""
        return self.displacement is None and bool(np.array_equal(self.matrix, np.eye(4)))

    def resample(self, volume: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Return a volume (x, y, z) at the places of the reference, see `resampling.resample_volume`."""
        if self.is_identity:
            return np.asarray(volume, dtype=np.float32)
        still = np.zeros(volume.shape, dtype=np.float32)
        return resample_volume(
            volume, self.matrix, still if self.displacement is None else self.displacement, self.axis
        )

    def as_acquired(self, volume: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Return a volume (x, y, z) of the reference as it would have been acquired, by cubic splines; zero beyond."""
        back = np.linalg.inv(self.matrix)
        place = np.indices(volume.shape, dtype=np.float64)
        shift = np.zeros(volume.shape)
        stretching = 1.0
        for _ in range(N_INVERSIONS if self.displacement is not None else 1):
            moved = place.copy()
            moved[self.axis] -= shift
            source = np.einsum("ij,j...->i...", back[:3, :3], moved) + back[:3, 3, None, None, None]
            if self.displacement is not None:
                shift = map_coordinates(self.displacement, source, order=1, mode="nearest")
        if self.displacement is not None:
            local = stretching_of(self.displacement, self.matrix, self.axis)
            stretching = np.maximum(map_coordinates(local, source, order=1, mode="nearest"), MIN_STRETCHING)
        values = map_coordinates(np.nan_to_num(volume).astype(np.float32), source, order=3, mode="constant")
        return np.asarray(values / stretching, dtype=np.float32)


def interpolation_errors(image: nib.Nifti1Image, places: Sequence[Placement]) -> npt.NDArray[np.float32]:
    """Return what one more acquisition and correction changes in a corrected series, (x, y, z, n).

    The volumes are brought to where they were acquired, and back. What they lose on this way, most at edges, is a part
    of what they lost on the first one: detail of the size of a voxel is gone already.
    """
    data = np.asarray(image.dataobj, dtype=np.float32)
    errors = np.zeros_like(data)
    for number, place in enumerate(places):
        if not place.is_identity:
            again = place.resample(place.as_acquired(data[..., number]))
            errors[..., number] = np.nan_to_num(again - data[..., number])
    return errors


def resample_series(image: nib.Nifti1Image, places: Sequence[Placement]) -> nib.Nifti1Image:
    """Return a series (x, y, z, n) whose volumes are resampled; the same image if all stay as they are."""
    if all(place.is_identity for place in places):
        return image
    data = np.array(image.dataobj, dtype=np.float32)
    for number, place in enumerate(places):
        data[..., number] = place.resample(data[..., number])
    return make_image(data, image)


def resample_noise(image: nib.Nifti1Image, places: Sequence[Placement]) -> nib.Nifti1Image:
    """Return the standard deviation of the noise, (x, y, z), of a resampled series: root mean square over its volumes.

    It is changed by the stretching, as the signal is. Interpolation lowers it further, which errors of a replicate
    show.
    """
    if all(place.is_identity for place in places):
        return image
    noise = np.asarray(image.dataobj, dtype=np.float32)
    square = np.zeros(noise.shape)
    for place in places:
        square += np.square(np.maximum(place.resample(noise), 0))
    return make_image(np.sqrt(square / len(places)).astype(np.float32), image)
