"""The network's input from a T1w volume; training and inference share this code.

A volume is interpolated exactly once, by a windowed sinc, onto a grid about the head. Its axes are permuted and
flipped towards right, anterior and superior, never rotated: ghosts lie along the axes of the acquisition. The bias
field stays in (training varies it): its correction is slow, and motion affects it.
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

#: Lobes of the windowed sinc on each side.
LOBES = 6
#: Height of the upper head, from which the position of the head is determined, mm below the vertex.
UPPER_HEAD = 100.0
#: Air above the vertex, mm.
AIR = 8.0
#: Least area of an axial section of a head, mm2: the uppermost such section is the vertex.
LEAST_AREA = 2000.0
#: Intensity above which a voxel belongs to the head, in units of the 99th percentile. Above that of strong ghosts in
#: air, so that motion does not shift the input; see `checks.OUTLINE_THRESHOLD` for the outline.
HEAD_THRESHOLD = 0.3
#: Brightest value that the network sees, in units of the head's 99th percentile.
BRIGHTEST = 1.5


@dataclass(frozen=True)
class Grid:
    """Grid of the network's input, and the larger grid on which training samples are simulated.

    Attributes
    ----------
    spacing : float
        mm.
    shape : tuple of int
        (x, y, z) of the network's input, about the head.
    margin : tuple of (int, int)
        Voxels that the larger grid adds before and after on each axis.
    """

    spacing: float
    shape: tuple[int, int, int]
    margin: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

    @property
    def work_shape(self) -> tuple[int, int, int]:
        """Shape of the larger grid."""
        x, y, z = (n + before + after for n, (before, after) in zip(self.shape, self.margin, strict=True))
        return x, y, z

    def work_centre(self, centre: Floats) -> Floats:
        """Return the centre of the larger grid, (3,) mm, from the centre of the network's input."""
        return centre + self.spacing * np.array([(after - before) / 2 for before, after in self.margin])

    def head_centre(self) -> Floats:
        """Return the voxel of the larger grid at the centre of the network's input, (3,)."""
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
        If the affine is singular.
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
    """Return the centre of the network's input, from the middle of the upper head and the vertex.

    Parameters
    ----------
    volume : Tensor
        (x, y, z) from `reorient`.
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
        raise InputError("The T1w image contains nothing as large as a head.")
    top = int(slices.max())
    upper = head[:, :, max(0, top - round(UPPER_HEAD / coarse[2])) : top + 1]
    middle = [_middle(upper.sum((1, 2))) * coarse[0], _middle(upper.sum((0, 2))) * coarse[1]]
    vertex = (top + 1) * coarse[2]
    offset = [(step - 1) / 2 * size for step, size in zip(steps[:2], voxel_size[:2], strict=True)]
    return np.array([middle[0] + offset[0], middle[1] + offset[1], vertex + AIR - grid.shape[2] * grid.spacing / 2])


def _middle(profile: Tensor) -> float:
    """Return the mean of the 3rd and 97th percentile of positions with these weights."""
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
        Centre of the grid, mm from the centre of the first voxel.
    shape : sequence of int
        Shape of the grid.
    spacing : float
        Spacing of the grid, mm.
    band : float
        Voxel size whose Nyquist frequency limits the band, mm, where larger than that of both grids.

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
    """Divide by the 99th percentile and clip to [0, `BRIGHTEST`]; (..., x, y, z)."""
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
