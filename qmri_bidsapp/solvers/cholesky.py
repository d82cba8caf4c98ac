"""Cholesky factorisation of many small systems at once.

Written out over the elements and vectorised over the systems, it is several times faster than batched LAPACK
calls, which treat one matrix at a time.
"""

from __future__ import annotations

import torch

#: Lower triangle, ``triangle[i][j]`` for j <= i, of n matrices: every element is a tensor (n,).
Triangle = list[list[torch.Tensor]]


def factorise(matrix: Triangle) -> Triangle:
    """Return the Cholesky factor L, with L L^T the positive definite matrix.

    A pivot that rounding has made negative is raised to the smallest number. The caller recognises a singular matrix by
    the size of the pivots or of the solution.
    """
    factor: Triangle = []
    for row, elements in enumerate(matrix):
        factor.append([])
        for column, element in enumerate(elements):
            value = element
            for k in range(column):
                value = torch.addcmul(value, factor[row][k], factor[column][k], value=-1)
            if row == column:
                factor[row].append(value.clamp(min=torch.finfo(value.dtype).tiny).sqrt())
            else:
                factor[row].append(value / factor[column][column])
    return factor


def solve(factor: Triangle, right: list[torch.Tensor]) -> torch.Tensor:
    """Return x (n, p) with L L^T x = right, from the elements (n,) of the p right-hand sides."""
    size = len(factor)
    partial: list[torch.Tensor] = []
    for row in range(size):
        value = right[row]
        for k in range(row):
            value = torch.addcmul(value, factor[row][k], partial[k], value=-1)
        partial.append(value / factor[row][row])
    for row in reversed(range(size)):
        value = partial[row]
        for k in range(row + 1, size):
            value = torch.addcmul(value, factor[k][row], partial[k], value=-1)
        partial[row] = value / factor[row][row]
    return torch.stack(partial, dim=-1)


def inverse_factor(factor: Triangle) -> Triangle:
    """Return L^-1, which is lower triangular as well: the inverse of the matrix is L^-T L^-1."""
    inverse: Triangle = []
    for row in range(len(factor)):
        inverse.append([])
        for column in range(row):
            value = -factor[row][column] * inverse[column][column]
            for k in range(column + 1, row):
                value = torch.addcmul(value, factor[row][k], inverse[k][column], value=-1)
            inverse[row].append(value / factor[row][row])
        inverse[row].append(1 / factor[row][row])
    return inverse


def dense(triangle: Triangle) -> torch.Tensor:
    """Return (n, p, p) matrices, zero above the diagonal."""
    zero = torch.zeros_like(triangle[0][0])
    rows = [torch.stack([*row, *[zero] * (len(triangle) - len(row))], dim=-1) for row in triangle]
    return torch.stack(rows, dim=-2)
