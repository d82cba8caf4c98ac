"""Estimators of single voxels: everything around the method itself."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy.typing as npt
import torch
from typing_extensions import Self

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.maps import ParameterMaps
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.parallel import predict_chunks
from qmri_bidsapp.estimators.voxels import Solution, VoxelData, assemble, check_inputs


class VoxelwiseEstimator(Estimator):
    """Estimator in which no voxel influences another.

    `fit` checks the protocol; `predict` checks its arguments, finds the voxels that can be fitted, passes them to the
    method in chunks, side by side in threads, and puts its results into maps of all voxels.

    A subclass implements `supports` and `_solve`, which estimates the parameters and the derived ones of some voxels.
    It overrides `_prepare` to compute what depends on the protocol alone, and `check` to add requirements to those of
    the model.

    Attributes
    ----------
    chunk_size : int or None
        Most voxels that `_solve` is given at once. None: all of them, for methods that form batches of their own;
        estimators with `has_posterior` need this.
    """

    chunk_size: ClassVar[int | None]

    def fit(self, acquisition: Acquisition, *, seed: int = 0) -> Self:
        """Prepare for a protocol; see `Estimator.fit`. `seed` matters only to methods with random numbers."""
        self.check(self.model, acquisition)
        self.acquisition_ = acquisition
        self._prepare(acquisition, seed)
        return self

    def predict(
        self,
        signals: npt.ArrayLike,
        *,
        noise_std: npt.ArrayLike | None = None,
        covariates: npt.ArrayLike | None = None,
    ) -> ParameterMaps:
        """Estimate; see `Estimator.predict`."""
        return self._predict(check_inputs(self, signals, noise_std=noise_std, covariates=covariates))

    def _predict(self, data: VoxelData) -> ParameterMaps:
        """Return the maps of all voxels."""
        has_sign = self.acquisition_.has_sign

        def predict(part: slice) -> ParameterMaps:
            status, usable, voxels = data.part(part).screen(has_sign=has_sign)
            return assemble(self.model, self.std_kind, status, usable, self._solve(voxels))

        if self.chunk_size is None:
            with torch.no_grad():
                return predict(slice(None))
        return predict_chunks(
            self.model,
            self.std_kind,
            predict,
            len(data.signals),
            largest=self.chunk_size,
            device=self.device,
            with_variance=self.std_from_residuals,
        )

    def _prepare(self, acquisition: Acquisition, seed: int) -> None:
        """Compute what depends on the protocol alone, such as a dictionary; nothing by default.

        Parameters
        ----------
        acquisition : Acquisition
            It has passed `check`.
        seed : int
            Seed of all random numbers of the method.
        """

    @abstractmethod
    def _solve(self, voxels: VoxelData) -> Solution:
        """Return estimates and standard deviations of voxels that can be fitted.

        Parameters
        ----------
        voxels : VoxelData
            Finite signals that are not all zero, and covariates within their bounds. There may be no voxel at all.
            It is called from several threads at once, without gradients, and must not change the estimator.

        Returns
        -------
        Solution
            One row for each voxel, in their order.
        """
