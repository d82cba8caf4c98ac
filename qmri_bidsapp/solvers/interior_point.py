"""Minimisation within bounds by a logarithmic barrier, for many small problems at once."""

from __future__ import annotations

from typing import NamedTuple

import torch

from qmri_bidsapp.solvers.cholesky import factorise, solve
from qmri_bidsapp.solvers.levenberg_marquardt import minimise
from qmri_bidsapp.solvers.problem import Bounds, Objective, in_batches

MAX_ITERATIONS = 100
#: Weight of the barrier at the start and at the end, relative to the cost per parameter; and its least value, for
#: signals whose largest value is about one.
FIRST_WEIGHT = 1e-2
LAST_WEIGHT = 1e-4
LEAST_WEIGHT = 1e-11
#: Factor by which the weight falls once a problem is centred. A step covers at most the rest of the way to a bound,
#: which is where the next centre lies if the gradient does not change.
REDUCTION = 0.1
#: Decrease of half the cost that a step promises, relative to the barrier's weight, at which a problem is centred.
CENTRED = 0.3
#: Decrease, relative to the cost, that a step promises and that is not worth a step.
PROMISE_TOLERANCE = 1e-4
#: Distance from the bounds, relative to the range, from which a search starts.
MARGIN = 1e-3
_MAX_DAMPING = 1e4


class _Problems(NamedTuple):
    """State of n problems.

    Shapes: row, cost, weight, damping and active (n,); theta and gradient (n, p); hessian (n, p, p).
    """

    row: torch.Tensor
    theta: torch.Tensor
    cost: torch.Tensor
    gradient: torch.Tensor
    hessian: torch.Tensor
    weight: torch.Tensor
    damping: torch.Tensor
    active: torch.Tensor


def minimise_inside(
    objective: Objective,
    start: torch.Tensor,
    bounds: Bounds,
    *,
    iterations: int = MAX_ITERATIONS,
    batch: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""Minimise the cost of every problem, with bounds approached from inside.

    Damped Newton-like steps on

    .. math::
        \tfrac{1}{2} C(\theta)
        - \mu \sum_j \left[ \log(\theta_j - l_j) + \log(u_j - \theta_j) \right]

    with the weight μ falling towards zero as each problem is centred (Fiacco and McCormick 1968; Nocedal and Wright
    2006, Numerical Optimization, section 19.6). Once it is small, Levenberg-Marquardt steps move parameters onto a
    bound that only the barrier kept them off. Parameters and results are those of `levenberg_marquardt.minimise`.
    """
    inside = follow_centre(objective, start, bounds, iterations=iterations, batch=batch)
    return minimise(objective, inside, bounds, iterations=iterations, batch=batch)


def follow_centre(
    objective: Objective, start: torch.Tensor, bounds: Bounds, *, iterations: int, batch: int | None
) -> torch.Tensor:
    """Return parameters (n, p) off all bounds, near the minimum within them; see `minimise_inside`."""
    size = batch or max(1, len(start))
    width = MARGIN * (bounds.upper - bounds.lower) * ~bounds.is_periodic
    inside = torch.where(bounds.is_periodic, start, start.clamp(bounds.lower + width, bounds.upper - width))
    row = torch.arange(len(start), device=start.device)
    cost, gradient, hessian = in_batches(objective, inside, row, size)
    weight = (FIRST_WEIGHT / start.shape[-1] * cost).clamp(min=LEAST_WEIGHT)
    active = torch.ones_like(row, dtype=torch.bool)
    problems = _Problems(row, inside, cost, gradient, hessian, weight, torch.full_like(cost, 1e-3), active)
    theta = inside.clone()
    for _ in range(iterations):
        problems = _iterate(objective, problems, bounds, size)
        done = ~problems.active
        if done.any():
            theta[problems.row[done]] = problems.theta[done]
            problems = _Problems(*(values[problems.active] for values in problems))
        if len(problems.row) == 0:
            break
    theta[problems.row] = problems.theta
    return theta


def _iterate(objective: Objective, old: _Problems, bounds: Bounds, size: int) -> _Problems:
    """Try one step in every problem, and lower the weight of the barrier where the step had little to gain."""
    weight = old.weight.unsqueeze(-1)
    below, above = _distances(old.theta, bounds)
    gradient = old.gradient - weight * (1 / below - 1 / above)
    diagonal = old.hessian.diagonal(dim1=1, dim2=2)
    floor = 1e-10 * diagonal.amax(-1, keepdim=True) + torch.finfo(weight.dtype).tiny
    added = old.damping.unsqueeze(-1) * diagonal + floor + weight * (1 / below.square() + 1 / above.square())
    matrix = old.hessian + torch.diag_embed(added)
    triangle = [[matrix[:, i, j] for j in range(i + 1)] for i in range(old.theta.shape[-1])]
    step = -solve(factorise(triangle), list(gradient.unbind(-1)))
    # The nearest bound is approached, but never reached.
    share = torch.maximum(-step / below, step / above).amax(-1, keepdim=True) / (1 - REDUCTION)
    step = step / share.clamp(min=1)
    trial = bounds.bring_back(old.theta + step)
    cost, trial_gradient, hessian = in_batches(objective, trial, old.row, size)
    promise = -(gradient * step).sum(-1)
    gain = 0.5 * (old.cost - cost) - old.weight * (_barrier(trial, bounds) - _barrier(old.theta, bounds))
    better = gain >= 0
    least = (LAST_WEIGHT / old.theta.shape[-1] * torch.minimum(cost, old.cost)).clamp(min=LEAST_WEIGHT)
    # In the end rounding hides any gain, and the damping grows without end.
    stuck = old.damping > _MAX_DAMPING
    centred = (better & (promise <= CENTRED * old.weight)) | stuck
    settled = (promise <= torch.maximum(PROMISE_TOLERANCE * old.cost, CENTRED * least)) | stuck
    keep = better.unsqueeze(-1)
    return _Problems(
        row=old.row,
        theta=torch.where(keep, trial, old.theta),
        cost=torch.where(better, cost, old.cost),
        gradient=torch.where(keep, trial_gradient, old.gradient),
        hessian=torch.where(keep.unsqueeze(-1), hessian, old.hessian),
        weight=torch.where(centred, torch.maximum(REDUCTION * old.weight, least), old.weight),
        damping=torch.where(better, (old.damping * 0.2).clamp(min=1e-7), torch.where(stuck, 1e-3, old.damping * 6)),
        active=~(settled & (old.weight <= least * (1 + 1e-3))),
    )


def _distances(theta: torch.Tensor, bounds: Bounds) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the distances (n, p) from both bounds; infinite where there are none."""
    far = torch.full_like(theta, torch.inf)
    return (
        torch.where(bounds.is_periodic, far, theta - bounds.lower),
        torch.where(bounds.is_periodic, far, bounds.upper - theta),
    )


def _barrier(theta: torch.Tensor, bounds: Bounds) -> torch.Tensor:
    """Return the barrier (n,) without its weight."""
    below, above = _distances(theta, bounds)
    inner = ~bounds.is_periodic
    return -(below[:, inner].log() + above[:, inner].log()).sum(-1)
