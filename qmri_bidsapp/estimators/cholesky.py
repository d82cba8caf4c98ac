"""Cholesky's method for many small systems at once.

Written out over the elements and vectorised over the systems, it is several times faster than batched LAPACK
calls, which treat one matrix at a time.
"""

from __future__ import annotations

import torch

#: Lower triangle, ``triangle[i][j]`` for j <= i, of n matrices: every element is a tensor (n,).
Triangle = list[list[torch.Tensor]]


def factorise(matrix: Triangle) -> Triangle:
    """Return the Cholesky factor L, with L L^T the positive definite matrix.

    A pivot that rounding has made negative is raised to the smallest number: the caller tells from the size
    of the pivots, or of the solution, whether a matrix is singular.
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


def inverse_factor(factor: Triangle) -> torch.Tensor:
    """Return L^-1, (n, p, p) lower triangular: the inverse of the matrix is L^-T L^-1."""
    size = len(factor)
    inverse = factor[0][0].new_zeros((len(factor[0][0]), size, size))
    for column in range(size):
        entries: list[torch.Tensor] = []
        for row in range(column, size):
            if row == column:
                value = torch.ones_like(factor[0][0])
            else:
                value = torch.zeros_like(factor[0][0])
                for k in range(column, row):
                    value = torch.addcmul(value, factor[row][k], entries[k - column], value=-1)
            entries.append(value / factor[row][row])
        inverse[:, column:, column] = torch.stack(entries, dim=-1)
    return inverse
