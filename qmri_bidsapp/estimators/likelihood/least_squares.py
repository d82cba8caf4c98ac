"""Bounded non-linear least squares, started from a dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.likelihood.covariance import covariance_root, propagate, scale_columns
from qmri_bidsapp.estimators.likelihood.skewed_errors import error_along
from qmri_bidsapp.estimators.likelihood.starts import Starts, starts_for
from qmri_bidsapp.estimators.parallel import predict_chunks
from qmri_bidsapp.estimators.voxels import as_signals, assemble, covariates_of, noise_of, screen
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.compose import Composition
from qmri_bidsapp.solvers.cholesky import Triangle
from qmri_bidsapp.solvers.levenberg_marquardt import COST_TOLERANCE, MAX_ITERATIONS, minimise
from qmri_bidsapp.solvers.problem import Bounds, Evaluate, Objective, sum_of_squares

#: Cost relative to the lowest at which a start still goes on. Minima at which a magnitude changes its sign are reached
#: slowly: a stricter choice would now and then keep the wrong start.
PROMISING = 2.0
#: Distance from a bound, relative to its range, that counts as on the bound.
BOUND_TOLERANCE = 1e-5
#: How far inside its bounds, relative to the range, a parameter that ended on one is started again.
INSET = 0.05
#: Voxels that are solved together: enough that the few which take many steps share the cost of a call.
CHUNK_SIZE = 131_072
#: Values that are evaluated at a time: few enough for the processor's cache, enough that threads, which take turns in
#: the interpreter between operations, seldom wait for each other.
BATCH_VALUES = 2**19
#: Voxels whose starting points are looked up at a time.
START_BATCH = 2048


class Voxels(NamedTuple):
    """Voxels that are solved together.

    Attributes
    ----------
    target : Tensor
        (n, n_measurements) signals, relative to the voxel's largest, times the square root of the number of averages.
    size : Tensor
        (n,) largest absolute signal.
    covariates : Tensor
        (n, n_covariates).
    noise_variance : Tensor or None
        (n,) variance of one raw measurement, in the unit of `target`; None where it is to be estimated.
    directions : Tensor or None
        (n, n_bundles, 3) directions to start from.
    """

    target: torch.Tensor
    size: torch.Tensor
    covariates: torch.Tensor
    noise_variance: torch.Tensor | None
    directions: torch.Tensor | None = None


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
    std_from_residuals: ClassVar[bool] = True

    #: Models with more parameters would need a dictionary too large to be searched.
    MAX_PARAMETERS: ClassVar[int] = 4
    methods: ClassVar[str] = ""

    @classmethod
    def supports(cls, model: SignalModel) -> bool:
        """Tell whether starting points can be found: by a dictionary, once the direction of fibres is known."""
        return isinstance(model, Composition) or len(model.parameters) <= cls.MAX_PARAMETERS

    def fit(self, acquisition: Acquisition, *, seed: int = 0) -> Self:
        """Compute the dictionary; nothing is random in it, so that `seed` has no effect."""
        self.check(self.model, acquisition)
        self.acquisition_ = acquisition
        parameters = self.model.parameters
        self._scale = self._tensor([p.scale for p in parameters])
        lower, upper = (self._tensor([p.bounds[i] for p in parameters]) / self._scale for i in (0, 1))
        self._bounds = Bounds(lower, upper, torch.tensor([p.is_periodic for p in parameters], device=self.device))
        self._root_averages = self._tensor(acquisition.n_averages).sqrt()
        self._weight = self._root_averages.unsqueeze(-1) * self._scale
        self._batch = max(1, BATCH_VALUES // acquisition.n_measurements)
        self._starts = self._make_starts(acquisition, seed)
        return self

    def _make_starts(self, acquisition: Acquisition, seed: int) -> Starts:
        """Return what finds starting points."""
        return starts_for(self.model, acquisition, self.device)

    def predict(
        self,
        signals: npt.ArrayLike,
        *,
        noise_std: npt.ArrayLike | None = None,
        covariates: npt.ArrayLike | None = None,
        directions: npt.ArrayLike | None = None,
    ) -> ParameterMaps:
        """Estimate; see `Estimator.predict`.

        `directions`, (n_voxels, n_bundles, 3), in the frame of the gradient directions, is where the search for
        those of a composition begins; their lengths are in proportion to the bundles' shares. With several bundles
        it is needed, with one the signals tell.
        """
        if not hasattr(self, "acquisition_"):
            raise ProtocolError("The estimator has no protocol yet: call fit(acquisition) first.")
        signals = as_signals(signals, self.acquisition_.n_measurements)
        known = covariates_of(self.model, covariates, len(signals))
        noise = None if noise_std is None else noise_of(noise_std, len(signals))
        toward = None if directions is None else np.asarray(directions, dtype=np.float32)

        def predict(part: slice) -> ParameterMaps:
            values, status, usable = screen(signals[part], known[part], has_sign=self.acquisition_.has_sign)
            fitted = self._solve(
                values[usable],
                None if noise is None else noise[part][usable],
                known[part][usable],
                None if toward is None else toward[part][usable],
            )
            return assemble(self.model, self.std_kind, status, usable, *fitted)

        return predict_chunks(
            self.model,
            self.std_kind,
            predict,
            len(signals),
            largest=CHUNK_SIZE,
            device=self.device,
            with_variance=self.std_from_residuals,
        )

    def _solve(
        self,
        values: npt.NDArray[np.float32],
        noise: npt.NDArray[np.float32] | None,
        covariates: npt.NDArray[np.float32],
        directions: npt.NDArray[np.float32] | None,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Return estimates and standard deviations in the parameters' units, statuses, and the residuals' variance."""
        signal = torch.as_tensor(values, device=self.device)
        size = signal.abs().amax(-1)
        voxels = Voxels(
            target=signal / size.unsqueeze(-1) * self._root_averages,
            size=size,
            covariates=torch.as_tensor(covariates, device=self.device),
            noise_variance=None if noise is None else (torch.as_tensor(noise, device=self.device) / size).square(),
            directions=None if directions is None else torch.as_tensor(directions, device=self.device),
        )
        scaled, variance, converged = self._estimate(voxels)
        scaled = self.model.canonical(scaled * self._scale) / self._scale
        free = self._free(scaled)
        unit = self._scale.double().expand(len(scaled), -1).clone()
        unit[:, :1] *= size.double().unsqueeze(-1)
        theta = self.model.with_covariates(scaled.double() * unit, voxels.covariates.double())
        spreads = []
        for index in torch.split(torch.arange(len(scaled), device=self.device), self._batch):
            sensitivity = self._sensitivity(voxels, scaled[index], variance[index], index)
            root = covariance_root(sensitivity, variance[index], free[index])
            own, spread = propagate(self.model, theta[index], scale_columns(root, unit[index].unbind(-1)), free[index])
            for column in (i for i, p in enumerate(self.model.parameters) if p.is_skewed):
                error = self._error_along(column, voxels, scaled[index], variance[index], index, root)
                spread[:, column] = torch.where(free[index, column], error * unit[index, column], torch.nan)
            spreads.append((own, spread))
        estimate, std = (torch.cat(part) for part in zip(*spreads, strict=True))
        status = torch.where(converged, int(Status.OK), int(Status.NOT_CONVERGED))
        status = torch.where(free.all(-1), status, int(Status.AT_BOUND))
        own = variance * size.square()
        if voxels.noise_variance is not None:
            own = torch.where(voxels.noise_variance.isfinite(), torch.nan, own)
        return estimate.cpu().numpy(), std.cpu().numpy(), status.cpu().numpy().astype(np.uint8), own.cpu().numpy()

    def _error_along(
        self,
        column: int,
        voxels: Voxels,
        scaled: torch.Tensor,
        variance: torch.Tensor,
        index: torch.Tensor,
        root: Triangle,
    ) -> torch.Tensor:
        """Return the expected error (n,) of a skewed parameter, scaled; see `error_along`."""
        free = self._free(scaled)

        def spread_at(there: torch.Tensor) -> torch.Tensor:
            factor = covariance_root(self._sensitivity(voxels, there, variance, index), variance, free)
            return torch.stack([row[column].square() for row in factor[column:]]).sum(0).sqrt()

        return error_along(column, scaled, root, self._bounds, spread_at)

    def _signal(self, voxels: Voxels, scaled: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `Voxels.target` should be (n, m) at scaled parameters, and the Jacobian (n, m, p)."""
        theta = self.model.with_covariates(scaled * self._scale, voxels.covariates[index])
        jacobian = self.model.jacobian(theta, self.acquisition_) * self._weight
        # The signal is proportional to the amplitude, so that its derivative holds the signal as well.
        return jacobian[..., 0] * scaled[:, :1], jacobian

    def _residuals(self, voxels: Voxels) -> Evaluate:
        """Return what gives residuals and Jacobians of these voxels."""

        def evaluate(scaled: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            signal, jacobian = self._signal(voxels, scaled, index)
            return signal - voxels.target[index], jacobian

        return evaluate

    def _estimate(self, voxels: Voxels) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return scaled parameters (n, n_parameters), noise variance (n,) and whether the minimum was reached (n,)."""
        objective = sum_of_squares(self._residuals(voxels))
        scaled, cost, converged = self._best_minimum(objective, voxels.target, voxels.directions)
        if voxels.noise_variance is not None:
            return scaled, voxels.noise_variance, converged
        n_free = self.acquisition_.n_measurements - len(self.model.parameters)
        variance = cost / n_free if n_free > 0 else torch.full_like(cost, torch.nan)
        return scaled, variance, converged

    def _sensitivity(
        self, voxels: Voxels, scaled: torch.Tensor, variance: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """Return J (n, m, p), so that J^T J over the noise variance is the information on the scaled parameters."""
        return self._signal(voxels, scaled, index)[1]

    def _best_minimum(
        self, objective: Objective, target: torch.Tensor, directions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the minimum (n, n_parameters), scaled, its cost (n,) and whether it was reached (n,)."""
        deepest = self._descend(objective, self._find_starts(target, directions))
        return self._leave_bounds(objective, *deepest)

    def _find_starts(self, target: torch.Tensor, directions: torch.Tensor | None) -> torch.Tensor:
        """Return (n_starts, n, n_parameters), scaled and within the bounds."""
        parts = torch.split(target, START_BATCH)
        along = [None] * len(parts) if directions is None else torch.split(directions, START_BATCH)
        starts = torch.cat([self._starts(part, where) for part, where in zip(parts, along, strict=True)], dim=1)
        return self._bounds.bring_back(starts / self._scale)

    def _descend(self, objective: Objective, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the deepest minimum, as `_best_minimum` does, from (n_starts, n, n_parameters) scaled starts.

        Where they are to be compared, a few steps are made from each of them; those not far from the deepest go on.
        """
        n_starts, n_voxels, n_parameters = starts.shape
        start = starts.reshape(-1, n_parameters)
        voxel = torch.arange(n_voxels, device=self.device).repeat(n_starts)
        row = torch.arange(len(start), device=self.device)

        def objective_of_rows(
            scaled: torch.Tensor, index: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            return objective(scaled, voxel[row[index]])

        if n_starts > 1 and self._starts.n_scout:
            start, cost, _ = self._minimise(objective_of_rows, start, self._starts.n_scout)
            table = cost.reshape(n_starts, n_voxels)
            row = torch.nonzero((table <= PROMISING * table.amin(0)).flatten()).squeeze(1)
        scaled, cost, converged = self._minimise(objective_of_rows, start[row])
        final = torch.full((n_starts * n_voxels,), torch.inf, device=self.device)
        final[row] = cost
        deepest = final.reshape(n_starts, n_voxels).argmin(0) * n_voxels + voxel[:n_voxels]
        position = torch.zeros_like(voxel)
        position[row] = torch.arange(len(row), device=self.device)
        chosen = position[deepest]
        return scaled[chosen], cost[chosen], converged[chosen]

    def _minimise(
        self, objective: Objective, start: torch.Tensor, iterations: int = MAX_ITERATIONS
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return minimum (n, n_parameters), cost (n,) and convergence (n,) of a local search, scaled."""
        return minimise(objective, start, self._bounds, iterations=iterations, batch=self._batch)

    def _leave_bounds(
        self, objective: Objective, scaled: torch.Tensor, cost: torch.Tensor, converged: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Start voxels that ended on a bound once more, from inside, and keep what is lower.

        A bound can trap a fit: in SMT the derivative by the fraction vanishes wherever the fraction is one,
        and a fit that touches this bound on its way would never leave it.
        """
        voxel = torch.nonzero(~self._free(scaled).all(-1)).squeeze(1)
        lower, upper, is_periodic = self._bounds
        inset = INSET * (upper - lower) * ~is_periodic
        # The amplitude follows in one step, being linear.
        inset[0] = 0
        start = scaled[voxel].clamp(lower + inset, upper - inset)
        found, found_cost, found_converged = minimise(
            lambda theta, index: objective(theta, voxel[index]), start, self._bounds, batch=self._batch
        )
        better = found_cost < (1 - COST_TOLERANCE) * cost[voxel]
        chosen = voxel[better]
        scaled[chosen], cost[chosen] = found[better], found_cost[better]
        converged[chosen] = found_converged[better]
        return scaled, cost, converged

    def _free(self, scaled: torch.Tensor) -> torch.Tensor:
        """Tell which parameters (n, n_parameters) are off their bounds."""
        return self._bounds.is_free(scaled, BOUND_TOLERANCE)

    def _tensor(self, values: Sequence[float]) -> torch.Tensor:
        """Return values in the precision and on the device of the computation."""
        return torch.tensor(values, dtype=torch.float32, device=self.device)
