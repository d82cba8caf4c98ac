"""Maximum likelihood with the noise of magnitudes."""

from __future__ import annotations

from typing import ClassVar

import torch

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.rice import Columns
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.estimators.likelihood.cramer_rao import Sensitivity, cramer_rao_solution
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.estimators.likelihood.scaled import Voxels
from qmri_bidsapp.estimators.likelihood.search import Found, restart_from_inside
from qmri_bidsapp.estimators.voxels import Solution, VoxelData
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.solvers.levenberg_marquardt import minimise
from qmri_bidsapp.solvers.problem import Objective

#: Smallest sigma, relative to the voxel's largest signal: less is rounding.
MIN_SIGMA = 1e-6
#: Rounds of sigma and parameters in turn, and the relative change of sigma^2 that ends them.
N_ROUNDS = 20
ROUND_TOLERANCE = 2e-3
#: Least share of the residual degrees of freedom, where measurements near the noise floor carry little information.
MIN_FREEDOM = 0.25


class RicianLikelihood(NonLinearLeastSquares):
    r"""Maximum likelihood with Rician noise (Gudbjartsson and Patz 1995; Sijbers et al. 1998).

    From the least-squares minimum, damped Fisher scoring within the bounds maximises the likelihood of the magnitudes.
    A value that is the mean of several magnitudes (powder averages) is taken as Gaussian, with the mean of Rice's
    distribution (Koay and Basser 2006) and its variance over their number; that these magnitudes share one signal is
    exact only where it does not depend on the direction.

    Sigma, the standard deviation of the real and of the imaginary part, is `noise_std` where that is known. Elsewhere
    each voxel has its own, estimated in turn with the parameters by its likelihood equation, corrected for the degrees
    of freedom that the parameters take; voxels do not influence each other. Standard deviations are Cramer-Rao bounds
    of the Rician likelihood, of parameters and sigma together where both are estimated.
    """

    name: ClassVar[str] = "rician"
    title: ClassVar[str] = "Maximum likelihood with Rician noise"
    std_kind: ClassVar[str] = "Cramer-Rao bound of the Rician likelihood at the estimate"
    reference: ClassVar[str] = (
        "Gudbjartsson and Patz 1995, Magn Reson Med 34:910; Sijbers et al. 1998, IEEE Trans Med Imaging 17:357"
    )
    needs_raw_magnitudes: ClassVar[bool] = True
    methods: ClassVar[str] = (
        "Where the maps say so, parameters are those of maximum likelihood with the Rician noise of magnitudes "
        "[@rician], reached from the least-squares minimum by Fisher scoring, and each voxel's noise with them."
    )

    @classmethod
    def check(cls, model: SignalModel, acquisition: Acquisition) -> None:
        """Ask for magnitudes, more of them than parameters, so that sigma can be estimated as well."""
        super().check(model, acquisition)
        if acquisition.has_sign:
            raise ProtocolError("Rician noise is that of magnitudes, but this series has signs: use estimator nlls.")
        if acquisition.n_measurements <= len(model.parameters):
            raise ProtocolError(
                f"Estimator rician needs more measurements than model {model.name} has parameters "
                f"({len(model.parameters)}), got {acquisition.n_measurements}: use estimator nlls."
            )

    def _prepare(self, acquisition: Acquisition, seed: int) -> None:
        """Prepare the search and the noise."""
        super()._prepare(acquisition, seed)
        self._noise = Columns(self.problem.tensor(acquisition.n_averages))

    def _solve(self, voxels: VoxelData) -> Solution:
        """Return the maximum of the likelihood; see `VoxelwiseEstimator`."""
        relative = self.problem.voxels(voxels)
        relative = relative._replace(target=relative.target.clamp(min=0))
        given = relative.noise_variance
        scaled, variance, converged = self.least_squares(relative._replace(noise_variance=None))
        is_known = torch.zeros_like(converged)
        if given is not None:
            is_known = _is_known(given)
            variance = torch.where(is_known, given, variance)
        variance = variance.clamp(min=MIN_SIGMA**2)
        row = torch.arange(len(scaled), device=self.device)
        for _ in range(N_ROUNDS):
            scaled[row], converged[row] = self._maximise(relative, scaled[row], variance[row], row)
            row = row[~is_known[row]]
            old = variance[row]
            variance[row] = self._update_variance(relative, scaled[row], old, row)
            row = row[(variance[row] / old - 1).abs() > ROUND_TOLERANCE]
            if not len(row):
                break
        converged[row] = False
        return cramer_rao_solution(self.problem, relative, scaled, variance, converged, self._sensitivity(relative))

    def _maximise(
        self, voxels: Voxels, scaled: torch.Tensor, variance: torch.Tensor, row: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the most likely parameters of the voxels `row` for their sigma^2, and whether they were reached."""
        objective = self._likelihood(voxels, variance, row)
        n, batch = self.max_iterations, self.problem.batch
        found = Found(*minimise(objective, scaled, self.problem.bounds, iterations=n, batch=batch))
        scaled, _, converged = restart_from_inside(self.problem, objective, found, n)
        return scaled, converged

    def _likelihood(self, voxels: Voxels, variance: torch.Tensor, row: torch.Tensor) -> Objective:
        """Return twice the negative log-likelihood of the voxels `row`, with the Fisher information as curvature."""

        def objective(scaled: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            sigma = variance[index].sqrt().unsqueeze(-1)
            signal, jacobian = self.problem.signal(voxels, scaled, row[index])
            jacobian = jacobian * (torch.where(signal < 0, -1.0, 1.0) / sigma).unsqueeze(-1)
            signal = signal.abs() / sigma
            cost, slope = self._noise.cost(voxels.target[row[index]] / sigma, signal)
            weighted = jacobian * self._noise.information(signal).signal.unsqueeze(-1)
            # Tolerances are relative to the cost, and changes of the log-likelihood far below one are irrelevant.
            return 1 + cost.sum(-1), (jacobian.mT @ slope.unsqueeze(-1)).squeeze(-1), weighted.mT @ jacobian

        return objective

    def _update_variance(
        self, voxels: Voxels, scaled: torch.Tensor, variance: torch.Tensor, row: torch.Tensor
    ) -> torch.Tensor:
        """Return the estimate of sigma^2 (n,) of the voxels `row` after one fixed-point step from `variance`."""
        updated = []
        for index in self.problem.batches(len(row)):
            sigma = variance[index].sqrt().unsqueeze(-1)
            signal = self.problem.signal(voxels, scaled[index], row[index])[0].abs()
            squares, expected = self._noise.misfit(voxels.target[row[index]] / sigma, signal / sigma)
            freedom = (expected.sum(-1) - len(self.model.parameters)).clamp(min=MIN_FREEDOM * self.problem.n_free)
            updated.append(variance[index] * squares.sum(-1) / freedom)
        return torch.cat(updated).clamp(min=MIN_SIGMA**2) if updated else variance

    def _sensitivity(self, voxels: Voxels) -> Sensitivity:
        """Return J with J^T J / sigma^2 the information on the parameters.

        Where sigma is estimated, the information that parameters share with it is removed: with weights w on the
        signals, c on signals and sigma, and d on sigma, the information is J0^T (W - c c^T / sum d) J0 = J^T J.
        """

        def sensitivity(scaled: torch.Tensor, variance: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            signal, jacobian = self.problem.signal(voxels, scaled, index)
            information = self._noise.information(signal.abs() / variance.sqrt().unsqueeze(-1))
            root = information.signal.clamp(min=torch.finfo(signal.dtype).tiny).sqrt()
            weighted = jacobian * root.unsqueeze(-1)
            shared = torch.where(signal < 0, -1.0, 1.0) * information.cross / root
            shared = shared / information.sigma.sum(-1, keepdim=True).sqrt()
            if voxels.noise_variance is not None:
                shared = shared * ~_is_known(voxels.noise_variance[index]).unsqueeze(-1)
            # I - q q^T is the square of I - a q q^T.
            square = shared.square().sum(-1, keepdim=True).clamp(max=1.0)
            factor = 1 / (1 + (1 - square).sqrt())
            common = (shared.unsqueeze(1) @ weighted).squeeze(1)
            return weighted - (factor * shared).unsqueeze(-1) * common.unsqueeze(1)

        return sensitivity


def _is_known(variance: torch.Tensor) -> torch.Tensor:
    """Return where a noise variance was given, bool."""
    return variance.isfinite() & (variance > 0)
