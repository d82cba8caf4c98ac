"""Bending energy of a smooth field on a grid, and systems of equations that hold it: torch, CPU or GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

Operator = Callable[[torch.Tensor], torch.Tensor]


def difference(field: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the differences of neighbours along an axis, one fewer than values."""
    return field.diff(dim=axis)


def difference_transposed(values: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the transpose of `difference`, one more value along the axis."""
    padding = [0, 0] * (values.dim() - 1 - axis) + [1, 1]
    return -torch.nn.functional.pad(values, padding).diff(dim=axis)


class Bending:
    """Sum of the squared second derivatives of a field, over its grid; linear fields have none.

    Parameters
    ----------
    shape : sequence of int
        (x, y, z) of the grid.
    spacing : sequence of float
        Distance of neighbours along each axis, mm.
    device : torch.device
    """

    def __init__(self, shape: Sequence[int], spacing: Sequence[float], device: torch.device) -> None:
        self.shape = tuple(shape)
        self._axes = [axis for axis in range(3) if shape[axis] > 1]
        self._scales = [1 / step**2 for step in spacing]
        self._cosines = [_cosine_transform(size).to(device) for size in shape]
        waves = [2 - 2 * torch.cos(math.pi * torch.arange(size) / size) for size in shape]
        x, y, z = (wave * scale for wave, scale in zip(waves, self._scales, strict=True))
        self._laplacian = (x[:, None, None] + y[None, :, None] + z[None, None, :]).to(device)
        self._last = waves[2].to(device)

    def gradient(self, field: torch.Tensor) -> torch.Tensor:
        """Return half the gradient of the energy, a linear operator.

        It is the squared Laplacian of a field that is reflected at the edges, less what the squares hold of the first
        derivatives there: those of a linear field do not count.
        """
        result = self._minus_laplacian(self._minus_laplacian(field))
        for axis in self._axes:
            square = self._scales[axis] ** 2
            for edge, inner in ((0, 1), (-1, -2)):
                slope = square * (field.select(axis, edge) - field.select(axis, inner))
                result.select(axis, edge).sub_(slope)
                result.select(axis, inner).add_(slope)
        return result

    def random(self, generator: torch.Generator) -> torch.Tensor:
        """Return a random field whose covariance is the squared Laplacian, that of `gradient` but for the edges."""
        return self._minus_laplacian(torch.randn(self.shape, generator=generator).to(self._last.device))

    def preconditioner(self, weight: float, along_last: float, constant: float) -> Operator:
        """Return an approximate inverse of ``weight * gradient + along_last * K + constant``.

        K holds the squared differences along the last axis. Boundaries are reflected, so that cosine transforms solve
        it.
        """
        scale = 1 / (weight * self._laplacian**2 + along_last * self._last + constant)

        def apply(field: torch.Tensor) -> torch.Tensor:
            return self._transform(self._transform(field, inverse=False) * scale, inverse=True)

        return apply

    def _minus_laplacian(self, field: torch.Tensor) -> torch.Tensor:
        """Return minus the Laplacian, with reflection at the edges."""
        result = torch.zeros_like(field)
        for axis in self._axes:
            slope = self._scales[axis] * difference(field, axis)
            size = field.shape[axis] - 1
            result.narrow(axis, 1, size).add_(slope)
            result.narrow(axis, 0, size).sub_(slope)
        return result

    def _transform(self, field: torch.Tensor, *, inverse: bool) -> torch.Tensor:
        first, second, third = (matrix.T if inverse else matrix for matrix in self._cosines)
        field = torch.matmul(second, field @ third.T)
        return (first @ field.reshape(field.shape[0], -1)).reshape(field.shape)


def _cosine_transform(size: int) -> torch.Tensor:
    """Return the orthonormal discrete cosine transform (size, size)."""
    order = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi * order[:, None] * (order + 0.5) / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def solve(
    operator: Operator, right: torch.Tensor, preconditioner: Operator, *, n_steps: int, tolerance: float
) -> torch.Tensor:
    """Solve a symmetric positive system by preconditioned conjugate gradients.

    Parameters
    ----------
    operator : callable
    right : Tensor
        Right-hand side.
    preconditioner : callable
        Approximate inverse.
    n_steps : int
        At most.
    tolerance : float
        Relative residual, in the norm of the preconditioner, at which to stop.
    """
    solution = torch.zeros_like(right)
    residual = right.clone()
    direction = scaled = preconditioner(residual)
    size = (residual * scaled).sum()
    goal = tolerance**2 * size
    for _ in range(n_steps):
        if size <= goal:
            break
        image = operator(direction)
        step = size / (direction * image).sum()
        solution = solution + step * direction
        residual = residual - step * image
        scaled = preconditioner(residual)
        previous, size = size, (residual * scaled).sum()
        direction = scaled + size / previous * direction
    return solution
