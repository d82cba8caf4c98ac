"""Linear algebra of many small symmetric matrices, vectorised over the matrices.

A batched LAPACK call treats one matrix at a time; for orders of two to seven these are several times faster.
"""

from __future__ import annotations

import torch

#: Row i holds the elements (i, 0) to (i, i) of every matrix, each (n,).
Triangle = list[list[torch.Tensor]]


def lower_triangle(matrix: torch.Tensor) -> Triangle:
    """Return the lower triangle of (n, p, p) matrices."""
    return [[matrix[:, row, column] for column in range(row + 1)] for row in range(matrix.shape[-1])]


def cholesky(matrix: Triangle) -> Triangle:
    """Return the Cholesky factors of positive definite matrices; a pivot that is not positive becomes tiny."""
    factor: Triangle = []
    for row, elements in enumerate(matrix):
        factor.append([])
        for column, element in enumerate(elements):
            value = element
            for k in range(column):
                value = value - factor[row][k] * factor[column][k]
            if row == column:
                factor[row].append(value.clamp(min=torch.finfo(value.dtype).tiny).sqrt())
            else:
                factor[row].append(value / factor[column][column])
    return factor


def solve(factor: Triangle, right: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the solutions of the systems whose matrices `cholesky` has factored.

    Parameters
    ----------
    factor : Triangle
    right : list of Tensor
        p times (n,).

    Returns
    -------
    list of Tensor
        p times (n,).
    """
    partial: list[torch.Tensor] = []
    for row, value in enumerate(right):
        for k in range(row):
            value = value - factor[row][k] * partial[k]
        partial.append(value / factor[row][row])
    solution = list(partial)
    for row in reversed(range(len(right))):
        value = partial[row]
        for k in range(row + 1, len(right)):
            value = value - factor[k][row] * solution[k]
        solution[row] = value / factor[row][row]
    return solution


def inverse(matrix: torch.Tensor) -> torch.Tensor:
    """Return the inverses of (n, p, p) positive definite matrices; not finite, or huge, where there is none."""
    factor = cholesky(lower_triangle(matrix))
    zero, one = torch.zeros_like(matrix[:, 0, 0]), torch.ones_like(matrix[:, 0, 0])
    size = matrix.shape[-1]
    columns = [torch.stack(solve(factor, [one if i == j else zero for i in range(size)]), dim=-1) for j in range(size)]
    return torch.stack(columns, dim=-1)
