"""Maximum a posteriori with a smooth field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.core.parameters import BOUND_TOLERANCE
from qmri_bidsapp.errors import ProtocolError, UsageError
from qmri_bidsapp.estimators.likelihood.covariance import covariance_root, propagate
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.estimators.posterior.smoothness import NeighbourPairs, SmoothnessPrior
from qmri_bidsapp.estimators.voxels import Solution, assemble, check_inputs
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.conditional import conditional
from qmri_bidsapp.solvers.levenberg_marquardt import MAX_ITERATIONS

#: Gauss-Newton steps on the field, and the least share of one that is tried.
MAX_STEPS = 20
MIN_SHARE = 0.1
#: Decrease of the cost per voxel that a step promises and that is not worth a step.
PROMISE_TOLERANCE = 1e-3
#: Difference of neighbours, relative to the field's scale, from which the search for lambda begins, and the smallest;
#: rounds of it, and the change of ln(lambda) that ends them.
START_WIDTH = 0.05
MIN_WIDTH = 1e-3
MAX_ROUNDS = 15
WEIGHT_TOLERANCE = 0.1
#: Least precision of a voxelwise estimate, relative to the highest, and ridge that keeps parallel columns invertible.
MIN_PRECISION = 1e-9
RIDGE = 1e-12
#: Draws from which the variance of the field is estimated.
N_DRAWS = 16
#: Values that are evaluated at a time.
BATCH_VALUES = 2**18


class _Data(NamedTuple):
    """Usable voxels: signals (n, m), covariates (n, n_covariates) and noise variance (n,), in the signals' unit."""

    signals: npt.NDArray[np.float32]
    covariates: npt.NDArray[np.float32]
    variance: torch.Tensor


class _State(NamedTuple):
    """Parameters (n, p) for a field (n,), which of them are off their bounds (n, p), statuses (n,), and the cost there.

    cost (n,) is chi-squared; slope and curvature (n,) are half its derivatives along the field, with the other
    parameters following.
    """

    theta: torch.Tensor
    free: torch.Tensor
    status: npt.NDArray[np.uint8]
    cost: torch.Tensor
    slope: torch.Tensor
    curvature: torch.Tensor


class SmoothFieldPosterior(NonLinearLeastSquares):
    r"""Least squares with one parameter a smooth field, such as the inversion factor B of T1.

    .. math:: \sum_i \|S_i - f(\theta_i)\|^2 / \sigma_i^2 + \lambda \sum_{i \sim j} w_{ij} (B_i - B_j)^2

    over the voxels i and the pairs of neighbours, which share a face; w is the square of the smallest over that of
    their own distance. Gauss-Newton steps on the field, each solved by conjugate gradients, alternate with least
    squares for all other parameters given the field.

    Neighbours influence each other in `predict_volume`; `predict` knows none and is voxelwise least squares. Standard
    deviations are those of the Laplace approximation: the posterior is taken as Gaussian about its maximum; that lambda
    and the noise are estimated, and other minima, are neglected. They hold for fields as rough as the prior expects,
    with independent differences, and are too large for smoother ones.

    Parameters
    ----------
    model : SignalModel
        With a parameter that is `smooth`.
    device : str
    max_iterations : int
        Most steps of the voxelwise search; see `NonLinearLeastSquares`.
    weight : float, optional
        lambda, per squared unit of the field. Without it, it comes from the data by the evidence (MacKay 1992):
        lambda is the number of parameters of the field that the data determine, over the sum of squared differences.
    """

    name: ClassVar[str] = "map"
    title: ClassVar[str] = "Maximum a posteriori with a smooth field"
    std_kind: ClassVar[str] = "Laplace approximation of the posterior"
    reference: ClassVar[str] = (
        "Sabidussi et al. 2021, Med Image Anal 74:102220; weight: MacKay 1992, Neural Comput 4:415; "
        "variance: Siden et al. 2018, J Comput Graph Stat 27:898"
    )
    is_spatial: ClassVar[bool] = True
    std_from_residuals: ClassVar[bool] = False
    methods: ClassVar[str] = (
        "Where the maps say so, T1 is the maximum of the posterior with a smooth inversion factor [@sabidussi], the "
        "strength of smoothing estimated from the data; standard deviations are then those of the Laplace "
        "approximation."
    )

    def __init__(
        self,
        model: SignalModel,
        *,
        device: str = "cpu",
        max_iterations: int = MAX_ITERATIONS,
        weight: float | None = None,
    ) -> None:
        super().__init__(model, device=device, max_iterations=max_iterations)
        if weight is not None and not weight > 0:
            raise UsageError(f"The smoothness needs a positive weight, got weight = {weight:g}.")
        self.weight = weight

    @classmethod
    def supports(cls, model: SignalModel) -> bool:
        """Return whether a parameter of the model is smooth."""
        return model.smooth is not None and super().supports(model)

    @classmethod
    def check(cls, model: SignalModel, acquisition: Acquisition) -> None:
        """Ask for more measurements than parameters, so that residuals give the noise."""
        super().check(model, acquisition)
        if acquisition.n_measurements <= len(model.parameters):
            raise ProtocolError(
                f"Estimator map needs more measurements than model {model.name} has parameters "
                f"({len(model.parameters)}), got {acquisition.n_measurements}: use estimator nlls."
            )

    def _prepare(self, acquisition: Acquisition, seed: int) -> None:
        """Prepare the voxelwise search; `seed` is for the draws that give the variance of the field."""
        super()._prepare(acquisition, seed)
        self._seed = seed
        self._position = [parameter.name for parameter in self.model.parameters].index(str(self.model.smooth))
        self._field = self.model.parameters[self._position]
        self._others = [i for i in range(len(self.model.parameters)) if i != self._position]

    def predict_volume(
        self,
        signals: npt.ArrayLike,
        mask: npt.NDArray[np.bool_],
        *,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        noise_std: npt.ArrayLike | None = None,
        covariates: npt.ArrayLike | None = None,
    ) -> ParameterMaps:
        """Estimate the voxels of a mask; see `Estimator.predict_volume`.

        Where `noise_std` is not known, one number for all voxels comes from the median of the residuals.
        """
        everything = check_inputs(self, signals, noise_std=noise_std, covariates=covariates)
        start = self._predict(everything)
        usable = everything.screen(has_sign=self.acquisition_.has_sign)[1] & np.isfinite(start.estimate).all(axis=1)
        inside = np.zeros(mask.shape, dtype=bool)
        inside[mask] = usable
        neighbours = NeighbourPairs(inside, spacing, self.device)
        if not neighbours.axes:
            return start
        voxels = everything.part(usable)
        with torch.no_grad():
            first = torch.as_tensor(start.estimate[usable], dtype=torch.float64, device=self.device)
            spread = torch.as_tensor(start.std[usable, self._position], dtype=torch.float64, device=self.device)
            first = first[:, : len(self.model.parameters)]
            is_good = torch.as_tensor(start.status[usable] == Status.OK, device=self.device)
            values = np.asarray(voxels.signals, dtype=np.float32)
            data = _Data(values, voxels.covariates, torch.ones_like(spread))
            data = data._replace(variance=self._noise_variance(data, first, voxels.noise_std))
            precision = torch.where(is_good, spread.pow(-2), 0.0).nan_to_num(nan=0.0, posinf=0.0)
            prior, state = self._maximise(data, neighbours, first[:, self._position], precision)
            estimate, std = self._spread(data, prior, state)
        return assemble(self.model, self.std_kind, start.status, usable, Solution(estimate, std, state.status))

    def _noise_variance(self, data: _Data, theta: torch.Tensor, noise: npt.NDArray[np.float32] | None) -> torch.Tensor:
        """Return the noise variance of all voxels, (n,): as given, else one number from the residuals' median."""
        n_free = self.acquisition_.n_measurements - len(self.model.parameters)
        residuals = torch.cat([part.square().sum(-1) for part, _ in self._linearised(data, theta)])
        # Median of chi-squared (Wilson and Hilferty 1931).
        pooled = float(residuals.median()) / (n_free * (1 - 2 / (9 * n_free)) ** 3)
        variance = torch.full_like(residuals, max(pooled, torch.finfo(torch.float32).tiny))
        if noise is None:
            return variance
        given = torch.as_tensor(noise, dtype=torch.float64, device=self.device).square()
        return torch.where(given.isfinite(), given, variance)

    def _linearised(self, data: _Data, theta: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield residuals (k, m) and Jacobians (k, m, p) over sigma, float64, for some voxels after the other."""
        root = torch.tensor(self.acquisition_.n_averages, dtype=torch.float64, device=self.device).sqrt()
        for index in torch.split(torch.arange(len(theta), device=self.device), self._size()):
            rows = index.cpu().numpy()
            signals, known = (
                torch.as_tensor(values[rows], dtype=torch.float64, device=self.device)
                for values in (data.signals, data.covariates)
            )
            columns = self.model.with_covariates(theta[index], known)
            weight = root / data.variance[index].sqrt().unsqueeze(-1)
            residual = (self.model.signal(columns, self.acquisition_) - signals) * weight
            yield residual, self.model.jacobian(columns, self.acquisition_) * weight.unsqueeze(-1)

    def _maximise(
        self, data: _Data, neighbours: NeighbourPairs, estimate: torch.Tensor, precision: torch.Tensor
    ) -> tuple[SmoothnessPrior, _State]:
        """Return prior and maximum of the posterior, from voxelwise estimates (n,) of the field and their precision."""
        weight = (START_WIDTH * self._field.scale) ** -2 if self.weight is None else self.weight
        prior = SmoothnessPrior(neighbours, weight)
        # A voxel without neighbours whose field is undetermined keeps its estimate.
        precision = precision.clamp(min=float(precision.max()) * MIN_PRECISION) if precision.any() else precision + 1
        field = self._within(prior.solve(precision, precision * estimate))
        model = conditional(self.model, self._position, float(field.median()))
        others = NonLinearLeastSquares(model, device=self.device, max_iterations=self.max_iterations).fit(
            self.acquisition_
        )
        state = self._alternate(others, data, prior, field)
        for _ in range(MAX_ROUNDS if self.weight is None else 0):
            old, field = weight, state.theta[:, self._position]
            determined = prior.n_determined(state.curvature, n_draws=N_DRAWS, seed=self._seed)
            width = np.sqrt(prior.cost(field) / old / max(determined, 1.0))
            weight = max(float(width), MIN_WIDTH * self._field.scale) ** -2
            prior = SmoothnessPrior(neighbours, weight)
            state = self._alternate(others, data, prior, field)
            if abs(np.log(weight / old)) < WEIGHT_TOLERANCE:
                break
        return prior, state

    def _alternate(
        self, others: NonLinearLeastSquares, data: _Data, prior: SmoothnessPrior, field: torch.Tensor
    ) -> _State:
        """Return the minimum of chi-squared and prior next to a field (n,)."""
        best, lowest, step, share = None, np.inf, torch.zeros_like(field), 1.0
        for _ in range(MAX_STEPS):
            state = self._follow(others, data, field)
            cost = float(state.cost.sum()) + prior.cost(field)
            if best is None or cost < lowest:
                best, lowest, share = state, cost, 1.0
                downhill = -(state.slope + prior.times(field))
                step = prior.solve(state.curvature, downhill)
                if float(step @ downhill) <= PROMISE_TOLERANCE * len(field):
                    break
            elif share > MIN_SHARE:
                share /= 2
            else:
                break
            field = self._within(best.theta[:, self._position] + share * step)
        assert best is not None
        return best

    def _within(self, field: torch.Tensor) -> torch.Tensor:
        """Return the field within its bounds, single precision included."""
        low, high = self._field.bounds
        margin = BOUND_TOLERANCE * (high - low)
        return field.clamp(low + margin, high - margin)

    def _follow(self, others: NonLinearLeastSquares, data: _Data, field: torch.Tensor) -> _State:
        """Return the other parameters given the field, and the slope and curvature of chi-squared along it."""
        known = np.concatenate([data.covariates, field.cpu().numpy()[:, None]], axis=1)
        found = others.predict(data.signals, noise_std=data.variance.sqrt().cpu().numpy(), covariates=known)
        columns = [torch.as_tensor(values, device=self.device) for values in (found.estimate.astype(float), found.std)]
        theta = torch.empty((len(field), len(self.model.parameters)), dtype=torch.float64, device=self.device)
        theta[:, self._others], theta[:, self._position] = columns[0], field
        free = torch.ones_like(theta, dtype=torch.bool)
        free[:, self._others] = columns[1].isfinite()
        low, high = self._field.bounds
        free[:, self._position] = (field - low).minimum(high - field) > 2 * BOUND_TOLERANCE * (high - low)
        costs, slopes, curvatures = [], [], []
        parts = self._linearised(data, theta)
        for (residual, jacobian), may_move in zip(parts, torch.split(free, self._size()), strict=True):
            along = jacobian[..., self._position]
            across = jacobian[..., self._others] * may_move[:, None, self._others]
            along = along - _projection(across, along)
            costs.append(residual.square().sum(-1))
            slopes.append((along * residual).sum(-1))
            curvatures.append(along.square().sum(-1))
        status = np.where(free[:, self._position].cpu().numpy(), found.status, np.uint8(Status.AT_BOUND))
        return _State(theta, free, status, torch.cat(costs), torch.cat(slopes), torch.cat(curvatures))

    def _spread(
        self, data: _Data, prior: SmoothnessPrior, state: _State
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return estimates and standard deviations, derived parameters included.

        The information on the field that a voxel's neighbours add counts as one more measurement of it.
        """
        variance = prior.variance(state.curvature, n_draws=N_DRAWS, seed=self._seed)
        added = (1 / variance - state.curvature).clamp(min=0).sqrt()
        known = torch.as_tensor(data.covariates, dtype=torch.float64, device=self.device)
        theta = self.model.with_covariates(state.theta, known)
        spreads = []
        parts = zip(
            self._linearised(data, state.theta),
            *(torch.split(v, self._size()) for v in (theta, added, state.free)),
            strict=True,
        )
        for (_, jacobian), here, weight, free in parts:
            row = torch.zeros_like(jacobian[:, :1])
            row[:, 0, self._position] = weight
            root = covariance_root(torch.cat([jacobian, row], dim=1), torch.ones_like(weight), free)
            spreads.append(propagate(self.model, here, root, free, free))
        estimate, std = (torch.cat(part) for part in zip(*spreads, strict=True))
        return estimate.cpu().numpy(), std.cpu().numpy()

    def _size(self) -> int:
        """Return how many voxels are linearised at a time."""
        return max(1, BATCH_VALUES // self.acquisition_.n_measurements)


def _projection(basis: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Return the part of vectors (n, m) that lies in the span of bases (n, m, k)."""
    scale = basis.square().sum(1, keepdim=True).sqrt()
    unit = basis / torch.where(scale > 0, scale, 1.0)
    gram = unit.mT @ unit
    gram.diagonal(dim1=1, dim2=2).add_((scale.squeeze(1) == 0) + RIDGE)
    coefficients = torch.linalg.solve(gram, unit.mT @ vector.unsqueeze(-1))
    projection: torch.Tensor = (unit @ coefficients).squeeze(-1)
    return projection
