"""Least squares with a weak prior and reduced bias."""

from __future__ import annotations

from typing import ClassVar

import torch

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.parameters import BOUND_TOLERANCE
from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.estimators.likelihood.covariance import covariance_root
from qmri_bidsapp.estimators.likelihood.cramer_rao import Sensitivity, cramer_rao_solution
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.estimators.likelihood.scaled import Voxels
from qmri_bidsapp.estimators.likelihood.search import Found, restart_from_inside
from qmri_bidsapp.estimators.voxels import Solution, VoxelData
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.compose import Composition
from qmri_bidsapp.solvers.cholesky import dense
from qmri_bidsapp.solvers.levenberg_marquardt import MAX_ITERATIONS, minimise
from qmri_bidsapp.solvers.problem import Evaluate, sum_of_squares

#: Bias, in standard deviations, of which half is subtracted: the expansion holds where it is small.
TRUSTED_BIAS = 0.3


class BiasReducedLeastSquares(NonLinearLeastSquares):
    r"""Penalised least squares, less its bias of second order.

    Every parameter but the amplitude has a Gaussian prior around the middle of its bounds, its standard deviation by
    default the distance between them. The data outweigh it wherever they determine a parameter. A parameter that they
    do not determine (in SMT the fraction, where the diffusivity is near zero) stays in the middle instead of ending
    anywhere, mostly on a bound.

    Curvature of the model biases least squares, and so does the prior. With :math:`J` the Jacobian of the residuals
    over the noise, those of the prior among them, :math:`C = (J^T J)^{-1}` and :math:`H_i` the Hessian of signal
    :math:`i` (Box 1971),

    .. math:: b = -C J^T (r + \tfrac12 \mathrm{tr}(C H_i)),

    where :math:`r` is the residual of the prior, and zero for signals. The estimate is
    :math:`\hat\theta - b / (1 + (m / 0.3)^2)` with :math:`m` the largest of :math:`|b|` in standard deviations: where
    the expansion fails, next to nothing is subtracted. Parameters on a bound stay there.

    Where the noise is neither given nor can be estimated from residuals, this is least squares.

    Parameters
    ----------
    model, device, max_iterations
        As for `NonLinearLeastSquares`.
    prior_width : float
        Standard deviation of the prior, relative to the distance between a parameter's bounds.

    Raises
    ------
    UsageError
        If the prior has no width.
    """

    name: ClassVar[str] = "reduced"
    title: ClassVar[str] = "Least squares with a weak prior and reduced bias"
    std_kind: ClassVar[str] = "Cramer-Rao bound at the estimate, with the prior"
    reference: ClassVar[str] = "Box 1971, J R Stat Soc B 33:171; Cook et al. 1986, Biometrika 73:615"
    methods: ClassVar[str] = (
        "With the estimator reduced, least squares were penalised by a weak prior around the middle of the bounds, "
        "and the bias of second order was taken off [@box] [@cook]."
    )
    bibliography: ClassVar[str] = """
    @article{box,
      author = {Box MJ},
      year = {1971},
      title = {Bias in nonlinear estimation},
      journal = {Journal of the Royal Statistical Society, Series B},
      volume = {33},
      pages = {171-201},
      doi = {10.1111/j.2517-6161.1971.tb00871.x}
    }
    @article{cook,
      author = {Cook RD, Tsai CL, Wei BC},
      year = {1986},
      title = {Bias in nonlinear regression},
      journal = {Biometrika},
      volume = {73},
      pages = {615-623},
      doi = {10.1093/biomet/73.3.615}
    }
    """

    @classmethod
    def supports(cls, model: SignalModel) -> bool:
        """Return whether there are few parameters, none of them a direction, for which a prior would have no middle."""
        return not isinstance(model, Composition) and super().supports(model)

    def __init__(
        self,
        model: SignalModel,
        *,
        device: str = "cpu",
        max_iterations: int = MAX_ITERATIONS,
        prior_width: float = 1.0,
    ) -> None:
        super().__init__(model, device=device, max_iterations=max_iterations)
        if not prior_width > 0:
            raise UsageError(f"The prior needs a positive width, got prior_width = {prior_width:g}.")
        self.prior_width = prior_width

    def _prepare(self, acquisition: Acquisition, seed: int) -> None:
        """Prepare the search and the prior."""
        super()._prepare(acquisition, seed)
        lower, upper, is_periodic = self.problem.bounds
        self._centre = (lower + upper) / 2
        self._root_precision = 1 / (self.prior_width * (upper - lower)) * ~is_periodic
        self._root_precision[0] = 0

    def _solve(self, voxels: VoxelData) -> Solution:
        """Return the penalised minimum less its bias; see `VoxelwiseEstimator`."""
        problem, relative = self.problem, self.problem.voxels(voxels)
        scaled, variance, _ = self.least_squares(relative)
        objective = sum_of_squares(self._penalised(relative, variance.sqrt().nan_to_num()))
        n = self.max_iterations
        found = Found(*minimise(objective, scaled, problem.bounds, iterations=n, batch=problem.batch))
        scaled, _, converged = restart_from_inside(problem, objective, found, n)
        sensitivity = self._sensitivity(relative)
        parts = [
            self._correct(relative, sensitivity, scaled[rows], variance[rows], rows)
            for rows in problem.batches(len(scaled))
        ]
        return cramer_rao_solution(problem, relative, torch.cat(parts), variance, converged, sensitivity)

    def _penalised(self, voxels: Voxels, sigma: torch.Tensor) -> Evaluate:
        """Return a function that gives residuals and Jacobians, with those of the prior, times the noise, as last rows.

        `sigma` is the noise of each voxel, (n,).
        """
        residuals = self.problem.residuals(voxels)

        def evaluate(scaled: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            residual, jacobian = residuals(scaled, index)
            root = sigma[index].unsqueeze(-1) * self._root_precision
            residual = torch.cat([residual, root * (scaled - self._centre)], dim=-1)
            return residual, torch.cat([jacobian, torch.diag_embed(root)], dim=-2)

        return evaluate

    def _sensitivity(self, voxels: Voxels) -> Sensitivity:
        """Return the Jacobian with the rows of the prior."""

        def sensitivity(scaled: torch.Tensor, variance: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            jacobian = self.problem.signal(voxels, scaled, index)[1]
            prior = torch.diag_embed(variance.sqrt().nan_to_num().unsqueeze(-1) * self._root_precision)
            return torch.cat([jacobian, prior], dim=-2)

        return sensitivity

    def _correct(
        self,
        voxels: Voxels,
        sensitivity: Sensitivity,
        scaled: torch.Tensor,
        variance: torch.Tensor,
        index: torch.Tensor,
    ) -> torch.Tensor:
        """Return the estimates (n, p) of the voxels `index` less their bias."""
        rows = sensitivity(scaled, variance, index).double()
        root = dense(covariance_root(rows, variance, self.problem.is_free(scaled)))
        covariance = root.mT @ root
        curvature = self._curvature(voxels, scaled.double(), covariance, index)
        prior = variance.sqrt().unsqueeze(-1) * self._root_precision * (scaled - self._centre)
        excess = torch.cat([curvature / 2, prior], dim=-1) / variance.unsqueeze(-1)
        bias = -(covariance @ (rows.mT @ excess.unsqueeze(-1))).squeeze(-1)
        std = covariance.diagonal(dim1=1, dim2=2).sqrt()
        size = (bias / std).nan_to_num().abs().amax(-1, keepdim=True)
        # Without noise there is no bias; where the noise is unknown, so is the bias.
        correction = (bias / (1 + (size / TRUSTED_BIAS).square())).nan_to_num(posinf=0.0, neginf=0.0)
        return self.problem.bounds.bring_back(scaled - correction.to(scaled))

    def _curvature(
        self, voxels: Voxels, scaled: torch.Tensor, covariance: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """Return the trace of covariance times Hessian of every signal, (n, m), from differences of Jacobians."""
        covariates = voxels.covariates[index].double()
        bounds = self.problem.bounds
        # Parameters that count as off their bounds stay within them.
        steps = torch.diag(BOUND_TOLERANCE * (bounds.upper - bounds.lower)).double()
        parts = []
        for i, step in enumerate(steps):
            above, below = (self.problem.jacobian(values, covariates) for values in (scaled + step, scaled - step))
            second = (above - below) / (2 * step[i])
            parts.append((second * covariance[:, i].unsqueeze(1)).sum(-1))
        return torch.stack(parts).sum(0)
