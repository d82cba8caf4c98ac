"""From a T1w volume to the network's input; the same code in training and in use.

A volume is interpolated exactly once, by a windowed sinc, onto a grid about the head. Its axes are permuted and
flipped towards right, anterior and superior, never rotated: ghosts lie along the axes of the acquisition. The bias
field is left in (training varies it), so that nothing slow and nothing that motion disturbs comes before the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.motion.displacement import Floats

#: Lobes of the windowed sinc, on each side.
LOBES = 6
#: Height of the part of a head that tells where it lies, mm below the vertex.
UPPER_HEAD = 100.0
#: Air above the vertex, mm.
AIR = 8.0
#: Least area of a head's cross-section, mm2: finds the vertex.
LEAST_AREA = 2000.0
#: Intensity from which a voxel is of the head, in units of the 99th percentile: above that of strong ghosts in air.
HEAD_THRESHOLD = 0.3
#: Brightest value that the network sees, in units of the head's 99th percentile.
BRIGHTEST = 1.5


@dataclass(frozen=True)
class Grid:
    """What the network sees, and the larger space in which training samples are made.

    Attributes
    ----------
    spacing : float
        mm.
    shape : tuple of int
        (x, y, z) of the network's input, about the head.
    margin : tuple of (int, int)
        Voxels before and after on each axis, in the larger space.
    """

    spacing: float
    shape: tuple[int, int, int]
    margin: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

    @property
    def work_shape(self) -> tuple[int, int, int]:
        """Shape of the larger space."""
        x, y, z = (n + before + after for n, (before, after) in zip(self.shape, self.margin, strict=True))
        return x, y, z

    def work_centre(self, centre: Floats) -> Floats:
        """Return the centre of the larger space, mm, for that of the network's input."""
        return centre + self.spacing * np.array([(after - before) / 2 for before, after in self.margin])

    def head_centre(self) -> Floats:
        """Return the voxel, in the larger space, that is the middle of the network's input."""
        return np.array([before + (n - 1) / 2 for n, (before, _) in zip(self.shape, self.margin, strict=True)])


GRID = Grid(1.2, (140, 170, 140), ((10, 10), (5, 5), (35, 5)))


def reorient(volume: Tensor, affine: Floats) -> tuple[Tensor, Floats]:
    """Permute and flip axes towards right, anterior, superior.

    Parameters
    ----------
    volume : Tensor
        (i, j, k).
    affine : ndarray
        (4, 4) voxel to mm.

    Returns
    -------
    Tensor
        (x, y, z).
    ndarray
        (3,) voxel size, mm.

    Raises
    ------
    InputError
        If the affine has no volume.
    """
    size = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.all(np.isfinite(affine)) or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise InputError("The T1w image's affine is singular: its header is damaged.")
    direction = affine[:3, :3] / size
    order = max(permutations(range(3)), key=lambda p: sum(abs(direction[i, p[i]]) for i in range(3)))
    turned = volume.permute(order)
    backwards = [i for i in range(3) if direction[i, order[i]] < 0]
    return turned.flip(backwards).contiguous(), size[list(order)]


def find_head(volume: Tensor, voxel_size: Sequence[float], grid: Grid) -> Floats:
    """Return the centre of the network's input: middle of the upper head, below the vertex.

    Parameters
    ----------
    volume : Tensor
        (x, y, z), oriented as by `reorient`.
    voxel_size : sequence of float
        mm.
    grid : Grid

    Returns
    -------
    ndarray
        (3,) mm from the centre of the first voxel.

    Raises
    ------
    InputError
        If nothing in the volume is as large as a head.
    """
    steps = [max(1, round(4 / size)) for size in voxel_size]
    pooled = torch.nn.functional.avg_pool3d(volume[None], steps, ceil_mode=True)[0]
    coarse = [size * step for size, step in zip(voxel_size, steps, strict=True)]
    head = (
        pooled > HEAD_THRESHOLD * torch.quantile(pooled.flatten()[:: max(1, pooled.numel() // 200_000)], 0.99)
    ).double()
    slices = torch.nonzero(head.sum((0, 1)) * coarse[0] * coarse[1] > LEAST_AREA).flatten()
    if len(slices) == 0:
        raise InputError("The T1w image holds nothing as large as a head.")
    top = int(slices.max())
    upper = head[:, :, max(0, top - round(UPPER_HEAD / coarse[2])) : top + 1]
    middle = [_middle(upper.sum((1, 2))) * coarse[0], _middle(upper.sum((0, 2))) * coarse[1]]
    vertex = (top + 1) * coarse[2]
    offset = [(step - 1) / 2 * size for step, size in zip(steps[:2], voxel_size[:2], strict=True)]
    return np.array([middle[0] + offset[0], middle[1] + offset[1], vertex + AIR - grid.shape[2] * grid.spacing / 2])


def _middle(profile: Tensor) -> float:
    """Return the mean of the 3rd and 97th percentile of a distribution over positions."""
    cumulated = torch.cumsum(profile, 0) / profile.sum()
    ends = torch.searchsorted(cumulated, torch.tensor([0.03, 0.97], dtype=cumulated.dtype, device=cumulated.device))
    return float(ends.double().mean())


def resample(
    volume: Tensor,
    voxel_size: Sequence[float],
    centre: Sequence[float],
    shape: Sequence[int],
    spacing: float,
    band: float = 0.0,
) -> Tensor:
    """Interpolate a volume onto a parallel grid by a Lanczos-windowed sinc, free of aliasing.

    Parameters
    ----------
    volume : Tensor
        (x, y, z); zero outside.
    voxel_size : sequence of float
        mm.
    centre : sequence of float
        Where the middle of the grid lies, mm from the centre of the first voxel.
    shape : sequence of int
        Of the grid.
    spacing : float
        Of the grid, mm.
    band : float
        Voxel size whose Nyquist frequency ends the band, mm, where larger than that of both grids.

    Returns
    -------
    Tensor
        `shape`.
    """
    for axis in range(3):
        width = max(spacing, voxel_size[axis], band)
        target = centre[axis] + (torch.arange(shape[axis], dtype=torch.float64) - (shape[axis] - 1) / 2) * spacing
        source = torch.arange(volume.shape[axis], dtype=torch.float64) * voxel_size[axis]
        distance = (target[:, None] - source) / width
        kernel = torch.sinc(distance) * torch.sinc(distance / LOBES) * (distance.abs() < LOBES)
        kernel = (kernel * voxel_size[axis] / width).to(volume)
        volume = torch.tensordot(kernel, volume, dims=([1], [axis])).movedim(0, axis)
    return volume.contiguous()


def scale(volume: Tensor) -> Tensor:
    """Divide by the 99th percentile and cut to [0, 1.5]; (..., x, y, z)."""
    sample = volume[..., ::3, ::3, ::3].flatten(-3)
    bright = torch.quantile(sample, 0.99, dim=-1)[..., None, None, None]
    return (volume / bright.clamp_min(1e-12)).clamp(0, BRIGHTEST)


def prepare(volume: Tensor, affine: Floats, grid: Grid) -> Tensor:
    """Return the network's input for a T1w volume.

    Parameters
    ----------
    volume : Tensor
        (i, j, k) in any unit.
    affine : ndarray
        (4, 4) voxel to mm.
    grid : Grid

    Returns
    -------
    Tensor
        `grid.shape`, scaled.
    """
    turned, voxel_size = reorient(volume, affine)
    centre = find_head(turned, voxel_size.tolist(), grid)
    return scale(resample(turned, voxel_size.tolist(), centre.tolist(), grid.shape, grid.spacing))
