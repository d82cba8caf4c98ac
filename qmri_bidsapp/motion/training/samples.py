"""Training samples: a head, its appearance and its motion, drawn from one seed per head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from qmri_bidsapp.motion.displacement import Floats
from qmri_bidsapp.motion.network_input import Grid, find_head, reorient, resample, scale
from qmri_bidsapp.motion.training.augmentation import (
    Anatomy,
    augment_acquisition,
    augment_head,
    deform,
    draw_acquisition,
    draw_anatomy,
)
from qmri_bidsapp.motion.training.rendering import classes_of, draw_contrast, render
from qmri_bidsapp.motion.training.simulation import MAX_SCORE, Motion, apply_motion, draw_motion, still

RENDERED = "rendered"
#: Share of each kind of head in training.
DOMAINS = {"real": 0.5, RENDERED: 0.35, "stripped": 0.15}
#: Share of samples without motion, beside those with little.
STILL = 0.08
#: Voxel size of label maps, mm.
LABEL_SPACING = 1.0
#: A head is coarse if its voxels are larger than those of the grid by this factor.
COARSER = 1.2
#: Edges of the bands of a profile, cycles/mm, up to about the Nyquist frequency of the grid.
BANDS = np.linspace(0, 0.4, 9)
#: Values of a profile.
N_PROFILE = 2 * (len(BANDS) - 1)
#: Intensity below which voxels count as empty, in units of the 99th percentile.
EMPTY = 0.01


@dataclass(frozen=True, eq=False)
class Head:
    """An upright head: an image as acquired, or a label map to render images from.

    Attributes
    ----------
    name, domain : str
    volume : Tensor
        (x, y, z) float16 intensities, or uint8 classes on the larger grid at 1 mm.
    voxel_size : ndarray
        (3,) mm.
    centre : ndarray
        (3,) centre of the larger grid, mm from the centre of the first voxel.
    intensity : ndarray or None
        (class,) mean T1w intensity of a label map's classes.
    """

    name: str
    domain: str
    volume: Tensor
    voxel_size: Floats
    centre: Floats
    intensity: Floats | None = None


def image_head(name: str, domain: str, volume: Tensor, affine: Floats, grid: Grid) -> Head:
    """Return a head from a T1w volume, (i, j, k) with its (4, 4) affine."""
    turned, size = reorient(volume.clamp_min(0), affine)
    centre = grid.work_centre(find_head(turned, size.tolist(), grid))
    return Head(name, domain, (turned / turned.max()).half(), size, centre)


def label_head(name: str, labels: Tensor, affine: Floats, grid: Grid) -> Head:
    """Return a head from a label map, (i, j, k) with its (4, 4) affine; voxels of 1 mm."""
    known = torch.unique(labels)
    index, intensity = classes_of(known.cpu().numpy().astype(np.float64))
    classes = torch.as_tensor(index, device=labels.device)[torch.searchsorted(known, labels.contiguous())]
    turned, size = reorient(classes, affine)
    centre = grid.work_centre(find_head((turned > 0).float(), size.tolist(), grid)) / size
    shape = [round(n * grid.spacing / LABEL_SPACING) for n in grid.work_shape]
    for axis in range(3):
        first = round(float(centre[axis]) - (shape[axis] - 1) / 2)
        at = torch.arange(first, first + shape[axis], device=labels.device)
        inside = (at >= 0) & (at < turned.shape[axis])
        turned = turned.index_select(axis, at.clamp(0, turned.shape[axis] - 1))
        turned = turned * inside.reshape([-1 if i == axis else 1 for i in range(3)])
    middle = (np.array(shape) - 1) / 2 * LABEL_SPACING
    return Head(name, RENDERED, turned.to(torch.uint8), np.full(3, LABEL_SPACING), middle, intensity)


def image_of(head: Head, anatomy: Anatomy, rng: np.random.Generator, grid: Grid) -> Tensor:
    """Return an image of a head on the larger grid, (x, y, z)."""
    shape, spacing = grid.work_shape, grid.spacing
    extent = spacing * np.array(shape)
    volume, size, centre = head.volume, head.voxel_size.tolist(), head.centre.tolist()
    if head.intensity is not None:
        if anatomy.displacement is not None:
            x, y, z = volume.shape
            volume = deform(volume, anatomy, extent, (x, y, z), nearest=True)
        volume = resample(render(volume, draw_contrast(rng, head.intensity)), size, centre, shape, spacing)
    elif anatomy.displacement is not None:
        # On a grid twice as fine, linear interpolation preserves the band.
        fine = resample(volume.float(), size, centre, [2 * n for n in shape], spacing / 2, band=spacing)
        volume = deform(fine, anatomy, extent, shape, nearest=False)
    else:
        volume = resample(volume.float(), size, centre, shape, spacing)
    volume = volume.clamp_min(0)
    volume = volume / torch.quantile(volume[::3, ::3, ::3].flatten(), 0.99)
    return augment_head(volume, anatomy, spacing)


def profile_of(motion: Motion) -> Floats:
    """Return mean and largest deviation of the head during the acquisition of each band of k-space.

    The deviation is from the pose at the centre of k-space. Bands are along the slow axis, with frequencies of both
    signs; a band beyond the acquired k-space has the deviation at its end. The profile explains the score: the network
    learns to predict it as an auxiliary task.

    Parameters
    ----------
    motion : Motion

    Returns
    -------
    ndarray
        (2 band,) mean and largest deviation of a band, in units of the largest score.
    """
    width = BANDS[1] - BANDS[0]
    inside = BANDS[:-1, None] + (np.arange(8) + 0.5) / 8 * width
    both = np.concatenate([inside, -inside], axis=1)
    deviation = motion.deviation_at(both.ravel()).reshape(both.shape) / MAX_SCORE
    return np.concatenate([deviation.mean(1), deviation.max(1)])


def draw_samples(
    heads: Sequence[Head], n: int, rng: np.random.Generator, grid: Grid
) -> Iterator[tuple[Tensor, float, Floats]]:
    """Yield images of one head, each with its own motion and acquisition.

    Parameters
    ----------
    heads : sequence of Head
        One is drawn.
    n : int
        Number of images.
    rng : Generator
    grid : Grid

    Yields
    ------
    Tensor
        (x, y, z) the network's input.
    float
        Score, mm.
    ndarray
        See `profile_of`.
    """
    present = {domain: share for domain, share in DOMAINS.items() if any(head.domain == domain for head in heads)}
    domain = rng.choice(list(present), p=np.array(list(present.values())) / sum(present.values()))
    of_domain = [head for head in heads if head.domain == domain]
    head = of_domain[rng.integers(len(of_domain))]
    anatomy = draw_anatomy(rng)
    # Frequencies of fine voxels beyond the grid are not in the image, but the head moves while they are acquired: any
    # resolution can be simulated. Coarse voxels have no signal beyond their own band that motion could affect.
    coarse = np.where(head.voxel_size > COARSER * grid.spacing, head.voxel_size, 0)
    anatomy = replace(anatomy, resolution=np.maximum(anatomy.resolution, coarse))
    base = image_of(head, anatomy, rng, grid)
    empty = base < EMPTY
    for _ in range(n):
        resolution = anatomy.resolution.tolist()
        motion = still(resolution[0]) if rng.uniform() < STILL else draw_motion(rng, resolution)
        moved = apply_motion(base, motion, [grid.spacing] * 3, centre=grid.head_centre().tolist())
        acquisition = draw_acquisition(rng, grid)
        blank = empty if domain == "stripped" or acquisition.keep_zeros else None
        yield scale(augment_acquisition(moved, blank, acquisition, grid)), motion.score, profile_of(motion)
