"""Levenberg-Marquardt within bounds, for many small problems at once."""

from __future__ import annotations

from typing import NamedTuple

import torch

from qmri_bidsapp.solvers.cholesky import factorise, solve
from qmri_bidsapp.solvers.problem import Bounds, Objective, in_batches

#: Relative decrease of the cost, and relative length of the step, that count as converged.
COST_TOLERANCE = 1e-6
STEP_TOLERANCE = 3e-5
MAX_ITERATIONS = 100
#: Relative length of a last step that is made untried: the cost is as good as quadratic that far.
UNTRIED_LENGTH = 1e-2
#: Problems that have converged leave the batch once they are this share of it; until then they are frozen.
COMPACTION_SHARE = 0.2
#: Damping up to which a step shows how much there is to gain.
TRUSTED_DAMPING = 0.1
_MAX_DAMPING = 1e8


class _Problems(NamedTuple):
    """State of n problems: all that a step needs, so that residuals and Jacobians need not be kept.

    Shapes: row, cost, damping and active (n,); theta, gradient and step (n, p); hessian (n, p, p).
    """

    row: torch.Tensor
    theta: torch.Tensor
    cost: torch.Tensor
    gradient: torch.Tensor
    hessian: torch.Tensor
    damping: torch.Tensor
    active: torch.Tensor
    step: torch.Tensor


def minimise(
    objective: Objective,
    start: torch.Tensor,
    bounds: Bounds,
    *,
    iterations: int = MAX_ITERATIONS,
    batch: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Minimise the cost of every problem by damped Newton-like steps.

    A parameter on a bound whose gradient points outwards is held there for the step (an active set); steps
    are projected onto the bounds. No problem influences another.

    Parameters
    ----------
    objective : callable
        See `Objective`; `index` are the rows of `start` that `theta` belongs to.
    start : Tensor
        (n, p), within the bounds.
    bounds : Bounds
    iterations : int
        Largest number of steps.
    batch : int, optional
        Problems that are evaluated at a time, to limit the memory of Jacobians; all by default.

    Returns
    -------
    theta : Tensor
        (n, p).
    cost : Tensor
        (n,) there.
    converged : Tensor
        (n,) bool.
    """
    index = torch.arange(len(start), device=start.device)
    theta, converged = start.clone(), torch.zeros_like(index, dtype=torch.bool)
    cost = torch.full_like(start[:, 0], torch.inf)
    damping = torch.full_like(cost, 1e-3)
    size = batch or max(1, len(start))
    values = in_batches(objective, start, index, size)
    problems = _prepare(_Problems(index, start, *values, damping, ~converged, torch.zeros_like(start)), bounds)
    for _ in range(iterations):
        n_active = int(problems.active.sum())
        if n_active <= (1 - COMPACTION_SHARE) * len(problems.active):
            _store(problems, theta, cost, converged)
            problems = _Problems(*(values[problems.active] for values in problems))
        if n_active == 0:
            return theta, cost, converged
        problems = _iterate(objective, problems, bounds, size)
    _store(problems, theta, cost, converged)
    return theta, cost, converged


def _store(problems: _Problems, theta: torch.Tensor, cost: torch.Tensor, converged: torch.Tensor) -> None:
    """Write the current state into the results, in place."""
    theta[problems.row] = problems.theta
    cost[problems.row] = problems.cost
    converged[problems.row] = ~problems.active


def _iterate(objective: Objective, old: _Problems, bounds: Bounds, size: int) -> _Problems:
    """Try one step in every problem that is active and keep it where it helps."""
    trial = bounds.bring_back(old.theta + old.step)
    cost, gradient, hessian = in_batches(objective, trial, old.row, size)
    better = (cost <= old.cost) & old.active
    moved = (trial - old.theta).abs().amax(-1)
    short = moved <= STEP_TOLERANCE * (1e-3 + old.theta.abs().amax(-1))
    # A short step that does not help either has met the precision of the numbers: there is no more to gain.
    settled = short & ~(better & (old.cost - cost > COST_TOLERANCE * old.cost))
    new = _Problems(
        row=old.row,
        theta=torch.where(better.unsqueeze(-1), trial, old.theta),
        cost=torch.where(better, cost, old.cost),
        gradient=torch.where(better.unsqueeze(-1), gradient, old.gradient),
        hessian=torch.where(better[:, None, None], hessian, old.hessian),
        damping=torch.where(better, (old.damping * 0.2).clamp(min=1e-7), old.damping * 6),
        active=old.active & ~settled & (old.damping <= _MAX_DAMPING),
        step=old.step,
    )
    return _prepare(new, bounds)


def _prepare(problems: _Problems, bounds: Bounds) -> _Problems:
    """Return the problems with the next step; one that promises too little is the last, and made if it is short."""
    step = _step(problems, bounds)
    # Along directions that the data do not determine, a step may be long and yet promise nothing.
    promise = -(problems.gradient * step).sum(-1)
    settled = (problems.damping <= TRUSTED_DAMPING) & (promise <= COST_TOLERANCE * problems.cost)
    last = problems.active & settled
    short = step.abs().amax(-1) <= UNTRIED_LENGTH * (1e-3 + problems.theta.abs().amax(-1))
    theta = torch.where((last & short).unsqueeze(-1), bounds.bring_back(problems.theta + step), problems.theta)
    return problems._replace(theta=theta, step=step, active=problems.active & ~settled)


def _step(problems: _Problems, bounds: Bounds) -> torch.Tensor:
    """Return the damped step, (n, p)."""
    theta, gradient = problems.theta, problems.gradient
    outwards = ((theta <= bounds.lower) & (gradient > 0)) | ((theta >= bounds.upper) & (gradient < 0))
    free = bounds.is_periodic | ~outwards
    hessian = problems.hessian * free.unsqueeze(1) * free.unsqueeze(2)
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    floor = 1e-10 * diagonal.amax(-1, keepdim=True) + torch.finfo(theta.dtype).tiny
    damped = problems.damping.unsqueeze(-1) * diagonal + floor + (~free).to(theta.dtype)
    matrix = hessian + torch.diag_embed(damped)
    triangle = [[matrix[:, row, column] for column in range(row + 1)] for row in range(theta.shape[-1])]
    return -solve(factorise(triangle), list((gradient * free).unbind(-1)))
