"""Bounded non-linear least squares, started from a dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.covariance import parameter_covariance, propagate
from qmri_bidsapp.estimators.levenberg_marquardt import COST_TOLERANCE, Evaluate, minimise
from qmri_bidsapp.estimators.voxels import assemble, covariates_of, noise_of, screen
from qmri_bidsapp.models.base import SignalModel

#: Size of the dictionary of starting points, and most values per parameter.
DICTIONARY_SIZE = 1500
MAX_VALUES = 100
#: Basins of the model from which a fit is started.
N_BASINS = 3
#: Steps after which starts are compared, and cost relative to the lowest at which one still goes on. Minima
#: at which a magnitude changes its sign are reached slowly: a stricter choice would now and then keep the
#: wrong start.
SCOUT_ITERATIONS = 4
PROMISING = 2.0
#: Distance from a bound, relative to its range, that counts as on the bound.
BOUND_TOLERANCE = 1e-5
#: How far inside its bounds, relative to the range, a parameter that ended on one is started again.
INSET = 0.05
#: Voxels that are solved together: enough to hide the cost of a call, few enough for the processor's cache.
CHUNK_SIZE = 8192


class NonLinearLeastSquares(Estimator):
    """Levenberg-Marquardt within bounds (Marquardt 1963), started from the best entries of a dictionary.

    The dictionary spans all parameters but the amplitude, which is projected out; a single starting point
    would lead to local minima and to a precision that hides bias. It holds for neutral covariates: others only shift
    the start; steps and standard deviations use each voxel's own.
    """

    name: ClassVar[str] = "nlls"
    title: ClassVar[str] = "Bounded non-linear least squares (Levenberg-Marquardt)"
    std_kind: ClassVar[str] = "Cramer-Rao bound at the estimate"
    reference: ClassVar[str] = "Marquardt 1963, J Soc Ind Appl Math 11:431"

    #: Models with more parameters would need a dictionary too large to be searched.
    MAX_PARAMETERS: ClassVar[int] = 4

    @classmethod
    def supports(cls, model: SignalModel) -> bool:
        """Tell whether the model has few enough parameters."""
        return len(model.parameters) <= cls.MAX_PARAMETERS

    def fit(self, acquisition: Acquisition, *, seed: int = 0) -> Self:
        """Compute the dictionary; nothing is random, so that `seed` has no effect."""
        self.model.check(acquisition)
        self.acquisition_ = acquisition
        parameters = self.model.parameters
        self._scale = self._tensor([p.scale for p in parameters])
        self._lower = self._tensor([p.bounds[0] for p in parameters]) / self._scale
        self._upper = self._tensor([p.bounds[1] for p in parameters]) / self._scale
        self._root_averages = self._tensor(acquisition.n_averages).sqrt()
        grid = self.model.with_covariates(_grid(parameters).to(self.device))
        labels = self.model.basins(grid, acquisition)
        order = torch.argsort(labels, stable=True)
        # Entries of one basin are neighbours, so that a slice finds them.
        grid = grid[order]
        self._basin_sizes = [int(size) for size in torch.bincount(labels) if size]
        atoms = self.model.signal(grid, acquisition) * self._root_averages
        self._grid = grid[:, : len(parameters)]
        self._norm = atoms.square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
        self._atoms = atoms / self._norm.unsqueeze(-1)
        return self

    def predict(
        self,
        signals: npt.ArrayLike,
        *,
        noise_std: npt.ArrayLike | None = None,
        covariates: npt.ArrayLike | None = None,
    ) -> ParameterMaps:
        """Estimate; see `Estimator.predict`."""
        if not hasattr(self, "acquisition_"):
            raise ProtocolError("The estimator has no protocol yet: call fit(acquisition) first.")
        signals = np.asarray(signals)
        known = covariates_of(self.model, covariates, len(signals))
        protocol = self.acquisition_
        values, status, usable = screen(signals, protocol.n_measurements, known, has_sign=protocol.has_sign)
        noise = noise_of(noise_std, usable)
        values, known = values[usable], known[usable]
        n_columns = len(self.model.parameters) + len(self.model.derived)
        estimate, std = (np.empty((len(values), n_columns)) for _ in range(2))
        fitted = np.empty(len(values), dtype=np.uint8)
        with torch.no_grad():
            for first in range(0, len(values), CHUNK_SIZE):
                part = slice(first, first + CHUNK_SIZE)
                estimate[part], std[part], fitted[part] = self._solve(
                    values[part], None if noise is None else noise[part], known[part]
                )
        return assemble(self.model, self.std_kind, status, usable, estimate, std, fitted)

    def _solve(
        self,
        values: npt.NDArray[np.float32],
        noise: npt.NDArray[np.float32] | None,
        covariates: npt.NDArray[np.float32],
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
        """Return estimates and standard deviations in the parameters' units, and statuses."""
        signal = torch.as_tensor(values, device=self.device)
        size = signal.abs().amax(-1, keepdim=True)
        target = signal / size * self._root_averages
        known = torch.as_tensor(covariates, device=self.device)
        weight = self._root_averages.unsqueeze(-1) * self._scale

        def evaluate(scaled: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            theta = self.model.with_covariates(scaled * self._scale, known[index])
            jacobian = self.model.jacobian(theta, self.acquisition_) * weight
            # The signal is proportional to the amplitude, so that its derivative holds the signal as well.
            return jacobian[..., 0] * scaled[:, :1] - target[index], jacobian

        scaled, cost, converged = self._leave_bounds(evaluate, *self._best_minimum(evaluate, target))
        free = self._free(scaled)
        _, jacobian = evaluate(scaled, torch.arange(len(scaled), device=self.device))
        variance = self._variance(cost, noise, size.squeeze(-1))
        unit = self._scale.double().expand(len(scaled), -1).clone()
        unit[:, :1] *= size.double()
        theta = self.model.with_covariates(scaled.double() * unit, known.double())
        covariance = parameter_covariance(jacobian, variance, free) * unit.unsqueeze(1) * unit.unsqueeze(2)
        estimate, std = propagate(self.model, theta, covariance, free)
        status = torch.where(converged, int(Status.OK), int(Status.NOT_CONVERGED))
        status = torch.where(free.all(-1), status, int(Status.AT_BOUND))
        return estimate.cpu().numpy(), std.cpu().numpy(), status.cpu().numpy().astype(np.uint8)

    def _best_minimum(
        self, evaluate: Evaluate, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the minimum (n, n_parameters), scaled, its cost (n,) and whether it was reached (n,).

        A few steps are made from the best entry of each promising basin; those not far from the deepest go
        on.
        """
        starts = self._starts(target)
        n_starts, n_voxels, n_parameters = starts.shape
        start = starts.reshape(-1, n_parameters)
        voxel = torch.arange(n_voxels, device=self.device).repeat(n_starts)
        row = torch.arange(len(start), device=self.device)

        def evaluate_rows(scaled: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return evaluate(scaled, voxel[row[index]])

        bounds = (self._lower, self._upper)
        if n_starts > 1:
            start, cost, _ = minimise(evaluate_rows, start, *bounds, iterations=SCOUT_ITERATIONS)
            table = cost.reshape(n_starts, n_voxels)
            row = torch.nonzero((table <= PROMISING * table.amin(0)).flatten()).squeeze(1)
        scaled, cost, converged = minimise(evaluate_rows, start[row], *bounds)
        final = torch.full((n_starts * n_voxels,), torch.inf, device=self.device)
        final[row] = cost
        deepest = final.reshape(n_starts, n_voxels).argmin(0) * n_voxels + voxel[:n_voxels]
        position = torch.zeros_like(voxel)
        position[row] = torch.arange(len(row), device=self.device)
        chosen = position[deepest]
        return scaled[chosen], cost[chosen], converged[chosen]

    def _leave_bounds(
        self, evaluate: Evaluate, scaled: torch.Tensor, cost: torch.Tensor, converged: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Start voxels that ended on a bound once more, from inside, and keep what is lower.

        A bound can trap a fit: in SMT the derivative by the fraction vanishes wherever the fraction is one,
        and a fit that touches this bound on its way would never leave it.
        """
        voxel = torch.nonzero(~self._free(scaled).all(-1)).squeeze(1)
        inset = INSET * (self._upper - self._lower)
        # The amplitude follows in one step, being linear.
        inset[0] = 0
        start = scaled[voxel].clamp(self._lower + inset, self._upper - inset)
        found, found_cost, found_converged = minimise(
            lambda theta, index: evaluate(theta, voxel[index]), start, self._lower, self._upper
        )
        better = found_cost < (1 - COST_TOLERANCE) * cost[voxel]
        chosen = voxel[better]
        scaled[chosen], cost[chosen] = found[better], found_cost[better]
        converged[chosen] = found_converged[better]
        return scaled, cost, converged

    def _free(self, scaled: torch.Tensor) -> torch.Tensor:
        """Tell which parameters (n, n_parameters) are off their bounds."""
        margin = BOUND_TOLERANCE * (self._upper - self._lower)
        return (scaled > self._lower + margin) & (scaled < self._upper - margin)

    def _starts(self, target: torch.Tensor) -> torch.Tensor:
        """Return the scaled parameters (n_starts, n, n_parameters) that explain most of each voxel's signal.

        Each start is the best dictionary entry of one basin, with its amplitude; the best basins are taken.
        """
        projection = target @ self._atoms.T
        tops = [part.max(-1) for part in torch.split_with_sizes(projection, self._basin_sizes, dim=-1)]
        offsets = np.cumsum([0, *self._basin_sizes[:-1]]).tolist()
        explained = torch.stack([top.values for top in tops])
        entries = torch.stack([top.indices + offset for top, offset in zip(tops, offsets, strict=True)])
        best = explained.topk(min(N_BASINS, len(tops)), dim=0)
        entry = entries.gather(0, best.indices)
        starts = self._grid[entry]
        starts[..., 0] = best.values / self._norm[entry]
        return (starts / self._scale).clamp(self._lower, self._upper)

    def _variance(self, cost: torch.Tensor, noise: npt.NDArray[np.float32] | None, size: torch.Tensor) -> torch.Tensor:
        """Return the noise variance (n,) of one measurement relative to the voxel's size.

        It is as given, or from the residuals, whose squares sum to `cost`; NaN where no residual is free.
        """
        if noise is not None:
            return (torch.as_tensor(noise, device=self.device) / size).square()
        n_free = self.acquisition_.n_measurements - len(self.model.parameters)
        return cost / n_free if n_free > 0 else torch.full_like(cost, torch.nan)

    def _tensor(self, values: Sequence[float]) -> torch.Tensor:
        """Return values in the precision and on the device of the computation."""
        return torch.tensor(values, dtype=torch.float32, device=self.device)


def _grid(parameters: tuple[Parameter, ...]) -> torch.Tensor:
    """Return (n_entries, n_parameters) starts of amplitude one; wide positive ranges are logarithmic."""
    n_values = min(MAX_VALUES, int(DICTIONARY_SIZE ** (1 / max(1, len(parameters) - 1))))
    axes = []
    for parameter in parameters[1:]:
        low, high = parameter.bounds
        wide = low > 0 and high / low > 20
        axes.append(np.geomspace(low, high, n_values) if wide else np.linspace(low, high, n_values))
    mesh = np.meshgrid(*axes, indexing="ij")
    columns = [np.ones(mesh[0].size), *(axis.ravel() for axis in mesh)]
    return torch.tensor(np.stack(columns, axis=-1), dtype=torch.float32)
