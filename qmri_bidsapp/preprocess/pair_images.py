"""The images of a pair of opposite phase encoding, on one grid and in one unit, at any resolution."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.phase_encoding import PhaseEncoding
from qmri_bidsapp.errors import InputError
from qmri_bidsapp.preprocess.pair_fit import PairFit
from qmri_bidsapp.preprocess.pair_motion import PairMotion
from qmri_bidsapp.preprocess.pyramid import level_factors, pooled, refined
from qmri_bidsapp.preprocess.rigid import head_points

Array = npt.NDArray[np.float32]

#: Motion below this, voxels, counts as none: differences between the images other than motion amount to as much, and
#: volumes are aligned after the correction.
MIN_MOTION = 0.25


class PairImages:
    """Two images on the grid of the first, their phase-encoding axis last, at any resolution."""

    def __init__(
        self,
        up: nib.Nifti1Image,
        down: nib.Nifti1Image,
        encoding: PhaseEncoding,
        readouts: tuple[float, float],
        device: str,
        sign: int,
    ) -> None:
        self.up, self._down = (nib.Nifti1Image(_mean(image), image.affine) for image in (up, down))
        self._axis, self._device = encoding.axis, device
        self.readout = float(np.mean(readouts))
        self._factors = (sign * readouts[0] / self.readout, -sign * readouts[1] / self.readout)
        order = [axis for axis in range(3) if axis != self._axis] + [self._axis]
        zooms = np.linalg.norm(up.affine[:3, :3], axis=0)
        self.spacing = tuple(float(zooms[axis]) for axis in order)
        self.shape = tuple(up.shape[axis] for axis in order)
        self.motion = PairMotion.none(tuple(order), zooms, up.shape[:3])
        self._prepare()

    def _prepare(self) -> None:
        """Bring both images to one grid and one intensity."""
        first = np.asarray(self.up.dataobj)
        second = self.motion.resample(self._down, self.up)
        first, second = (np.moveaxis(data, self._axis, -1) for data in (first, second))
        first, second = _balanced(first, second)
        total = (first + second) / 2
        scale = np.median(total[total > total.mean()])
        self._images = tuple(
            torch.from_numpy(np.ascontiguousarray(data / scale, dtype=np.float32)).to(self._device)
            for data in (first, second)
        )

    @property
    def motion_counts(self) -> bool:
        """Whether the head moved by more than `MIN_MOTION`."""
        distance = self.motion.rigid(self.up.affine).displacement(head_points(self.up))
        return distance > MIN_MOTION * min(self.spacing)

    def move(self, motion: PairMotion) -> None:
        """Bring the second image to the grid of the first with another motion."""
        self.motion = motion
        self._prepare()

    def fit(self, level: int, weight: float) -> PairFit:
        """Return the fit at a resolution, with a weight in voxels of the image."""
        factors = level_factors(self.spacing, level)
        images = [pooled(image, factors) for image in self._images]
        spacing = [step * factor for step, factor in zip(self.spacing, factors, strict=True)]
        return PairFit(images[0], images[1], spacing, self._factors, weight * factors[2] ** 2)

    def refine(self, values: torch.Tensor, level: int, to: int) -> torch.Tensor:
        """Return a displacement at another resolution, in voxels of it."""
        before, after = (level_factors(self.spacing, factor) for factor in (level, to))
        shape = [-(-size // factor) for size, factor in zip(self.shape, after, strict=True)]
        shape[2] += 1
        return refined(values, shape, before, after) * (before[2] / after[2])

    def native(self, values: npt.NDArray[np.generic]) -> npt.NDArray:
        """Return an array in the order of axes of the image."""
        return np.ascontiguousarray(np.moveaxis(values, -1, self._axis))


def _mean(image: nib.Nifti1Image) -> Array:
    data = np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32))
    if data.ndim == 4:
        data = np.median(data, axis=3) if data.shape[3] > 2 else data.mean(axis=3)
    if not (data > 0).any():
        raise InputError("An image of the pair has no signal.")
    return np.asarray(data, dtype=np.float32)


def _balanced(up: Array, down: Array) -> tuple[Array, Array]:
    """Remove factors between the intensities of both images that differ between slices and lines.

    The sum of a column does not depend on the field; slices of both images differ by up to 10 % (order of the slices,
    motion), which would be taken for stretching otherwise.
    """
    sums = [np.clip(image, 0, None).sum(axis=-1, dtype=np.float64) for image in (up, down)]
    total = sums[0].sum() / sums[1].sum()
    ratio = np.full(sums[0].shape, 1 / total)
    for axis in range(2):
        first, second = (values.sum(axis=axis) for values in sums)
        small = 0.05 * (first + second).max()
        ratio = ratio * np.expand_dims((first + small) / (second + small / total), axis)
    half = np.sqrt(ratio)[..., None]
    return np.asarray(up / half, dtype=np.float32), np.asarray(down * half, dtype=np.float32)
