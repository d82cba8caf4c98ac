"""Search for the lowest minimum from several starting points."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from qmri_bidsapp.estimators.likelihood.scaled import ScaledModel
from qmri_bidsapp.estimators.likelihood.starts import Starts
from qmri_bidsapp.solvers.levenberg_marquardt import COST_TOLERANCE, MAX_ITERATIONS, minimise
from qmri_bidsapp.solvers.problem import Bounds, Objective

#: Cost relative to the lowest at which a start still goes on. Minima at which a magnitude changes its sign are reached
#: slowly: a stricter choice would now and then keep the wrong start.
PROMISING = 2.0
#: How far inside its bounds, relative to the range, a parameter that ended on one is started again.
INSET = 0.05
#: Voxels whose starting points are looked up at a time.
START_BATCH = 2048


class Found(NamedTuple):
    """Minima: scaled parameters (n, p), cost (n,), and whether the search converged (n,) bool."""

    scaled: torch.Tensor
    cost: torch.Tensor
    converged: torch.Tensor


class LocalSolver(Protocol):
    """Searches for a minimum next to a start, such as `levenberg_marquardt.minimise`."""

    def __call__(
        self,
        objective: Objective,
        start: torch.Tensor,
        bounds: Bounds,
        *,
        iterations: int = ...,
        batch: int | None = ...,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return minimum (n, p), cost (n,) and convergence (n,) from starts (n, p) within the bounds."""


class Search(Protocol):
    """Finds the lowest minimum of each voxel."""

    def __call__(self, objective: Objective, target: torch.Tensor, directions: torch.Tensor | None = None) -> Found:
        """Return the minima of an objective whose problems are voxels; `target` and `directions` as in `Voxels`."""


class MultiStartSearch:
    """Local searches from the starting points of each voxel; the deepest minimum counts.

    Parameters
    ----------
    problem : ScaledModel
    starts : Starts
        Finds starting points.
    solver : LocalSolver
    restarts : bool
        Whether voxels that end on a bound are started once more, from inside: see `restart_from_inside`.
    iterations : int
        Most steps of each local search.
    """

    def __init__(
        self,
        problem: ScaledModel,
        starts: Starts,
        *,
        solver: LocalSolver = minimise,
        restarts: bool = True,
        iterations: int = MAX_ITERATIONS,
    ) -> None:
        self.problem, self.starts, self.iterations = problem, starts, iterations
        self._solver, self._restarts = solver, restarts

    def __call__(self, objective: Objective, target: torch.Tensor, directions: torch.Tensor | None = None) -> Found:
        """Return the deepest minima; see `Search`."""
        found = self._descend(objective, self._find_starts(target, directions))
        return restart_from_inside(self.problem, objective, found, self.iterations) if self._restarts else found

    def _find_starts(self, target: torch.Tensor, directions: torch.Tensor | None) -> torch.Tensor:
        """Return (n_starts, n, n_parameters), scaled and within the bounds."""
        parts = torch.split(target, START_BATCH)
        along = [None] * len(parts) if directions is None else torch.split(directions, START_BATCH)
        starts = torch.cat([self.starts(part, where) for part, where in zip(parts, along, strict=True)], dim=1)
        return self.problem.bounds.bring_back(starts / self.problem.scale)

    def _descend(self, objective: Objective, starts: torch.Tensor) -> Found:
        """Return the deepest minimum from (n_starts, n, n_parameters) scaled starts.

        Where the starts of a voxel can be compared, a few steps are made from each; those whose cost is not far from
        the lowest go on.
        """
        n_starts, n_voxels, n_parameters = starts.shape
        device, bounds, batch = self.problem.device, self.problem.bounds, self.problem.batch
        start = starts.reshape(-1, n_parameters)
        voxel = torch.arange(n_voxels, device=device).repeat(n_starts)
        row = torch.arange(len(start), device=device)

        def objective_of_rows(
            scaled: torch.Tensor, index: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            return objective(scaled, voxel[row[index]])

        if n_starts > 1 and self.starts.n_scout:
            start, cost, _ = self._solver(objective_of_rows, start, bounds, iterations=self.starts.n_scout, batch=batch)
            table = cost.reshape(n_starts, n_voxels)
            row = torch.nonzero((table <= PROMISING * table.amin(0)).flatten()).squeeze(1)
        scaled, cost, converged = self._solver(
            objective_of_rows, start[row], bounds, iterations=self.iterations, batch=batch
        )
        final = torch.full((n_starts * n_voxels,), torch.inf, device=device)
        final[row] = cost
        deepest = final.reshape(n_starts, n_voxels).argmin(0) * n_voxels + voxel[:n_voxels]
        position = torch.zeros_like(voxel)
        position[row] = torch.arange(len(row), device=device)
        chosen = position[deepest]
        return Found(scaled[chosen], cost[chosen], converged[chosen])


def restart_from_inside(problem: ScaledModel, objective: Objective, found: Found, iterations: int) -> Found:
    """Start voxels that ended on a bound once more, from inside the bounds, and keep the lower minimum, in place.

    A bound can trap a fit: in SMT the derivative by the fraction vanishes wherever the fraction is one,
    and a fit that touches this bound on its way would never leave it.
    """
    scaled, cost, converged = found
    voxel = torch.nonzero(~problem.is_free(scaled).all(-1)).squeeze(1)
    lower, upper, is_periodic = problem.bounds
    inset = INSET * (upper - lower) * ~is_periodic
    # The amplitude follows in one step, being linear.
    inset[0] = 0
    start = scaled[voxel].clamp(lower + inset, upper - inset)
    again, again_cost, again_converged = minimise(
        lambda theta, index: objective(theta, voxel[index]),
        start,
        problem.bounds,
        iterations=iterations,
        batch=problem.batch,
    )
    better = again_cost < (1 - COST_TOLERANCE) * cost[voxel]
    chosen = voxel[better]
    scaled[chosen], cost[chosen] = again[better], again_cost[better]
    converged[chosen] = again_converged[better]
    return found
