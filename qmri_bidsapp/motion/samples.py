"""Training samples: a head, its appearance and its motion, all drawn from one seed per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qmri_bidsapp.motion.augmentation import (
    Anatomy,
    deform,
    draw_acquisition,
    draw_anatomy,
    vary_acquisition,
    vary_head,
)
from qmri_bidsapp.motion.label import Floats
from qmri_bidsapp.motion.rendering import classes_of, draw_contrast, render
from qmri_bidsapp.motion.score import Grid, find_head, reorient, resample, scale
from qmri_bidsapp.motion.simulation import apply_motion, draw_motion, still

#: Share of each kind of head in training.
DOMAINS = {"real": 0.5, "rendered": 0.35, "stripped": 0.15}
#: Share of samples without motion, beside those with little.
STILL = 0.08
#: Voxel size of label maps, mm.
LABEL_SPACING = 1.0
#: Finest acquired voxel, mm.
FINEST = 0.8


@dataclass(frozen=True, eq=False)
class Head:
    """A head in the larger space of the grid: an image, or a label map to render images from.

    Attributes
    ----------
    name, domain : str
    plain : Tensor or None
        (x, y, z) float32, interpolated once.
    fine : Tensor or None
        (2x, 2y, 2z) float16, the same at half the spacing, to be deformed.
    blank : Tensor or None
        (x, y, z) bool, voxels without signal in the source.
    classes : Tensor or None
        (x', y', z') uint8 at 1 mm.
    intensity : ndarray or None
        (class,) mean T1w intensity.
    """

    name: str
    domain: str
    plain: Tensor | None = None
    fine: Tensor | None = None
    blank: Tensor | None = None
    classes: Tensor | None = None
    intensity: Floats | None = None


def image_head(name: str, domain: str, volume: Tensor, affine: Floats, grid: Grid) -> Head:
    """Return a head from a T1w volume, (i, j, k) with its (4, 4) affine."""
    turned, size = reorient(volume.clamp_min(0), affine)
    voxel_size = size.tolist()
    centre = grid.work_centre(find_head(turned, voxel_size, grid)).tolist()
    shape, spacing = grid.work_shape, grid.spacing
    plain = resample(turned, voxel_size, centre, shape, spacing).clamp_min(0)
    fine_shape = tuple(2 * n for n in shape)
    fine = resample(turned, voxel_size, centre, fine_shape, spacing / 2, band=spacing).clamp_min(0)
    factor = 1 / torch.quantile(plain[::3, ::3, ::3].flatten(), 0.99)
    blank = resample((turned == 0).float(), voxel_size, centre, shape, spacing) > 0.99
    return Head(name, domain, plain=plain * factor, fine=(fine * factor).half(), blank=blank)


def label_head(name: str, labels: Tensor, affine: Floats, grid: Grid) -> Head:
    """Return a head from a label map, (i, j, k) with its (4, 4) affine; voxels of 1 mm."""
    known = torch.unique(labels)
    index, intensity = classes_of(known.cpu().numpy().astype(np.float64))
    classes = torch.as_tensor(index, device=labels.device)[torch.searchsorted(known, labels.contiguous())]
    turned, size = reorient(classes, affine)
    voxel_size = size.tolist()
    centre = grid.work_centre(find_head((turned > 0).float(), voxel_size, grid)) / size
    shape = [round(n * grid.spacing / LABEL_SPACING) for n in grid.work_shape]
    for axis in range(3):
        first = round(float(centre[axis]) - (shape[axis] - 1) / 2)
        at = torch.arange(first, first + shape[axis], device=labels.device)
        inside = (at >= 0) & (at < turned.shape[axis])
        turned = turned.index_select(axis, at.clamp(0, turned.shape[axis] - 1))
        turned = turned * inside.reshape([-1 if i == axis else 1 for i in range(3)])
    return Head(name, "rendered", classes=turned.to(torch.uint8), intensity=intensity)


def appear(head: Head, anatomy: Anatomy, rng: np.random.Generator, grid: Grid) -> Tensor:
    """Return an image of a head in the larger space of the grid."""
    shape = grid.work_shape
    extent = grid.spacing * np.array(shape)
    if head.classes is not None:
        assert head.intensity is not None
        classes, size = head.classes, tuple(head.classes.shape)
        if anatomy.displacement is not None:
            classes = deform(classes, anatomy, extent, (size[0], size[1], size[2]), nearest=True)
        rendered = render(classes, draw_contrast(rng, head.intensity))
        middle = [(n - 1) / 2 * LABEL_SPACING for n in size]
        volume = resample(rendered, [LABEL_SPACING] * 3, middle, shape, grid.spacing).clamp_min(0)
    elif anatomy.displacement is not None:
        assert head.fine is not None
        volume = deform(head.fine, anatomy, extent, shape, nearest=False)
    else:
        assert head.plain is not None
        volume = head.plain
    return vary_head(volume, anatomy, grid.spacing)


def draw_samples(heads: Sequence[Head], n: int, rng: np.random.Generator, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return images of one head, each with its own motion and acquisition.

    Parameters
    ----------
    heads : sequence of Head
        To choose from.
    n : int
        Number of images.
    rng : Generator
    grid : Grid

    Returns
    -------
    Tensor
        (n, x, y, z) the network's inputs.
    Tensor
        (n,) scores, mm.
    """
    present = {domain: share for domain, share in DOMAINS.items() if any(head.domain == domain for head in heads)}
    domain = rng.choice(list(present), p=np.array(list(present.values())) / sum(present.values()))
    of_domain = [head for head in heads if head.domain == domain]
    head = of_domain[rng.integers(len(of_domain))]
    anatomy = draw_anatomy(rng, grid)
    base = appear(head, anatomy, rng, grid)
    blank = base < 1e-3 * base.max() if domain == "stripped" else None
    if head.blank is not None and anatomy.displacement is None and domain == "real":
        blank = head.blank.flip(0) if anatomy.flip else head.blank
    # What was acquired ends where the image's band ends; if that lies beyond the grid's, anywhere beyond.
    resolution = np.where(anatomy.blur > grid.spacing, anatomy.blur, rng.uniform(FINEST, grid.spacing, 3)).tolist()
    images, scores = [], []
    for _ in range(n):
        motion = still(resolution[0]) if rng.uniform() < STILL else draw_motion(rng, resolution)
        moved = apply_motion(base, motion, [grid.spacing] * 3, centre=grid.head_centre().tolist())
        images.append(scale(vary_acquisition(moved, blank, draw_acquisition(rng, grid), grid)))
        scores.append(motion.score)
    return torch.stack(images), torch.tensor(scores, dtype=torch.float32, device=base.device)
