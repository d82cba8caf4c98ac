"""Smooth fields on the voxels of a mask: pairs of neighbours, and the linear systems that they lead to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

#: Relative residual at which conjugate gradients end, and most steps.
TOLERANCE = 1e-5
MAX_STEPS = 500


class NeighbourPairs:
    """Pairs of voxels that share a face.

    Parameters
    ----------
    inside : ndarray
        (x, y, z) bool.
    spacing : sequence of float
        Distance of neighbours along each axis.
    device : str

    Attributes
    ----------
    n_voxels : int
        Number of voxels inside.
    axes : list of (Tensor, Tensor, float)
        For every axis that has pairs: positions, (n_pairs,) each, among the voxels inside, in C order, and the square
        of the smallest spacing over that of this axis.
    """

    def __init__(self, inside: npt.NDArray[np.bool_], spacing: Sequence[float], device: str) -> None:
        position = np.cumsum(inside, dtype=np.int64).reshape(inside.shape) - 1
        self.n_voxels = int(inside.sum())
        self.axes: list[tuple[torch.Tensor, torch.Tensor, float]] = []
        for axis in range(inside.ndim):
            first, second = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
            both = inside[first] & inside[second]
            if both.any():
                i, j = (torch.as_tensor(position[part][both], device=device) for part in (first, second))
                self.axes.append((i, j, (min(spacing) / spacing[axis]) ** 2))


class SmoothnessPrior:
    """A weight times the sum of squared differences of neighbours, relative to their distance.

    Parameters
    ----------
    neighbours : NeighbourPairs
    weight : float
    """

    def __init__(self, neighbours: NeighbourPairs, weight: float) -> None:
        self._pairs = [((i, j), weight * relative) for i, j, relative in neighbours.axes]

    def cost(self, field: torch.Tensor) -> float:
        """Return the sum for a field (n,)."""
        return sum(float(weight * (field[i] - field[j]).square().sum()) for (i, j), weight in self._pairs)

    def times(self, field: torch.Tensor) -> torch.Tensor:
        """Return L field (n,), half the gradient of `cost`."""
        product = torch.zeros_like(field)
        for (i, j), weight in self._pairs:
            difference = weight * (field[i] - field[j])
            product.index_add_(0, i, difference)
            product.index_add_(0, j, difference, alpha=-1)
        return product

    def diagonal(self, like: torch.Tensor) -> torch.Tensor:
        """Return the diagonal of L, (n,)."""
        total = torch.zeros_like(like)
        for (i, j), weight in self._pairs:
            for index in (i, j):
                total.index_add_(0, index, like.new_full((len(index),), weight))
        return total

    def draw(self, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return (n,) random numbers whose covariance is L."""
        total = torch.zeros_like(like)
        for (i, j), weight in self._pairs:
            noise = weight**0.5 * _normal(len(i), like, generator)
            total.index_add_(0, i, noise)
            total.index_add_(0, j, noise, alpha=-1)
        return total

    def solve(self, precision: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Return x with (diag(precision) + L) x = right, all (n,), by preconditioned conjugate gradients."""
        inverse = 1 / (precision + self.diagonal(precision)).clamp(min=torch.finfo(precision.dtype).tiny)
        x = torch.zeros_like(right)
        residual, goal = right.clone(), TOLERANCE * float(right.norm())
        preconditioned = inverse * residual
        direction, size = preconditioned, float(residual @ preconditioned)
        for _ in range(MAX_STEPS):
            if float(residual.norm()) <= goal:
                break
            product = precision * direction + self.times(direction)
            step = size / float(direction @ product)
            x = x + step * direction
            residual = residual - step * product
            preconditioned = inverse * residual
            new = float(residual @ preconditioned)
            direction, size = preconditioned + new / size * direction, new
        return x

    def draws(self, precision: torch.Tensor, *, n_draws: int, seed: int) -> Iterator[torch.Tensor]:
        """Yield (n,) draws from the Gaussian with zero mean and precision diag(precision) + L."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(n_draws):
            noise = precision.sqrt() * _normal(len(precision), precision, generator)
            yield self.solve(precision, noise + self.draw(precision, generator))

    def n_determined(self, precision: torch.Tensor, *, n_draws: int, seed: int) -> float:
        """Return how many parameters of the field the data determine: the trace of D (D + L)^-1.

        D is diag(precision); MacKay 1992, Neural Comput 4:415.
        """
        draws = self.draws(precision, n_draws=n_draws, seed=seed)
        return sum(float(precision @ draw.square()) for draw in draws) / n_draws

    def variance(self, precision: torch.Tensor, *, n_draws: int, seed: int) -> torch.Tensor:
        """Return the diagonal of (diag(precision) + L)^-1, (n,), from draws (Siden et al. 2018).

        The variance of a voxel is that given its neighbours, which is exact, plus that of its expectation given them,
        which is estimated from the draws.
        """
        diagonal = self.diagonal(precision)
        given = 1 / (precision + diagonal).clamp(min=torch.finfo(precision.dtype).tiny)
        spread = torch.zeros_like(precision)
        for draw in self.draws(precision, n_draws=n_draws, seed=seed):
            # L x without its diagonal is the weighted mean of the neighbours.
            spread += (given * (diagonal * draw - self.times(draw))).square() / n_draws
        return given + spread


def _normal(n: int, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(n, dtype=like.dtype, generator=generator).to(like.device)
