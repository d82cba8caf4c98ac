"""Closed-form fits of models whose logarithm is linear."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

from qmri_bidsapp.core.acquisition import Acquisition, Diffusion
from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.covariance import standard_deviations
from qmri_bidsapp.estimators.voxels import assemble, covariates_of, noise_of, screen
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.tensor import DiffusionTensor, design_matrix

#: Signals below this fraction of the voxel's largest are raised to it before the logarithm.
SIGNAL_FLOOR = 1e-4
#: Rounds of weighting: the first with the measured signals, the others with the fitted ones.
N_ROUNDS = 3


class WeightedLinearLeastSquares(Estimator):
    """Weighted least squares on the log signal, iterated (Salvador et al. 2005; Veraart et al. 2013).

    Weights are squared signals: the variance of ln S is sigma^2 / S^2.
    """

    name: ClassVar[str] = "wls"
    title: ClassVar[str] = "Iterated weighted linear least squares on the log signal"
    std_kind: ClassVar[str] = "Covariance of the weighted linear fit"
    reference: ClassVar[str] = "Salvador et al. 2005, Hum Brain Mapp 24:144; Veraart et al. 2013, NeuroImage 81:335"

    @classmethod
    def supports(cls, model: SignalModel) -> bool:
        """Tell whether the model is the tensor, the only one whose logarithm is linear."""
        return isinstance(model, DiffusionTensor)

    def fit(self, acquisition: Acquisition, *, seed: int = 0) -> Self:
        """Compute the design matrix; nothing is random, so that `seed` has no effect."""
        self.model.check(acquisition)
        if not isinstance(acquisition, Diffusion):
            raise ProtocolError(f"wls needs a diffusion protocol, got {type(acquisition).__name__}.")
        self.acquisition_ = acquisition
        scale = [1.0, *(p.scale for p in self.model.parameters[1:])]
        self._scale = torch.tensor(scale, dtype=torch.float64, device=self.device)
        self._design = (torch.tensor(design_matrix(acquisition), device=self.device) * self._scale).float()
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
        values, status, usable = screen(signals, self.acquisition_.n_measurements)
        # The tensor has none: what is given must be empty.
        covariates_of(self.model, covariates, len(values))
        noise = noise_of(noise_std, usable)
        with torch.no_grad():
            estimate, std = self._solve(values[usable], noise)
        fitted = np.full(len(estimate), Status.OK, dtype=np.uint8)
        parameters = self.model.parameters
        low, high = (np.array([p.bounds[i] for p in parameters[1:]]) for i in (0, 1))
        elements = estimate[:, 1 : len(parameters)]
        fitted[((elements <= low) | (elements >= high)).any(axis=1)] = Status.AT_BOUND
        return assemble(self.model, self.std_kind, status, usable, estimate, std, fitted)

    def _solve(
        self, values: npt.NDArray[np.float32], noise: npt.NDArray[np.float32] | None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return estimates and standard deviations in the parameters' units; NaN for singular fits."""
        signal = torch.as_tensor(values, device=self.device)
        size = signal.amax(-1, keepdim=True)
        signal = (signal / size).clamp(min=SIGNAL_FLOOR)
        solution, inverse, fitted = self._iterate(signal)
        if noise is None:
            n_free = signal.shape[1] - self._design.shape[1]
            residual = (fitted - signal).square().sum(-1)
            variance = residual / n_free if n_free > 0 else torch.full_like(residual, torch.nan)
        else:
            variance = (torch.as_tensor(noise, device=self.device) / size.squeeze(-1)).square()
        # The first unknown is ln S0: d S0 = S0 d ln S0.
        amplitude = solution[:, :1].exp() * size.double()
        unit = self._scale.expand(len(solution), -1).clone()
        theta = torch.cat([amplitude, solution[:, 1:] * unit[:, 1:]], dim=-1)
        unit[:, :1] = amplitude
        covariance = variance.double()[:, None, None] * inverse * unit.unsqueeze(1) * unit.unsqueeze(2)
        known = theta.isfinite().all(-1)
        estimate = theta.new_full((len(theta), len(self.model.parameters) + len(self.model.derived)), torch.nan)
        std = torch.full_like(estimate, torch.nan)
        free = torch.ones_like(theta[known], dtype=torch.bool)
        estimate[known] = torch.cat([theta[known], self.model.derive(theta[known])], dim=-1)
        std[known] = standard_deviations(self.model, theta[known], covariance[known], free)
        return estimate.cpu().numpy(), std.cpu().numpy()

    def _iterate(self, signal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return unknowns (n, 7), inverse information (n, 7, 7) and fitted signals (n, n_measurements)."""
        log_signal, fitted = signal.log(), signal
        for _ in range(N_ROUNDS):
            weighted = self._design * fitted.square().unsqueeze(-1)
            information = (self._design.T @ weighted).double()
            right = (weighted.mT @ log_signal.unsqueeze(-1)).double()
            inverse, info = torch.linalg.inv_ex(information)
            inverse[info > 0] = torch.nan
            solution = (inverse @ right).squeeze(-1)
            fitted = (solution.float() @ self._design.T).clamp(max=5.0).exp()
        return solution, inverse, fitted
