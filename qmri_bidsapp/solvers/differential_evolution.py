"""Global minimisation by differential evolution, for many small problems at once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from qmri_bidsapp.solvers.problem import Bounds

#: Range of the factor that differences are scaled by, drawn for each trial ("dither"), and the share of parameters
#: that a trial takes from the mutant (Storn and Price 1997, section 3).
DIFFERENTIAL_WEIGHT = (0.4, 0.9)
CROSSOVER = 0.9


def evolve(
    cost: Callable[[torch.Tensor], torch.Tensor],
    n_problems: int,
    bounds: Bounds,
    *,
    population: int,
    generations: int,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the populations (n, population, d), best member first, and their costs.

    Each member is met by a trial: its parent, moved towards the best by a part of the way and by a scaled difference
    of two others (strategy rand-to-best/1/bin; Storn and Price 1997, J Glob Optim 11:341). All problems share the
    random numbers, so that none depends on which others are solved with it.

    Parameters
    ----------
    cost : callable
        (n, population, d) -> (n, population).
    n_problems : int
    bounds : Bounds
        Of d parameters.
    population, generations : int
        The budget: (generations + 1) * population evaluations per problem.
    seed : int
    """
    generator = torch.Generator().manual_seed(seed)
    lower, size = bounds.lower, len(bounds.lower)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator).to(lower)

    members = (lower + (bounds.upper - lower) * uniform(population, size)).expand(n_problems, -1, -1)
    costs = cost(members)
    for _ in range(generations):
        order = torch.rand(population, population, generator=generator)
        order.fill_diagonal_(2.0)
        first, second = order.argsort(dim=1)[:, :2].to(lower.device).unbind(1)
        least, most = DIFFERENTIAL_WEIGHT
        scale = least + (most - least) * uniform(population, 1)
        best = members.gather(1, costs.argmin(1)[:, None, None].expand(-1, 1, size))
        mutant = members + scale * (best - members) + scale * (members[:, first] - members[:, second])
        # One parameter at least comes from the mutant.
        certain = torch.arange(size) == torch.randint(size, (population, 1), generator=generator)
        crossed = (uniform(population, size) < CROSSOVER) | certain.to(lower.device)
        trial = torch.where(crossed, _reflect(mutant, bounds), members)
        trial_costs = cost(trial)
        better = trial_costs <= costs
        members = torch.where(better.unsqueeze(-1), trial, members)
        costs = torch.where(better, trial_costs, costs)
    ranked = costs.argsort(dim=1)
    return members.gather(1, ranked.unsqueeze(-1).expand(-1, -1, size)), costs.gather(1, ranked)


def _reflect(values: torch.Tensor, bounds: Bounds) -> torch.Tensor:
    """Return values within the bounds: angles turned, others reflected, so that they do not gather on a bound."""
    lower, upper, is_periodic = bounds
    reflected = torch.where(values < lower, 2 * lower - values, values)
    reflected = torch.where(reflected > upper, 2 * upper - reflected, reflected).clamp(lower, upper)
    turned = lower + torch.remainder(values - lower, upper - lower)
    return torch.where(is_periodic, turned, reflected)
