"""The simplex method of Nelder and Mead, for many small problems at once."""

from __future__ import annotations

from collections.abc import Callable

import torch

#: (x (n, p), index (n,)) -> cost (n,); `index` says which problems these are.
Cost = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

#: Positions of trial points on the line from the worst vertex through the centre of the others, measured from the
#: centre in units of their distance (Lagarias et al. 1998): expansion, contraction outside and inside.
EXPANSION, OUTSIDE, INSIDE = 2.0, 0.5, -0.5
SHRINKAGE = 0.5
#: Problems that have converged leave the batch once they are this share of it, or after this number of steps.
COMPACTION_SHARE, COMPACTION_STEPS = 0.1, 20


def minimise(
    cost: Cost, start: torch.Tensor, step: float, *, relative: float, absolute: float, max_steps: int
) -> torch.Tensor:
    """Minimise by the simplex method of Nelder and Mead in the form of Lagarias et al. 1998, SIAM J Optim 9:112.

    Parameters
    ----------
    cost : callable
        See `Cost`.
    start : Tensor
        (n, p), first vertex; the others are `step` away along one axis each.
    step : float
    relative, absolute : float
        A problem has converged when the costs of its best and its worst vertex differ by no more than the larger of
        `absolute` and `relative` times the cost, and its vertices likewise.
    max_steps : int

    Returns
    -------
    Tensor
        (n, p), best vertices.
    """
    n_problems, n_axes = start.shape
    index = torch.arange(n_problems)
    corners = torch.cat([torch.zeros(1, n_axes), step * torch.eye(n_axes)]).to(start)
    simplex = start.unsqueeze(1) + corners
    values = torch.stack([cost(simplex[:, i], index) for i in range(n_axes + 1)], dim=1)
    best = start.clone()
    for n_steps in range(max_steps):
        values, order = values.sort(dim=1, stable=True)
        simplex = simplex.gather(1, order.unsqueeze(-1).expand_as(simplex))
        spread = (simplex[:, 1:] - simplex[:, :1]).abs().amax((1, 2))
        done = spread <= (relative * simplex[:, -1].abs().amax(1)).clamp(min=absolute)
        done &= values[:, -1] - values[:, 0] <= (relative * values[:, -1]).clamp(min=absolute)
        if done.double().mean() > COMPACTION_SHARE or n_steps % COMPACTION_STEPS == 0:
            best[index[done]] = simplex[done, 0]
            index, simplex, values = index[~done], simplex[~done], values[~done]
            if not len(index):
                return best
        _move(cost, index, simplex, values)
    best[index] = simplex[:, 0]
    return best


def _move(cost: Cost, index: torch.Tensor, simplex: torch.Tensor, values: torch.Tensor) -> None:
    """Replace, in place, the worst vertex of sorted simplices, or shrink them towards the best."""
    lowest, second, worst = values[:, 0], values[:, -2], values[:, -1]
    centre = simplex[:, :-1].mean(1)
    direction = centre - simplex[:, -1]
    reflected = centre + direction
    at_reflected = cost(reflected, index)
    accept = (at_reflected >= lowest) & (at_reflected < second)
    expand, outside = at_reflected < lowest, (at_reflected >= second) & (at_reflected < worst)
    length = torch.where(expand, EXPANSION, torch.where(outside, OUTSIDE, INSIDE))
    trial = centre + length.to(centre).unsqueeze(-1) * direction
    at_trial = torch.full_like(at_reflected, torch.inf)
    at_trial[~accept] = cost(trial[~accept], index[~accept])
    # An outside contraction may be as high as the reflection; an expansion must be lower, or the reflection stays.
    better = torch.where(outside, at_trial <= at_reflected, at_trial < torch.where(expand, at_reflected, worst))
    better &= ~accept
    reflect = accept | (expand & ~better)
    for chosen, point, value in ((better, trial, at_trial), (reflect, reflected, at_reflected)):
        simplex[chosen, -1], values[chosen, -1] = point[chosen], value[chosen]
    shrink = torch.nonzero(~better & ~reflect).squeeze(1)
    if len(shrink):
        for i in range(1, simplex.shape[1]):
            simplex[shrink, i] = torch.lerp(simplex[shrink, 0], simplex[shrink, i], SHRINKAGE)
            values[shrink, i] = cost(simplex[shrink, i], index[shrink])
