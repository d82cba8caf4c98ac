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
from qmri_bidsapp.estimators.covariance import parameter_covariance, standard_deviations
from qmri_bidsapp.estimators.levenberg_marquardt import Evaluate, minimise
from qmri_bidsapp.estimators.voxels import assemble, screen
from qmri_bidsapp.models.base import SignalModel

#: Size of the dictionary of starting points, and most values per parameter.
DICTIONARY_SIZE = 1500
MAX_VALUES = 100
#: Basins of the model from which a fit is started.
N_BASINS = 3
#: Distance from a bound, relative to its range, that counts as on the bound.
BOUND_TOLERANCE = 1e-5


class NonLinearLeastSquares(Estimator):
    """Levenberg-Marquardt within bounds (Marquardt 1963), started from the best entry of a dictionary.

    The dictionary spans all parameters but the amplitude, which is projected out; a single starting point would
    lead to local minima and to a precision that hides bias.
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

        def constant(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=self.device)

        self._scale = constant([p.scale for p in parameters])
        self._lower = constant([p.bounds[0] for p in parameters]) / self._scale
        self._upper = constant([p.bounds[1] for p in parameters]) / self._scale
        self._root_averages = constant(acquisition.n_averages).sqrt()
        self._grid = _grid(parameters).to(self.device)
        atoms = self.model.signal(self._grid, acquisition) * self._root_averages
        self._norm = atoms.square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)
        self._atoms = atoms
        labels = self.model.basins(self._grid, acquisition)
        self._basins = [torch.nonzero(labels == label).squeeze(1) for label in sorted(set(labels.tolist()))]
        return self

    def predict(self, signals: npt.ArrayLike, *, noise_std: npt.ArrayLike | None = None) -> ParameterMaps:
        """Estimate; see `Estimator.predict`."""
        if not hasattr(self, "acquisition_"):
            raise ProtocolError("The estimator has no protocol yet: call fit(acquisition) first.")
        values, status, usable = screen(signals, self.acquisition_.n_measurements)
        noise = None if noise_std is None else np.broadcast_to(np.asarray(noise_std, np.float32), status.shape)[usable]
        with torch.no_grad():
            estimate, std, fitted = self._solve(values[usable], noise)
        return assemble(self.model, self.std_kind, status, usable, estimate, std, fitted)

    def _solve(
        self, values: npt.NDArray[np.float32], noise: npt.NDArray[np.float32] | None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
        """Return estimates and standard deviations in the parameters' units, and statuses."""
        signal = torch.as_tensor(values, device=self.device)
        size = signal.abs().amax(-1, keepdim=True)
        target = signal / size * self._root_averages

        def evaluate(scaled: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            theta = scaled * self._scale
            residual = self.model.signal(theta, self.acquisition_) * self._root_averages - target[index]
            jacobian = self.model.jacobian(theta, self.acquisition_) * self._root_averages.unsqueeze(-1) * self._scale
            return residual, jacobian

        scaled, converged = self._best_minimum(evaluate, target)
        margin = BOUND_TOLERANCE * (self._upper - self._lower)
        free = (scaled > self._lower + margin) & (scaled < self._upper - margin)
        residual, jacobian = evaluate(scaled, torch.arange(len(scaled), device=self.device))
        variance = self._variance(residual, None if noise is None else torch.as_tensor(noise, device=self.device), size)
        unit = self._scale.double().expand(len(scaled), -1).clone()
        unit[:, :1] *= size.double()
        theta = scaled.double() * unit
        covariance = parameter_covariance(jacobian, variance, free) * unit.unsqueeze(1) * unit.unsqueeze(2)
        std = standard_deviations(self.model, theta, covariance, free)
        estimate = torch.cat([theta, self.model.derive(theta)], dim=-1)
        status = torch.where(converged, int(Status.OK), int(Status.NOT_CONVERGED))
        status = torch.where(free.all(-1), status, int(Status.AT_BOUND))
        return estimate.cpu().numpy(), std.cpu().numpy(), status.cpu().numpy().astype(np.uint8)

    def _best_minimum(self, evaluate: Evaluate, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the lowest minimum (n, n_parameters), scaled, of those reached from the best starts."""
        index = torch.arange(len(target), device=self.device)
        scaled, converged = torch.empty(0), torch.empty(0)
        lowest = torch.full((len(target),), torch.inf, device=self.device)
        for number, start in enumerate(self._starts(target)):
            found, done = minimise(evaluate, start, self._lower, self._upper)
            cost = evaluate(found, index)[0].square().sum(-1)
            better = cost < lowest
            scaled = found if number == 0 else torch.where(better.unsqueeze(1), found, scaled)
            converged = done if number == 0 else torch.where(better, done, converged)
            lowest = torch.minimum(cost, lowest)
        return scaled, converged

    def _starts(self, target: torch.Tensor) -> list[torch.Tensor]:
        """Return the entries that explain most of each voxel's signal, with amplitude, scaled: of its best basins."""
        projection = (target @ self._atoms.T).clamp(min=0)
        score = projection.square() / self._norm
        tops = [score[:, entries].max(-1) for entries in self._basins]
        values = torch.stack([top.values for top in tops], dim=-1)
        entries = torch.stack([part[top.indices] for part, top in zip(self._basins, tops, strict=True)], dim=-1)
        order = values.topk(min(N_BASINS, len(tops)), dim=-1).indices
        return [self._start(projection, entries.gather(1, order[:, rank : rank + 1])) for rank in range(order.shape[1])]

    def _start(self, projection: torch.Tensor, entry: torch.Tensor) -> torch.Tensor:
        """Return the scaled parameters of one dictionary entry per voxel, (n, 1) indices, with its amplitude."""
        start = self._grid[entry.squeeze(1)].clone()
        start[:, 0] = projection.gather(1, entry).squeeze(1) / self._norm[entry.squeeze(1)]
        return (start / self._scale).clamp(self._lower, self._upper)

    def _variance(self, residual: torch.Tensor, noise: torch.Tensor | None, size: torch.Tensor) -> torch.Tensor:
        """Return the noise variance of one measurement relative to the voxel's size: as given, or from residuals."""
        if noise is not None:
            return (noise / size.squeeze(-1)).square()
        n_residuals, n_parameters = residual.shape[-1], len(self.model.parameters)
        if n_residuals <= n_parameters:
            return torch.full_like(residual[:, 0], torch.nan)
        return residual.square().sum(-1) / (n_residuals - n_parameters)


def _grid(parameters: tuple[Parameter, ...]) -> torch.Tensor:
    """Return (n_entries, n_parameters) starting points with amplitude one: logarithmic for wide positive ranges."""
    n_values = min(MAX_VALUES, int(DICTIONARY_SIZE ** (1 / max(1, len(parameters) - 1))))
    axes = []
    for parameter in parameters[1:]:
        low, high = parameter.bounds
        wide = low > 0 and high / low > 20
        axes.append(np.geomspace(low, high, n_values) if wide else np.linspace(low, high, n_values))
    mesh = np.meshgrid(*axes, indexing="ij")
    columns = [np.ones(mesh[0].size), *(axis.ravel() for axis in mesh)]
    return torch.tensor(np.stack(columns, axis=-1), dtype=torch.float32)
