"""Variable projection: least squares over the non-linear parameters alone."""

from __future__ import annotations

from typing import ClassVar

import torch
from typing_extensions import Self

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.estimators.cholesky import factorise, solve
from qmri_bidsapp.estimators.least_squares import NonLinearLeastSquares
from qmri_bidsapp.estimators.levenberg_marquardt import Objective, minimise
from qmri_bidsapp.estimators.starts import axis_values
from qmri_bidsapp.models.base import SeparableModel, SignalModel

#: Values per non-linear parameter in the dictionary, for models with one and with two of them.
N_VALUES = {1: 48, 2: 16}
#: How far, in entries, the minimum may lie from the best entry: two parameters can trade off along a valley.
REACH = {1: 1, 2: 2}
#: Gauss-Newton steps of a round, and rounds: they converge quickly, and voxels that have converged leave.
N_STEPS = 3
N_ROUNDS = 4
#: Decrease of the cost that one more step would bring, relative to the cost and to the signal's energy, that is not
#: worth the step; the second is what single precision resolves.
COST_TOLERANCE = 1e-6
ENERGY_TOLERANCE = 1e-12
#: Directions in which the basis functions cannot be told apart, relative to the strongest, are left out.
RANK_TOLERANCE = 1e-4
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

    model: SeparableModel

    @classmethod
    def supports(cls, model: SignalModel) -> bool:
        """Tell whether the model is linear in some parameters, and in all but two at most."""
        return isinstance(model, SeparableModel)

    def fit(self, acquisition: Acquisition, *, seed: int = 0) -> Self:
        """Compute the dictionaries; nothing is random, so that `seed` has no effect."""
        super().fit(acquisition, seed=seed)
        chosen = [self.model.parameters[i] for i in self.model.nonlinear]
        n_values = N_VALUES[len(chosen)]
        self._axes = torch.stack([self._tensor(axis_values(parameter, n_values)) for parameter in chosen])
        mesh = torch.stack([part.flatten() for part in torch.meshgrid(*self._axes, indexing="ij")])
        functions, _ = self.model.basis(mesh, acquisition)
        # (n_entries, n_measurements, n_functions)
        basis = torch.stack([f.expand(-1, mesh.shape[1]) for f in functions], dim=-1).transpose(0, 1)
        left, strength, _ = torch.linalg.svd(basis * self._root_averages.unsqueeze(-1), full_matrices=False)
        left = left * (strength > RANK_TOLERANCE * strength[:, :1]).unsqueeze(1)
        # (n_measurements, n_functions * n_entries): one product projects a voxel on all entries.
        self._spans = left.permute(1, 2, 0).flatten(1).contiguous()
        return self

    def _best_minimum(
        self, objective: Objective, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return minimum, cost and whether it was reached; see the base class."""
        parts = zip(*(self._project(part) for part in torch.split(target, self._batch)), strict=True)
        scaled, cost, settled = (torch.cat(part) for part in parts)
        inside = self._free(scaled).all(-1)
        near = torch.nonzero(inside & ~settled).squeeze(1)
        scaled[near], cost[near], settled[near] = minimise(
            lambda theta, index: objective(theta, near[index]), scaled[near], self._bounds, batch=self._batch
        )
        # Within the bounds the minimum may be another one altogether.
        beyond = torch.nonzero(~(inside & self._free(scaled).all(-1))).squeeze(1)
        if len(beyond):
            scaled[beyond], cost[beyond], settled[beyond] = super()._best_minimum(
                lambda theta, index: objective(theta, beyond[index]), target[beyond]
            )
        return scaled, cost, settled

    def _project(self, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the unbounded minimum, scaled, its cost, and whether the steps settled."""
        signs = self.model.signs(target, self.acquisition_)
        if signs is None:
            return self._refine(target, self._search(target)[1])
        peaks = [self._search(target * pattern) for pattern in signs]
        explained = torch.stack([height for height, _ in peaks])
        entries = torch.stack([entry for _, entry in peaks])
        order = explained.argsort(0, descending=True)
        voxel = torch.arange(len(target), device=self.device)
        results = self._refine(target * signs[order[0], voxel], entries[order[0], :, voxel].T)
        # Signs that explain the signal nearly as well may do better once refined.
        missed = target.square().sum(-1) - explained.gather(0, order)
        close = torch.nonzero(missed[1] < AMBIGUITY * missed[0]).squeeze(1)
        second = order[1, close]
        others = self._refine(target[close] * signs[second, close], entries[second, :, close].T)
        better = others[1] < results[1][close]
        for result, other in zip(results, others, strict=True):
            result[close[better]] = other[better]
        return results

    def _search(self, signals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the best entry explains of each signal (n,), and its interpolated position (n_nonlinear, n)."""
        n_values = self._axes.shape[1]
        n_entries = n_values ** len(self._axes)
        explained = (signals @ self._spans).square().view(len(signals), -1, n_entries).sum(1)
        return _interpolated_peak(explained.view(-1, *[n_values] * len(self._axes)))

    def _refine(self, signals: torch.Tensor, entry: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the minimum in the cells around dictionary entries, scaled, its cost, and whether the steps settled.

        Parameters
        ----------
        signals : Tensor
            (n_voxels, n_measurements), with their signs.
        entry : Tensor
            (n_nonlinear, n_voxels), position in the dictionary.
        """
        last, reach = self._axes.shape[1] - 1, REACH[len(self._axes)]
        nearest, floor = entry.round().long(), entry.floor().long().clamp(max=last - 1)
        lower = self._axes.gather(1, (nearest - reach).clamp(min=0))
        upper = self._axes.gather(1, (nearest + reach).clamp(max=last))
        nonlinear = torch.lerp(self._axes.gather(1, floor), self._axes.gather(1, floor + 1), entry - floor)
        signals = signals.T.contiguous()
        theta, cost, settled = self._round(nonlinear, lower, upper, signals)
        for _ in range(N_ROUNDS - 1):
            rest = torch.nonzero(~settled).squeeze(1)
            if not len(rest):
                break
            start = theta[rest][:, self.model.nonlinear].T
            theta[rest], cost[rest], settled[rest] = self._round(
                start, lower[:, rest], upper[:, rest], signals[:, rest]
            )
        return theta / self._scale, cost, settled & theta.isfinite().all(-1)

    def _round(
        self, nonlinear: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, signals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Make some steps between limits; return theta (n, n_parameters), its cost, and whether it is the minimum."""
        for _ in range(N_STEPS):
            nonlinear = (nonlinear + self._step(nonlinear, signals)[1]).clamp(lower, upper)
        coefficients, _, cost, promise = self._step(nonlinear, signals)
        settled = promise <= COST_TOLERANCE * cost + ENERGY_TOLERANCE * signals.square().sum(0)
        return self.model.combine(coefficients, nonlinear), cost, settled

    def _step(
        self, nonlinear: torch.Tensor, signed: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return coefficients, the Gauss-Newton step (n_nonlinear, n_voxels), the cost and its promised decrease."""
        functions, slopes = self.model.basis(nonlinear, self.acquisition_)
        weight = self._root_averages.unsqueeze(-1)
        functions = [function * weight for function in functions]
        tangents = [slope * weight for _, slope in slopes]
        n_functions, columns = len(functions), [*functions, *tangents]
        gram = [[_dot(columns[i], columns[j]) for j in range(i + 1)] for i in range(len(columns))]
        linear = [row[: i + 1] for i, row in enumerate(gram[:n_functions])]
        coefficients = list(solve(factorise(linear), [_dot(function, signed) for function in functions]).unbind(-1))
        residual = signed - sum(c * f for c, f in zip(coefficients, functions, strict=True))
        gradient = [_dot(tangent, residual) for tangent in tangents]
        right = [torch.zeros_like(gradient[0])] * n_functions + gradient
        step = solve(factorise(gram), right).unbind(-1)[n_functions:]
        promise = sum(g * s for g, s in zip(gradient, step, strict=True))
        # The tangents were taken at coefficients of one.
        steps = [value / coefficients[position] for value, (position, _) in zip(step, slopes, strict=True)]
        return coefficients, torch.stack(steps), residual.square().sum(0), torch.as_tensor(promise)


def _dot(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first * second).sum(0)


def _interpolated_peak(explained: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the height (n,) and the position (n_axes, n), in entries, of the highest peak of (n, *axes) values.

    A parabola through the highest entry and its neighbours, one axis at a time, refines both.
    """
    n_axes, size = explained.dim() - 1, explained.shape[1]
    flat = explained.flatten(1)
    height, entry = flat.max(-1)
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
