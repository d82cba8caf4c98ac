"""Fits in which every voxel has a number of fibre directions of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.compose import MAX_BUNDLES, Composition

#: Names of angles in the model with one bundle, and in models with several.
_RENAMED = {"theta": "theta1", "phi": "phi1"}


class BundlesByVoxel(Estimator):
    """Fits a composition with 0 to 3 bundles, as many as directions are given for the voxel.

    The columns of the maps are those of the model with three bundles; parameters of bundles that a voxel lacks are NaN.
    A single bundle has a fraction of one, without a standard deviation. Residuals of voxels with different numbers of
    bundles leave different degrees of freedom, so that the maps do not hold their variance: standard deviations rest on
    each voxel's own where no noise is given.

    Parameters
    ----------
    model : Composition
        With any number of bundles.
    kind : type
        Estimator of the single voxel.
    device : str
        Torch device.
    options : mapping, optional
        Options of that estimator, by name.
    """

    name: ClassVar[str] = "bundles"
    title: ClassVar[str] = "As many bundles as directions"
    reference: ClassVar[str] = "Jeurissen et al. 2014, NeuroImage 103:411"
    model: Composition

    def __init__(
        self,
        model: Composition,
        kind: type[NonLinearLeastSquares] = NonLinearLeastSquares,
        *,
        device: str = "cpu",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model.with_bundles(MAX_BUNDLES)(), device=device)
        given = dict(options or {})
        self._parts = [kind(model.with_bundles(n)(), device=device, **given) for n in range(MAX_BUNDLES + 1)]
        self.std_kind = kind.std_kind  # type: ignore[misc]

    @classmethod
    def supports(cls, model: SignalModel) -> bool:
        """Return whether the model has fibre directions."""
        return isinstance(model, Composition)

    def fit(self, acquisition: Acquisition, *, seed: int = 0) -> Self:
        """Prepare the fits with each number of bundles."""
        for part in self._parts:
            part.fit(acquisition, seed=seed)
        return self

    def predict(
        self,
        signals: npt.ArrayLike,
        *,
        noise_std: npt.ArrayLike | None = None,
        covariates: npt.ArrayLike | None = None,
        directions: npt.ArrayLike | None = None,
    ) -> ParameterMaps:
        """Estimate; see `Estimator.predict`.

        `directions`, (n_voxels, 3, 3), in the frame of the gradient directions, are those of the fibres, first to last;
        NaN where there is none. Lengths are in proportion to the bundles' shares.

        Raises
        ------
        ValueError
            If the directions are missing or of another shape.
        """
        values = np.asarray(signals, dtype=np.float32)
        shape = (len(values), MAX_BUNDLES, 3)
        toward = np.full(shape, np.nan) if directions is None else np.asarray(directions, dtype=np.float32)
        if directions is None or toward.shape != shape:
            raise ValueError(f"Directions must have shape {shape}, got {None if directions is None else toward.shape}.")
        noise = None if noise_std is None else np.broadcast_to(np.asarray(noise_std, dtype=np.float32), len(values))
        count = np.isfinite(toward).all(axis=-1).sum(axis=-1)
        columns = {p.name: i for i, p in enumerate((*self.model.parameters, *self.model.derived))}
        estimate, std = (np.full((len(values), len(columns)), np.nan, dtype=np.float32) for _ in range(2))
        status = np.full(len(values), Status.OK, dtype=np.uint8)
        for n, part in enumerate(self._parts):
            voxels = np.flatnonzero(count == n)
            if not len(voxels):
                continue
            maps = part.predict(
                values[voxels],
                noise_std=None if noise is None else noise[voxels],
                covariates=None if covariates is None else np.asarray(covariates)[voxels],
                directions=toward[voxels, :n],
            )
            where = np.array([columns[_RENAMED.get(p.name, p.name)] for p in maps.parameters])
            cells = np.ix_(voxels, where)
            estimate[cells], std[cells] = maps.estimate, maps.std
            status[voxels] = maps.status
            if n == 1:
                given = np.isfinite(maps.estimate[:, 0])
                estimate[voxels[given], columns["bundle1_fraction"]] = 1.0
        return ParameterMaps((*self.model.parameters, *self.model.derived), estimate, std, self.std_kind, status)
