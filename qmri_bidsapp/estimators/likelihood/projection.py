"""Least squares with the linear parameters eliminated: steps of the non-linear ones.

Tensors have the voxels last.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from qmri_bidsapp.solvers.cholesky import Triangle, factorise, solve

#: Pivot of Newton's matrix, relative to Gauss and Newton's, from which on the cost is taken to curve upwards.
UPWARDS = 0.05


class Equations(NamedTuple):
    """Normal equations at some values of the non-linear parameters.

    The unknowns are the changes of the coefficients, then those of the non-linear parameters, each times the
    coefficient of the function that it shapes.

    Attributes
    ----------
    coefficients : list of Tensor
        (n,) for each basis function: the best ones.
    residual : Tensor
        (m, n) residuals at these coefficients.
    gram : list of list of Tensor
        Lower triangle of the matrix of Gauss and Newton, (n,) each.
    gradient : list of Tensor
        (n,) for each non-linear parameter: the right-hand side.
    positions : tuple of int
        For each non-linear parameter, the function that it shapes.
    """

    coefficients: list[torch.Tensor]
    residual: torch.Tensor
    gram: Triangle
    gradient: list[torch.Tensor]
    positions: tuple[int, ...]

    @property
    def sizes(self) -> list[torch.Tensor]:
        """The coefficient that belongs to each non-linear parameter, (n,)."""
        return [self.coefficients[position] for position in self.positions]


def project(functions: list[torch.Tensor], slopes: list[tuple[int, torch.Tensor]], signals: torch.Tensor) -> Equations:
    """Eliminate the coefficients.

    Parameters
    ----------
    functions, slopes
        From `SeparableModel.basis`, weighted.
    signals : Tensor
        (m, n), weighted.
    """
    positions, tangents = zip(*slopes, strict=True)
    columns, n = [*functions, *tangents], signals.shape[1]
    gram = [[dot(columns[i], columns[j]).expand(n) for j in range(i + 1)] for i in range(len(columns))]
    linear = [row[: i + 1] for i, row in enumerate(gram[: len(functions)])]
    coefficients = solve(factorise(linear), [dot(function, signals) for function in functions]).unbind(-1)
    residual = signals - sum(c * f for c, f in zip(coefficients, functions, strict=True))
    return Equations(list(coefficients), residual, gram, [dot(tangent, residual) for tangent in tangents], positions)


def hold(equations: Equations, held: list[torch.Tensor]) -> Equations:
    """Return the equations without those non-linear parameters that are held, (n,) bool each."""
    n_functions = len(equations.coefficients)
    free = [None] * n_functions + [~value for value in held]
    gram = [
        [
            element if row == column else _masked(element, free[row], free[column])
            for column, element in enumerate(elements)
        ]
        for row, elements in enumerate(equations.gram)
    ]
    gradient = [value * ~is_held for value, is_held in zip(equations.gradient, held, strict=True)]
    return equations._replace(gram=gram, gradient=gradient)


def gauss_newton(equations: Equations) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the step (n_nonlinear, n) and the decrease of the cost that it promises (n,)."""
    return _step(equations, factorise(equations.gram))


def newton(equations: Equations, bends: list[list[torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Newton's step and promise; those of Gauss and Newton where the cost does not curve upwards.

    Parameters
    ----------
    equations : Equations
    bends : list of list of Tensor
        Lower triangle over the non-linear parameters: the product of the residual with the second derivative of the
        function that both shape (n,), or zero.
    """
    n_functions = len(equations.coefficients)
    gram = [list(row) for row in equations.gram]
    for k, (position, size) in enumerate(zip(equations.positions, equations.sizes, strict=True)):
        row = gram[n_functions + k]
        row[position] = row[position] - equations.gradient[k] / size
        for j, bend in enumerate(bends[k]):
            row[n_functions + j] = row[n_functions + j] - bend / size
    plain, curved = factorise(equations.gram), factorise(gram)
    upwards = torch.stack([b[-1] > UPWARDS * a[-1] for a, b in zip(plain, curved, strict=True)]).all(0)
    factor = [
        [torch.where(upwards, b, a) for a, b in zip(*rows, strict=True)] for rows in zip(plain, curved, strict=True)
    ]
    return _step(equations, factor)


def dot(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the sums over measurements, (n,)."""
    return (first * second).sum(0)


def _step(equations: Equations, factor: Triangle) -> tuple[torch.Tensor, torch.Tensor]:
    n_functions = len(equations.coefficients)
    right = [torch.zeros_like(equations.gradient[0])] * n_functions + equations.gradient
    changes = solve(factor, right).unbind(-1)[n_functions:]
    promise = torch.stack([g * c for g, c in zip(equations.gradient, changes, strict=True)]).sum(0)
    return torch.stack([change / size for change, size in zip(changes, equations.sizes, strict=True)]), promise


def _masked(element: torch.Tensor, *free: torch.Tensor | None) -> torch.Tensor:
    for mask in free:
        element = element if mask is None else element * mask
    return element
