"""Non-negative least squares for many small problems at once."""

from __future__ import annotations

from itertools import combinations

import torch

from qmri_bidsapp.solvers.cholesky import factorise, solve

#: Added to the diagonal of a Gram matrix, relative to its trace, so that parallel columns do no harm.
RIDGE = 1e-6


def nonnegative_least_squares(columns: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Return the amounts c >= 0, (n, k), that minimise the squared norm of vector - c @ columns.

    All sets of columns are tried, which is exact, and quick for the few that a model has; the best of those whose
    amounts are not negative is the minimum (Lawson and Hanson 1974, chapter 23).

    Parameters
    ----------
    columns : Tensor
        (n, k, m).
    vector : Tensor
        (n, m).
    """
    gram, product = columns @ columns.mT, (columns @ vector.unsqueeze(-1)).squeeze(-1)
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).sum(-1)
    best, amounts = torch.zeros_like(ridge), torch.zeros_like(product)
    for chosen in _subsets(columns.shape[1]):
        triangle = [[gram[:, i, j] + ridge * (i == j) for j in chosen[: row + 1]] for row, i in enumerate(chosen)]
        part = solve(factorise(triangle), [product[:, i] for i in chosen])
        energy = (part * product[:, chosen]).sum(-1)
        better = (part >= 0).all(-1) & (energy > best)
        best = torch.where(better, energy, best)
        candidate = torch.zeros_like(amounts).index_copy(1, torch.tensor(chosen, device=part.device), part)
        amounts = torch.where(better.unsqueeze(-1), candidate, amounts)
    return amounts


def _subsets(size: int) -> list[list[int]]:
    """Return all sets of columns but the empty one."""
    return [list(chosen) for n in range(1, size + 1) for chosen in combinations(range(size), n)]
