"""Bounded minimisation problems, solved in batches: objectives, bounds and their evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

#: (theta (n, p), index (n,)) -> residuals (n, m), Jacobian (n, m, p); `index` says which problems these are.
Evaluate = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
#: (theta (n, p), index (n,)) -> cost (n,), not negative, half its gradient (n, p) and half its curvature (n, p, p),
#: positive semidefinite: Gauss-Newton's matrix, or the Fisher information.
Objective = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


class Bounds(NamedTuple):
    """Bounds of the parameters.

    Attributes
    ----------
    lower, upper : Tensor
        (p,).
    is_periodic : Tensor
        (p,) bool; the bounds of such a parameter are one turn.
    """

    lower: torch.Tensor
    upper: torch.Tensor
    is_periodic: torch.Tensor

    def bring_back(self, theta: torch.Tensor) -> torch.Tensor:
        """Return (n, p) parameters within the bounds: periodic ones modulo one turn, others clipped."""
        turned = self.lower + torch.remainder(theta - self.lower, self.upper - self.lower)
        return torch.where(self.is_periodic, turned, theta.clamp(self.lower, self.upper))

    def is_free(self, theta: torch.Tensor, margin: float) -> torch.Tensor:
        """Return which of (n, p) parameters lie inside their bounds by more than this share of the range, bool."""
        width = margin * (self.upper - self.lower)
        return self.is_periodic | ((theta > self.lower + width) & (theta < self.upper - width))


def sum_of_squares(evaluate: Evaluate) -> Objective:
    """Return the sum of squared residuals as an objective, with the curvature of Gauss and Newton."""

    def objective(theta: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        residual, jacobian = evaluate(theta, index)
        gradient = (jacobian.mT @ residual.unsqueeze(-1)).squeeze(-1)
        return residual.square().sum(-1), gradient, jacobian.mT @ jacobian

    return objective


def in_batches(
    objective: Objective, theta: torch.Tensor, index: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Evaluate the objective of all problems, `size` of them at a time.

    Parameters
    ----------
    objective : callable
        See `Objective`.
    theta : Tensor
        (n, p).
    index : Tensor
        (n,) int64, the problem of each row.
    size : int
        Problems per batch.

    Returns
    -------
    cost, gradient, hessian : Tensor
        (n,), (n, p) and (n, p, p).
    """
    parts = [
        objective(part, rows) for part, rows in zip(torch.split(theta, size), torch.split(index, size), strict=True)
    ]
    cost, gradient, hessian = (torch.cat(values) for values in zip(*parts, strict=True))
    return cost, gradient, hessian
