"""Variable projection: least squares over the non-linear parameters alone."""

from __future__ import annotations

import math
from typing import ClassVar

import torch

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.estimators.likelihood.projection import Equations, dot, gauss_newton, hold, newton, project
from qmri_bidsapp.estimators.likelihood.scaled import BATCH_VALUES, ScaledModel
from qmri_bidsapp.estimators.likelihood.search import Found, Search
from qmri_bidsapp.estimators.likelihood.starts import axis_values
from qmri_bidsapp.models.base import SeparableModel, SignalModel
from qmri_bidsapp.solvers.levenberg_marquardt import minimise
from qmri_bidsapp.solvers.problem import Objective

#: Values per non-linear parameter in the dictionary, for models with one and with two of them.
N_VALUES = {1: 48, 2: 16}
#: How far, in entries, the minimum may lie from the best entry: two parameters can trade off along a valley.
REACH = {1: 1, 2: 2}
#: Gauss-Newton steps of a round, and rounds: they converge quickly, and voxels that have converged leave.
N_STEPS = 3
N_ROUNDS = 4
#: Decrease of the cost that one more step would bring, relative to the cost and to the signal's energy, that is not
#: worth the step; the second is the resolution of single precision.
COST_TOLERANCE = 1e-6
ENERGY_TOLERANCE = 1e-12
#: Singular values of the basis functions, relative to the largest, that are left out as linearly dependent.
RANK_TOLERANCE = 1e-4
#: Relative step of the differences that give second derivatives.
DIFFERENCE = 1e-3
#: Signs that leave no more than this multiple of the least unexplained energy are refined as well.
AMBIGUITY = 1.5


class VariableProjection(NonLinearLeastSquares):
    """Least squares by variable projection (Golub and Pereyra 1973; Kaufman 1975).

    The linear parameters are eliminated: each entry of a dictionary over the non-linear parameters explains what
    its basis functions span. The best entry, refined by interpolation and by a few Gauss-Newton steps, is the minimum
    in nearly all voxels. Where a bound is met or the steps do not settle, the bounded search of the base class
    decides.
    """

    name: ClassVar[str] = "varpro"
    title: ClassVar[str] = "Bounded non-linear least squares by variable projection"
    reference: ClassVar[str] = "Golub and Pereyra 1973, SIAM J Numer Anal 10:413; Kaufman 1975, BIT 15:49"
    methods: ClassVar[str] = (
        "With the estimator varpro, the linear parameters were eliminated by variable projection [@golub] [@kaufman]."
    )
    bibliography: ClassVar[str] = """
    @article{golub,
      author = {Golub GH, Pereyra V},
      year = {1973},
      title = {The differentiation of pseudo-inverses and nonlinear least squares problems whose variables separate},
      journal = {SIAM Journal on Numerical Analysis},
      volume = {10},
      pages = {413-432},
      doi = {10.1137/0710036}
    }
    @article{kaufman,
      author = {Kaufman L},
      year = {1975},
      title = {A variable projection method for solving separable nonlinear least squares problems},
      journal = {BIT Numerical Mathematics},
      volume = {15},
      pages = {49-57},
      doi = {10.1007/BF01932995}
    }
    """

    model: SeparableModel

    @classmethod
    def supports(cls, model: SignalModel) -> bool:
        """Return whether the model is linear in all but one or two parameters."""
        return isinstance(model, SeparableModel)

    def _prepare(self, acquisition: Acquisition, seed: int) -> None:
        """Compute the dictionaries."""
        super()._prepare(acquisition, seed)
        self.search = ProjectionSearch(self.problem, self.model, self.search, self.max_iterations)


class ProjectionSearch:
    """Finds minima by variable projection, and by another search where a bound is met or the steps do not settle.

    Parameters
    ----------
    problem : ScaledModel
    model : SeparableModel
        That of `problem`.
    bounded : Search
        The other search.
    iterations : int
        Most steps where those of the projection do not settle within the bounds.
    """

    def __init__(self, problem: ScaledModel, model: SeparableModel, bounded: Search, iterations: int) -> None:
        self._problem, self._model, self._bounded, self._iterations = problem, model, bounded, iterations
        acquisition = problem.acquisition
        chosen = [model.parameters[i] for i in model.nonlinear]
        n_values = N_VALUES[len(chosen)]
        self._axes = torch.stack([problem.tensor(axis_values(parameter, n_values)) for parameter in chosen])
        mesh = torch.stack([part.flatten() for part in torch.meshgrid(*self._axes, indexing="ij")])
        functions, _ = model.basis(mesh, acquisition)
        # (n_entries, n_measurements, n_functions)
        basis = torch.stack([f.expand(-1, mesh.shape[1]) for f in functions], dim=-1).transpose(0, 1)
        ones = [torch.ones_like(mesh[0])] * len(functions)
        self._basins = model.basins(model.combine(ones, mesh), acquisition)
        left, strength, _ = torch.linalg.svd(basis * problem.root_averages.unsqueeze(-1), full_matrices=False)
        left = left * (strength > RANK_TOLERANCE * strength[:, :1]).unsqueeze(1)
        # (n_measurements, n_functions * n_entries): one product projects a voxel on all entries.
        self._spans = left.permute(1, 2, 0).flatten(1).contiguous()

    def __call__(self, objective: Objective, target: torch.Tensor, directions: torch.Tensor | None = None) -> Found:
        """Return the lowest minima; see `Search`."""
        problem, bounds = self._problem, self._problem.bounds
        parts = zip(*(self._project(part) for part in torch.split(target, problem.batch)), strict=True)
        scaled, cost, settled = (torch.cat(part) for part in parts)
        near = torch.nonzero(problem.is_free(scaled).all(-1) & ~settled).squeeze(1)
        scaled[near], cost[near], settled[near] = minimise(
            lambda theta, index: objective(theta, near[index]),
            scaled[near],
            bounds,
            iterations=self._iterations,
            batch=problem.batch,
        )
        settled[near] &= problem.is_free(scaled[near]).all(-1)
        # Within the bounds the minimum may be another one altogether.
        within = ((scaled >= bounds.lower) & (scaled <= bounds.upper)).all(-1)
        beyond = torch.nonzero(~(within & settled)).squeeze(1)
        if len(beyond):
            scaled[beyond], cost[beyond], settled[beyond] = self._bounded(
                lambda theta, index: objective(theta, beyond[index]), target[beyond]
            )
        return Found(scaled, cost, settled)

    def _project(self, target: torch.Tensor) -> Found:
        """Return the minimum, scaled, without regard to the bounds of the linear parameters."""
        signs = self._model.signs(target, self._problem.acquisition)
        return self._among_basins(target) if signs is None else self._among_signs(target, signs)

    def _among_basins(self, target: torch.Tensor) -> Found:
        """Return what `_project` returns; where the best entry leads to a bound, try the other basins as well."""
        results = self._refine(target, self._search(target)[1])
        if not bool((self._basins != self._basins[0]).any()):
            return self._inside(results)
        bound = torch.nonzero(~self._problem.is_free(results[0])[:, self._model.nonlinear].all(-1)).squeeze(1)
        if len(bound):
            basin = self._model.basins(results[0][bound] * self._problem.scale, self._problem.acquisition)
            _, entries = self._search(target[bound], outside=basin)
            _keep_lower(results, self._refine(target[bound], entries), bound)
        return results

    def _among_signs(self, target: torch.Tensor, signs: torch.Tensor) -> Found:
        """Return what `_project` returns; refine the second-best signs if they explain the signal nearly as well."""
        peaks = [self._search(target * pattern) for pattern in signs]
        explained = torch.stack([height for height, _ in peaks])
        entries = torch.stack([entry for _, entry in peaks])
        order = explained.argsort(0, descending=True)
        voxel = torch.arange(len(target), device=self._problem.device)
        results = self._refine(target * signs[order[0], voxel], entries[order[0], :, voxel].T)
        missed = target.square().sum(-1) - explained.gather(0, order)
        close = torch.nonzero(missed[1] < AMBIGUITY * missed[0]).squeeze(1)
        second = order[1, close]
        others = self._refine(target[close] * signs[second, close], entries[second, :, close].T)
        _keep_lower(results, others, close)
        return self._inside(results)

    def _inside(self, results: Found) -> Found:
        """Return results that do not count as settled on a bound, as there may be a lower cost within the bounds."""
        scaled, cost, settled = results
        return Found(scaled, cost, settled & self._problem.is_free(scaled)[:, self._model.nonlinear].all(-1))

    def _search(
        self, signals: torch.Tensor, *, outside: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the energy that the best entry explains (n,), and its interpolated position (n_nonlinear, n).

        With `outside`, (n,), entries of these basins do not count.
        """
        sizes = [self._axes.shape[1]] * len(self._axes)
        n_functions = self._spans.shape[1] // math.prod(sizes)
        found = []
        everything = torch.arange(len(signals), device=self._problem.device)
        for index in torch.split(everything, max(1, BATCH_VALUES // self._spans.shape[1])):
            explained = (signals[index] @ self._spans).square()
            if n_functions > 1:
                explained = explained.unflatten(1, (n_functions, -1)).sum(1)
            eligible = explained
            if outside is not None:
                eligible = explained.masked_fill(self._basins == outside[index].unsqueeze(1), -torch.inf)
            found.append(_interpolate(explained.view(len(index), *sizes), eligible.argmax(-1)))
        heights, positions = zip(*found, strict=True)
        return torch.cat(heights), torch.cat(positions, dim=1)

    def _refine(self, signals: torch.Tensor, entry: torch.Tensor) -> Found:
        """Return the minimum near dictionary entries, scaled, its cost, and whether the steps settled.

        Parameters
        ----------
        signals : Tensor
            (n_voxels, n_measurements), with their signs.
        entry : Tensor
            (n_nonlinear, n_voxels), position in the dictionary.
        """
        floor = entry.long().clamp(max=self._axes.shape[1] - 2)
        nonlinear = torch.lerp(self._axes.gather(1, floor), self._axes.gather(1, floor + 1), entry - floor)
        signals = signals.T.contiguous()
        theta, cost, settled = self._round(nonlinear, entry.round().long(), signals, careful=False)
        for _ in range(N_ROUNDS - 1):
            rest = torch.nonzero(~settled).squeeze(1)
            if not len(rest):
                break
            start = theta[rest][:, self._model.nonlinear].T
            theta[rest], cost[rest], settled[rest] = self._round(
                start, self._nearest(start), signals[:, rest], careful=True
            )
        return Found(theta / self._problem.scale, cost, settled & theta.isfinite().all(-1))

    def _round(
        self, nonlinear: torch.Tensor, nearest: torch.Tensor, signals: torch.Tensor, *, careful: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Make some steps near an entry; return theta (n, n_parameters), its cost, and whether it is the minimum."""
        last, reach = self._axes.shape[1] - 1, REACH[len(self._axes)]
        lower = self._axes.gather(1, (nearest - reach).clamp(min=0))
        upper = self._axes.gather(1, (nearest + reach).clamp(max=last))
        for _ in range(N_STEPS):
            nonlinear = (nonlinear + self._step(nonlinear, signals, careful=careful)[1]).clamp(lower, upper)
        coefficients, _, promise, cost = self._step(nonlinear, signals, careful=careful)
        settled = promise <= COST_TOLERANCE * cost + ENERGY_TOLERANCE * signals.square().sum(0)
        return self._model.combine(coefficients, nonlinear), cost, settled

    def _nearest(self, nonlinear: torch.Tensor) -> torch.Tensor:
        """Return the position of the nearest entry, (n_nonlinear, n_voxels)."""
        above = torch.searchsorted(self._axes, nonlinear.contiguous()).clamp(1, self._axes.shape[1] - 1)
        middle = (self._axes.gather(1, above - 1) + self._axes.gather(1, above)) / 2
        return torch.where(nonlinear < middle, above - 1, above)

    def _step(
        self, nonlinear: torch.Tensor, signals: torch.Tensor, *, careful: bool
    ) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return coefficients, the step (n_nonlinear, n_voxels), the decrease that it promises, and the cost.

        A careful step is Newton's instead of Gauss and Newton's, and does not try to leave the bounds.
        """
        functions, slopes = self._basis(nonlinear)
        equations = project(functions, slopes, signals)
        cost = equations.residual.square().sum(0)
        if not careful:
            return equations.coefficients, *gauss_newton(equations), cost
        uphill = [size * value for size, value in zip(equations.sizes, equations.gradient, strict=True)]
        held = [
            ((value <= axis[0]) & (rise < 0)) | ((value >= axis[-1]) & (rise > 0))
            for value, axis, rise in zip(nonlinear, self._axes, uphill, strict=True)
        ]
        return equations.coefficients, *newton(hold(equations, held), self._bends(nonlinear, equations)), cost

    def _basis(self, nonlinear: torch.Tensor) -> tuple[list[torch.Tensor], list[tuple[int, torch.Tensor]]]:
        """Return the model's basis functions and slopes, weighted."""
        functions, slopes = self._model.basis(nonlinear, self._problem.acquisition)
        weight = self._problem.root_averages.unsqueeze(-1)
        return [function * weight for function in functions], [(i, slope * weight) for i, slope in slopes]

    def _bends(self, nonlinear: torch.Tensor, equations: Equations) -> list[list[torch.Tensor]]:
        """Return the argument `bends` of `newton`, by differences of slopes; a few per cent of error do no harm."""
        here = [slope for _, slope in self._basis(nonlinear)[1]]
        bends = []
        for k, axis in enumerate(self._axes):
            moved = nonlinear.clone()
            moved[k] += DIFFERENCE * (nonlinear[k] + DIFFERENCE * axis[-1])
            there = [slope for _, slope in self._basis(moved)[1]]
            step = moved[k] - nonlinear[k]
            bends.append([dot(there[j] - here[j], equations.residual) / step for j in range(k + 1)])
        return bends


def _keep_lower(results: Found, others: Found, rows: torch.Tensor) -> None:
    """Replace minimum, cost and whether it is settled, in place, by those others of these rows that cost less."""
    better = others[1] < results[1][rows]
    for result, other in zip(results, others, strict=True):
        result[rows[better]] = other[better]


def _interpolate(explained: torch.Tensor, entry: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return height (n,) and position (n_axes, n), in entries, of the peaks of (n, *axes) values near entries (n,).

    A parabola through the entry and its neighbours, one axis at a time, refines both.
    """
    n_axes, size = explained.dim() - 1, explained.shape[1]
    flat = explained.flatten(1)
    height = flat.gather(1, entry.unsqueeze(1)).squeeze(1)
    positions, gain = [], torch.zeros_like(height)
    for axis in range(n_axes):
        stride = size ** (n_axes - 1 - axis)
        index = entry // stride % size
        inner = (index > 0) & (index < size - 1)
        offset = torch.where(inner, stride, 0)
        before, after = (flat.gather(1, (entry + sign * offset).unsqueeze(1)).squeeze(1) for sign in (-1, 1))
        curvature = (2 * height - before - after).clamp(min=torch.finfo(height.dtype).tiny)
        shift = ((after - before) / (2 * curvature)).clamp(-0.5, 0.5) * inner
        gain = gain + shift * (after - before) / 4
        positions.append(index + shift)
    return height + gain, torch.stack(positions)
