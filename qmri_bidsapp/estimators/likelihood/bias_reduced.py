"""Least squares with a weak prior and reduced bias."""

from __future__ import annotations

from typing import ClassVar

import torch
from typing_extensions import Self

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.estimators.likelihood.covariance import covariance_root
from qmri_bidsapp.estimators.likelihood.least_squares import BOUND_TOLERANCE, NonLinearLeastSquares, Voxels
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.compose import Composition
from qmri_bidsapp.solvers.cholesky import dense
from qmri_bidsapp.solvers.levenberg_marquardt import minimise
from qmri_bidsapp.solvers.problem import Evaluate, sum_of_squares

#: Standard deviation of the prior, relative to the distance between a parameter's bounds.
PRIOR_WIDTH = 1.0
#: Bias, in standard deviations, of which half is taken off: the expansion holds where it is small.
TRUSTED_BIAS = 0.3


class BiasReducedLeastSquares(NonLinearLeastSquares):
    r"""Penalised least squares, less its bias of second order.

    Every parameter but the amplitude has a Gaussian prior around the middle of its bounds, its standard deviation the
    distance between them. What the signal tells of outweighs it; what it does not (in SMT the fraction, where the
    diffusivity is near zero) stays in the middle instead of ending anywhere, mostly on a bound.

    Curvature of the model biases least squares, and so does the prior. With :math:`J` the Jacobian of the residuals
    over the noise, those of the prior among them, :math:`C = (J^T J)^{-1}` and :math:`H_i` the Hessian of signal
    :math:`i` (Box 1971),

    .. math:: b = -C J^T (r + \tfrac12 \mathrm{tr}(C H_i)),

    where :math:`r` is the residual of the prior, and zero for signals. The estimate is
    :math:`\hat\theta - b / (1 + (m / 0.3)^2)` with :math:`m` the largest of :math:`|b|` in standard deviations: where
    the expansion fails, next to nothing is taken off. Parameters on a bound stay there.

    Where the noise is neither given nor can be told from residuals, this is least squares.
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
        """Tell whether there are few parameters, none of them a direction, of which no value is more likely."""
        return not isinstance(model, Composition) and super().supports(model)

    def fit(self, acquisition: Acquisition, *, seed: int = 0) -> Self:
        """Prepare the search and the prior; nothing is random, so that `seed` has no effect."""
        super().fit(acquisition, seed=seed)
        lower, upper, is_periodic = self._bounds
        self._centre = (lower + upper) / 2
        self._root_precision = 1 / (PRIOR_WIDTH * (upper - lower)) * ~is_periodic
        self._root_precision[0] = 0
        return self

    def _estimate(self, voxels: Voxels) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return scaled parameters (n, n_parameters), noise variance (n,) and whether the minimum was reached (n,)."""
        scaled, variance, _ = super()._estimate(voxels)
        sigma = variance.sqrt().nan_to_num()
        objective = sum_of_squares(self._penalised(voxels, sigma))
        found = minimise(objective, scaled, self._bounds, batch=self._batch)
        scaled, _, converged = self._leave_bounds(objective, *found)
        index = torch.arange(len(scaled), device=self.device)
        parts = [self._correct(voxels, scaled[rows], variance[rows], rows) for rows in torch.split(index, self._batch)]
        return torch.cat(parts) if parts else scaled, variance, converged

    def _penalised(self, voxels: Voxels, sigma: torch.Tensor) -> Evaluate:
        """Return what gives residuals and Jacobians, those of the prior, times the noise, as the last rows."""
        residuals = self._residuals(voxels)

        def evaluate(scaled: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            residual, jacobian = residuals(scaled, index)
            root = sigma[index].unsqueeze(-1) * self._root_precision
            residual = torch.cat([residual, root * (scaled - self._centre)], dim=-1)
            return residual, torch.cat([jacobian, torch.diag_embed(root)], dim=-2)

        return evaluate

    def _sensitivity(
        self, voxels: Voxels, scaled: torch.Tensor, variance: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """Return J with those rows; see the base class."""
        jacobian = super()._sensitivity(voxels, scaled, variance, index)
        prior = torch.diag_embed(variance.sqrt().nan_to_num().unsqueeze(-1) * self._root_precision)
        return torch.cat([jacobian, prior], dim=-2)

    def _correct(
        self, voxels: Voxels, scaled: torch.Tensor, variance: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """Return the estimates (n, p) of the voxels `index` with their bias taken off."""
        sensitivity = self._sensitivity(voxels, scaled, variance, index).double()
        root = dense(covariance_root(sensitivity, variance, self._free(scaled)))
        covariance = root.mT @ root
        curvature = self._curvature(voxels, scaled.double(), covariance, index)
        prior = variance.sqrt().unsqueeze(-1) * self._root_precision * (scaled - self._centre)
        excess = torch.cat([curvature / 2, prior], dim=-1) / variance.unsqueeze(-1)
        bias = -(covariance @ (sensitivity.mT @ excess.unsqueeze(-1))).squeeze(-1)
        std = covariance.diagonal(dim1=1, dim2=2).sqrt()
        size = (bias / std).nan_to_num().abs().amax(-1, keepdim=True)
        # Without noise, or where it is unknown, there is no bias to tell of.
        correction = (bias / (1 + (size / TRUSTED_BIAS).square())).nan_to_num(posinf=0.0, neginf=0.0)
        return self._bounds.bring_back(scaled - correction.to(scaled))

    def _curvature(
        self, voxels: Voxels, scaled: torch.Tensor, covariance: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """Return the trace of covariance times Hessian of every signal, (n, m), from differences of Jacobians."""
        covariates = voxels.covariates[index].double()

        def jacobian(values: torch.Tensor) -> torch.Tensor:
            theta = self.model.with_covariates(values * self._scale, covariates)
            return self.model.jacobian(theta, self.acquisition_) * self._weight

        # Whatever is off its bounds stays within them.
        steps = torch.diag(BOUND_TOLERANCE * (self._bounds.upper - self._bounds.lower)).double()
        parts = []
        for i, step in enumerate(steps):
            second = (jacobian(scaled + step) - jacobian(scaled - step)) / (2 * step[i])
            parts.append((second * covariance[:, i].unsqueeze(1)).sum(-1))
        return torch.stack(parts).sum(0)
