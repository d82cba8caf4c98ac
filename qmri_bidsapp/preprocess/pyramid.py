"""Images and displacements at lower resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def level_factors(spacing: Sequence[float], level: int) -> tuple[int, ...]:
    """Return how many voxels become one along each axis, powers of two: coarse voxels are about as wide as deep.

    Parameters
    ----------
    spacing : sequence of float
        (x, z, y) mm.
    level : int
        Voxels along the finest axis.
    """
    factors = []
    for step in spacing:
        factor = 1
        while 2 * factor * step <= 1.5 * level * min(spacing):
            factor *= 2
        factors.append(min(factor, level))
    return tuple(factors)


def pooled(image: torch.Tensor, factors: Sequence[int]) -> torch.Tensor:
    """Return the mean over blocks of voxels; zeros are added where the last block is not full."""
    padding = [
        width for size, factor in zip(image.shape[::-1], factors[::-1], strict=True) for width in (0, -size % factor)
    ]
    return torch.nn.functional.avg_pool3d(torch.nn.functional.pad(image, padding)[None, None], tuple(factors))[0, 0]


def refined(values: torch.Tensor, shape: Sequence[int], before: Sequence[int], after: Sequence[int]) -> torch.Tensor:
    """Interpolate linearly from one resolution to another.

    Parameters
    ----------
    values : Tensor
        (x, z, y + 1): at centres of voxels along the first two axes, on faces along the last.
    shape : sequence of int
        Of the result.
    before, after : sequence of int
        `level_factors` of both.
    """
    for axis in range(3):
        ratio = after[axis] / before[axis]
        place = torch.arange(shape[axis], dtype=torch.float64, device=values.device)
        place = place * ratio if axis == 2 else (place + 0.5) * ratio - 0.5
        place = place.clamp(0, values.shape[axis] - 1)
        low = place.floor().long().clamp(max=max(values.shape[axis] - 2, 0))
        share = (place - low).to(values.dtype).reshape([-1 if i == axis else 1 for i in range(3)])
        high = (low + 1).clamp(max=values.shape[axis] - 1)
        values = values.index_select(axis, low) * (1 - share) + values.index_select(axis, high) * share
    return values
