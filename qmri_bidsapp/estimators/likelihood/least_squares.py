"""Bounded non-linear least squares, started from a dictionary."""

from __future__ import annotations

from typing import ClassVar

import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.maps import ParameterMaps
from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.estimators.likelihood.cramer_rao import cramer_rao_solution
from qmri_bidsapp.estimators.likelihood.scaled import ScaledModel, Voxels
from qmri_bidsapp.estimators.likelihood.search import MultiStartSearch, Search
from qmri_bidsapp.estimators.likelihood.starts import starts_for
from qmri_bidsapp.estimators.voxels import Solution, VoxelData, check_inputs
from qmri_bidsapp.estimators.voxelwise import VoxelwiseEstimator
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.compose import Composition
from qmri_bidsapp.solvers.levenberg_marquardt import MAX_ITERATIONS
from qmri_bidsapp.solvers.problem import sum_of_squares


class NonLinearLeastSquares(VoxelwiseEstimator):
    """Levenberg-Marquardt within bounds (Marquardt 1963), started from the best entries of a dictionary.

    The dictionary spans all parameters but the amplitude, which is projected out; a single starting point
    would lead to local minima and to a precision that hides bias. It holds for neutral covariates: others only shift
    the start; steps and standard deviations use each voxel's own.

    Parameters
    ----------
    model, device
        As for `Estimator`.
    max_iterations : int
        Most steps of a search. A voxel that takes more is NOT_CONVERGED.

    Raises
    ------
    UsageError
        If there is no step.

    Attributes
    ----------
    problem : ScaledModel
        Model and protocol in scaled parameters; after `fit`.
    search : Search
        How the lowest minimum is found; after `fit`. Subclasses that search otherwise set another one in `_prepare`.
    """

    name: ClassVar[str] = "nlls"
    title: ClassVar[str] = "Bounded non-linear least squares (Levenberg-Marquardt)"
    std_kind: ClassVar[str] = "Cramer-Rao bound at the estimate"
    reference: ClassVar[str] = "Marquardt 1963, J Soc Ind Appl Math 11:431"
    std_from_residuals: ClassVar[bool] = True
    #: Enough that the few voxels that take many steps share the cost of a call.
    chunk_size: ClassVar[int | None] = 131_072

    problem: ScaledModel
    search: Search

    def __init__(self, model: SignalModel, *, device: str = "cpu", max_iterations: int = MAX_ITERATIONS) -> None:
        super().__init__(model, device=device)
        if max_iterations < 1:
            raise UsageError(f"A search needs at least one step, got max_iterations = {max_iterations}.")
        self.max_iterations = max_iterations

    #: Models with more parameters would need a dictionary too large to be searched.
    MAX_PARAMETERS: ClassVar[int] = 4
    methods: ClassVar[str] = ""

    @classmethod
    def supports(cls, model: SignalModel) -> bool:
        """Return whether a dictionary can give starting points, apart from the direction of fibres."""
        return isinstance(model, Composition) or len(model.parameters) <= cls.MAX_PARAMETERS

    def predict(
        self,
        signals: npt.ArrayLike,
        *,
        noise_std: npt.ArrayLike | None = None,
        covariates: npt.ArrayLike | None = None,
        directions: npt.ArrayLike | None = None,
    ) -> ParameterMaps:
        """Estimate; see `Estimator.predict`.

        Parameters
        ----------
        signals, noise_std, covariates : array_like
            As for `Estimator.predict`.
        directions : array_like, optional
            (n_voxels, n_bundles, 3), in the frame of the gradient directions: where the search for the directions of a
            composition begins. Lengths are in proportion to the bundles' shares. Several bundles need it; the direction
            of a single one is found from the signals.
        """
        return self._predict(
            check_inputs(self, signals, noise_std=noise_std, covariates=covariates, directions=directions)
        )

    def _prepare(self, acquisition: Acquisition, seed: int) -> None:
        """Compute the dictionary."""
        self.problem = ScaledModel(self.model, acquisition, self.device)
        starts = starts_for(self.model, acquisition, self.device)
        self.search = MultiStartSearch(self.problem, starts, iterations=self.max_iterations)

    def _solve(self, voxels: VoxelData) -> Solution:
        """Return the lowest minimum; see `VoxelwiseEstimator`."""
        relative = self.problem.voxels(voxels)
        return cramer_rao_solution(self.problem, relative, *self.least_squares(relative))

    def least_squares(self, voxels: Voxels) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return scaled parameters (n, n_parameters), noise variance (n,) and whether the minimum was reached (n,).

        The noise variance is the given one or, without any, that of the residuals: NaN if these have no freedom.
        """
        objective = sum_of_squares(self.problem.residuals(voxels))
        scaled, cost, converged = self.search(objective, voxels.target, voxels.directions)
        if voxels.noise_variance is not None:
            return scaled, voxels.noise_variance, converged
        n_free = self.problem.n_free
        variance = cost / n_free if n_free > 0 else torch.full_like(cost, torch.nan)
        return scaled, variance, converged
