"""Minor faults of images, as happen in practice, beside those of single voxels (`variations`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.evaluation.flags.variations import Variation, variations_of, weighted
from qmri_bidsapp.models.base import SignalModel

Array = npt.NDArray[np.float64]
#: Takes a series (x, y, z, n), its protocol and a generator, and returns the changed series.
Change = Callable[[Array, Acquisition, np.random.Generator], Array]

#: Share of slices that lost signal, and the part of it that is left.
DROPPED, LEFT = 0.01, 0.3
#: Part of the signal in a volume whose receiver gain differs.
GAIN = 0.7
#: Ghost half a field of view away, relative to the image.
GHOST = 0.05
#: Amplitude of the wave that a spike in k-space makes, relative to the mean of the image.
SPIKE = 0.5
#: Standard deviations of the noise of one volume, relative to those of the others.
NOISY = 3.0
#: Pose of each volume: standard deviation about and along each axis, degree and mm.
MOTION = 1.0
#: Share of volumes of a head that moves much, and the standard deviation of their pose, degree and mm.
JERKS, JERK = 0.1, 4.0
#: Faults of single voxels that are none of images: magnitudes always have the noise floor, which the app corrects.
NO_FAULT = ("Rician floor",)


@dataclass(frozen=True)
class ImageFault:
    """What is different from what it should be.

    Attributes
    ----------
    voxels : Variation
        Fault of each voxel of the brain.
    before : callable, optional
        Takes a noise-free series, its voxel size (mm) and a generator, and returns the changed series.
    after : callable, optional
        Changes magnitudes.
    noise : callable, optional
        Takes number of images and generator, returns the noise of each image relative to the usual one.
    correlation : float
        Width of the smoothing of the noise, voxels, as of interpolated images.
    """

    voxels: Variation = field(default_factory=Variation)
    before: Callable[[Array, float, np.random.Generator], Array] | None = None
    after: Change | None = None
    noise: Callable[[int, np.random.Generator], Array] | None = None
    correlation: float = 0.0


def image_faults(model: SignalModel, series: Acquisition) -> dict[str, ImageFault]:
    """Return name -> fault for a series; that of the first nothing is wrong with."""
    voxelwise = {
        what: ImageFault(variation) for what, variation in variations_of(model, series).items() if what not in NO_FAULT
    }
    return {
        **voxelwise,
        "1 % of slices dropped": ImageFault(after=_with_dropped_slices),
        "an image at 70 %": ImageFault(after=_with_other_gain),
        "noise x3 in an image": ImageFault(noise=_one_noisy),
        "noise correlated between voxels": ImageFault(correlation=0.6),
        "ghost of 5 %": ImageFault(after=_with_ghost),
        "spike in an image": ImageFault(after=_with_spike),
        "motion of 1 mm and 1 degree": ImageFault(before=partial(_moved, share=1.0, size=MOTION)),
        "a tenth of the images moved by 4 mm": ImageFault(before=partial(_moved, share=JERKS, size=JERK)),
    }


def _with_dropped_slices(measured: Array, series: Acquisition, rng: np.random.Generator) -> Array:
    """Take most of the signal of some slices of weighted images, at least of one."""
    images = weighted(series)
    n_slices = measured.shape[2]
    chosen = rng.choice(len(images) * n_slices, max(1, round(DROPPED * len(images) * n_slices)), replace=False)
    result = measured.copy()
    for image, level in zip(*np.unravel_index(chosen, (len(images), n_slices)), strict=True):
        result[:, :, level, images[image]] *= LEFT
    return result


def _with_other_gain(measured: Array, series: Acquisition, rng: np.random.Generator) -> Array:
    result = measured.copy()
    result[..., rng.choice(weighted(series))] *= GAIN
    return result


def _one_noisy(n: int, rng: np.random.Generator) -> Array:
    factor = np.ones(n)
    factor[rng.integers(n)] = NOISY
    return factor


def _with_ghost(measured: Array, series: Acquisition, rng: np.random.Generator) -> Array:
    return np.asarray(measured + GHOST * np.roll(measured, measured.shape[1] // 2, axis=1))


def _with_spike(measured: Array, series: Acquisition, rng: np.random.Generator) -> Array:
    """Add the wave of one wrong sample of k-space, in every slice alike, to one weighted image."""
    result, image = measured.copy(), rng.choice(weighted(series))
    phase = sum(rng.integers(2, n // 2) / n * np.arange(n).reshape(shape) for n, shape in _in_plane(measured))
    wave = SPIKE * measured[..., image].mean() * np.cos(2 * np.pi * phase)
    result[..., image] = np.abs(result[..., image] + wave[..., None])
    return result


def _in_plane(measured: Array) -> list[tuple[int, tuple[int, int]]]:
    return [(measured.shape[0], (-1, 1)), (measured.shape[1], (1, -1))]


def _moved(clean: Array, voxel: float, rng: np.random.Generator, *, share: float, size: float) -> Array:
    """Move a share of the images about the centre, but not the first."""
    n = clean.shape[3]
    centre = (np.array(clean.shape[:3]) - 1) / 2
    result = clean.copy()
    for image in rng.permutation(n - 1)[: max(1, round(share * (n - 1)))] + 1:
        back = Rotation.from_euler("xyz", size * rng.standard_normal(3), degrees=True).as_matrix().T
        offset = centre - back @ (centre + size / voxel * rng.standard_normal(3))
        result[..., image] = affine_transform(clean[..., image], back, offset, order=3)
    return result
