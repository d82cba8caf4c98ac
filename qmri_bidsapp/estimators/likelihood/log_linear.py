"""Closed-form fits of models whose logarithm is linear."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.errors import ProtocolError, UsageError
from qmri_bidsapp.estimators.likelihood.covariance import propagate, scale_columns
from qmri_bidsapp.estimators.voxels import Solution, VoxelData
from qmri_bidsapp.estimators.voxelwise import VoxelwiseEstimator
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.cumulants import LogLinearModel
from qmri_bidsapp.solvers.cholesky import Triangle, factorise, inverse_factor, solve

#: Signals below this fraction of the voxel's largest are raised to it before the logarithm.
SIGNAL_FLOOR = 1e-4
#: Smallest share of an unknown's information that must remain once the others are estimated; less is rounding.
SINGULAR = 1e-11
#: Normal equations square the condition number, too much of it for single precision with kurtosis.
DTYPE = torch.float64


class WeightedLinearLeastSquares(VoxelwiseEstimator):
    """Weighted least squares on the log signal, iterated (Salvador et al. 2005; Veraart et al. 2013).

    Weights are squared signals: the variance of ln S is sigma^2 / S^2.

    Parameters
    ----------
    model, device
        As for `Estimator`.
    n_rounds : int
        Rounds of weighting: the first with the measured signals, the others with the fitted ones.

    Raises
    ------
    UsageError
        If there is no round.
    """

    name: ClassVar[str] = "wls"
    title: ClassVar[str] = "Iterated weighted linear least squares on the log signal"
    std_kind: ClassVar[str] = "Covariance of the weighted linear fit"
    std_from_residuals: ClassVar[bool] = True
    #: Enough to hide the cost of a call, few enough for the processor's cache.
    chunk_size: ClassVar[int | None] = 4096

    model: LogLinearModel
    reference: ClassVar[str] = "Salvador et al. 2005, Hum Brain Mapp 24:144; Veraart et al. 2013, NeuroImage 81:335"
    methods: ClassVar[str] = ""

    def __init__(self, model: SignalModel, *, device: str = "cpu", n_rounds: int = 3) -> None:
        super().__init__(model, device=device)
        if n_rounds < 1:
            raise UsageError(f"Weighted least squares need at least one round of weighting, got {n_rounds}.")
        self.n_rounds = n_rounds

    @classmethod
    def supports(cls, model: SignalModel) -> bool:
        """Return whether the model's logarithm is linear."""
        return isinstance(model, LogLinearModel)

    @classmethod
    def check(cls, model: SignalModel, acquisition: Acquisition) -> None:
        """Ask for a model whose logarithm is linear as well."""
        super().check(model, acquisition)
        if not isinstance(model, LogLinearModel):
            raise ProtocolError(f"wls needs a model whose logarithm is linear, got {model.name}.")

    def _prepare(self, acquisition: Acquisition, seed: int) -> None:
        """Compute the design matrix."""
        parameters = self.model.parameters
        self._scale = self._tensor([1.0, *(p.scale for p in parameters[1:])])
        self._design = self.model.design_matrix(acquisition).to(self._scale) * self._scale
        rows, columns = torch.tril_indices(len(parameters), len(parameters)).tolist()
        # One row for each element of the information matrix's lower triangle.
        self._products = (self._design[:, rows] * self._design[:, columns]).T.contiguous()
        everything = (*parameters, *self.model.derived)
        self._lower, self._upper = (self._tensor([p.bounds[i] for p in everything]) for i in (0, 1))
        self._drawn = tuple(self._tensor([p.drawn_bounds[i] for p in everything]) for i in (0, 1))

    def _solve(self, voxels: VoxelData) -> Solution:
        """Return the fit; NaN where it is singular. See `VoxelwiseEstimator`.

        Models whose logarithm is linear have no covariates. Where the noise is given, the variance is NaN.
        """
        noise = voxels.noise_std
        measured = self._tensor(voxels.signals)
        size = measured.amax(-1)
        signal = (measured / size.unsqueeze(-1)).clamp(min=SIGNAL_FLOOR)
        solution, root = self._iterate(signal)
        known = solution.isfinite().all(-1) & torch.stack([row[-1] for row in root]).isfinite().all(0)
        solution, size = solution[known], size[known]
        root = [[element[known] for element in row] for row in root]
        if noise is None:
            n_free = signal.shape[1] - solution.shape[1]
            residual = ((solution @ self._design.T).exp() - signal[known]).square().sum(-1)
            variance = residual / n_free if n_free > 0 else torch.full_like(residual, torch.nan)
        else:
            variance = (self._tensor(noise)[known] / size).square()
        estimate, std = (self._lower.new_full((len(signal), len(self._lower)), torch.nan) for _ in range(2))
        status = torch.full((len(signal),), int(Status.FAILED), device=self.device)
        estimate[known], std[known], status[known] = self._finish(solution, root, size, variance)
        own = self._lower.new_full((len(signal),), torch.nan)
        if noise is None:
            own[known] = variance * size.square()
        return Solution(
            estimate.cpu().numpy(), std.cpu().numpy(), status.cpu().numpy().astype(np.uint8), own.cpu().numpy()
        )

    def _finish(
        self, solution: torch.Tensor, root: Triangle, size: torch.Tensor, variance: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return estimates and standard deviations, within the bounds and in the parameters' units, and statuses."""
        n = solution.shape[1]
        theta = torch.cat([solution[:, :1].exp(), solution[:, 1:] * self._scale[1:]], dim=-1)
        bounded, free = _within(theta, self._lower[:n], self._upper[:n])
        # The first unknown is ln S0: d S0 = S0 d ln S0.
        unit = self._scale.expand_as(theta).clone()
        unit[:, 0] = theta[:, 0] * size
        bounded[:, 0] *= size
        root = scale_columns(root, (unit * variance.sqrt().unsqueeze(-1)).unbind(-1))
        _, inside = _within(theta, *(limit[:n] for limit in self._drawn))
        estimate, std = propagate(self.model, bounded, root, free, inside)
        _, derived_inside = _within(estimate[:, n:], *(limit[n:] for limit in self._drawn))
        estimate[:, n:], derived_free = _within(estimate[:, n:], self._lower[n:], self._upper[n:])
        std[:, n:] = torch.where(derived_free, std[:, n:], torch.nan)
        status = torch.where(inside.all(-1) & derived_inside.all(-1), int(Status.OK), int(Status.AT_BOUND))
        return estimate, std, status

    def _iterate(self, signal: torch.Tensor) -> tuple[torch.Tensor, Triangle]:
        """Return unknowns (n, p) and L^-1, with L L^T the information matrix; NaN where it is singular."""
        log_signal, fitted = signal.log(), signal
        n_parameters = len(self._scale)
        for _ in range(self.n_rounds):
            weight = fitted.square()
            elements = iter((self._products @ weight.T).unbind(0))
            information = [[next(elements) for _ in range(row + 1)] for row in range(n_parameters)]
            right = (self._design.T @ (weight * log_signal).T).unbind(0)
            factor = factorise(information)
            solution = solve(factor, list(right))
            fitted = (solution @ self._design.T).clamp(max=5.0).exp()
        singular = torch.stack([f[-1].square() <= SINGULAR * i[-1] for f, i in zip(factor, information, strict=True)])
        solution[singular.any(0)] = torch.nan
        return solution, inverse_factor(factor)

    def _tensor(self, values: npt.ArrayLike) -> torch.Tensor:
        """Return values in the precision and on the device of the computation."""
        return torch.as_tensor(values, dtype=DTYPE, device=self.device)


def _within(values: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values brought within their bounds, and which of them were there."""
    return values.clamp(lower, upper), (values >= lower) & (values <= upper)
