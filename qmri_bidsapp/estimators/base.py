"""The contract of an estimator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.maps import ParameterMaps
from qmri_bidsapp.models.base import SignalModel


class Estimator(ABC):
    """Estimates a model's parameters from signals, voxel by voxel.

    Construction only stores options. `fit` does all that can be done before a voxel is seen; `predict` works
    on voxels. Voxels do not influence each other unless the class says so.

    Parameters
    ----------
    model : SignalModel
        What is estimated.
    device : str
        Torch device, e.g. ``"cpu"`` or ``"cuda:0"``.

    Attributes
    ----------
    name : str
        Registry name, e.g. ``"nlls"``.
    std_kind : str
        How standard deviations are obtained.
    reference : str
        Author, year, journal of the method.
    methods : str
        Sentence for the methods text, with ``[@key]`` marks for references; empty for the default estimators, which the
        text describes for all fits.
    bibliography : str
        BibTeX entries of the keys in `methods` that ``data/boilerplate.bib`` does not have.
    needs_raw_magnitudes : bool
        Whether the noise is taken as that of magnitudes as they were acquired: preprocessing that takes their noise
        floor away, as of diffusion series, does not go with it.
    is_spatial : bool
        Whether neighbouring voxels influence each other, so that `predict_volume` should be given the whole volume.
    has_posterior : bool
        Whether its maps hold intervals and the log evidence.
    std_from_residuals : bool
        Whether standard deviations rest on each voxel's own residuals where no noise is given. Its maps then hold
        their variance, so that what the voxels of a series tell of the noise can be put together.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    std_kind: ClassVar[str]
    reference: ClassVar[str]
    methods: ClassVar[str] = ""
    bibliography: ClassVar[str] = ""
    needs_raw_magnitudes: ClassVar[bool] = False
    is_spatial: ClassVar[bool] = False
    has_posterior: ClassVar[bool] = False
    std_from_residuals: ClassVar[bool] = False

    acquisition_: Acquisition

    def __init__(self, model: SignalModel, *, device: str = "cpu") -> None:
        self.model = model
        self.device = device

    @classmethod
    def label(cls) -> str:
        """Return the value of the BIDS ``desc`` entity: the name without hyphens, which BIDS does not allow."""
        return cls.name.replace("-", "")

    @classmethod
    @abstractmethod
    def supports(cls, model: SignalModel) -> bool:
        """Tell whether this estimator can be used with a model."""

    @classmethod
    def check(cls, model: SignalModel, acquisition: Acquisition) -> None:
        """Raise ProtocolError if a protocol cannot identify the model's parameters, or is not for this estimator."""
        model.check(acquisition)

    @abstractmethod
    def fit(self, acquisition: Acquisition, *, seed: int = 0) -> Self:
        """Prepare for a protocol.

        Raises
        ------
        ProtocolError
            If the protocol cannot identify the model's parameters.
        """

    @abstractmethod
    def predict(
        self,
        signals: npt.ArrayLike,
        *,
        noise_std: npt.ArrayLike | None = None,
        covariates: npt.ArrayLike | None = None,
    ) -> ParameterMaps:
        """Estimate.

        Parameters
        ----------
        signals : array_like
            (n_voxels, n_measurements), in any unit; the amplitude parameter comes in the same unit.
        noise_std : array_like, optional
            (n_voxels,) standard deviation of the noise of one raw measurement, in the unit of the signals; it
            scales the standard deviations. Without it, it is estimated from each voxel's residuals. What is not a
            finite positive number says that it is not known: standard deviations are NaN there, unless the class
            says otherwise.
        covariates : array_like, optional
            (n_voxels, n_covariates) values of the model's covariates, in its order and their units; without it
            they are neutral. A voxel with a value that is not finite or out of its bounds is INVALID_INPUT.

        Returns
        -------
        ParameterMaps
            Of the model's parameters and derived parameters.

        Raises
        ------
        ValueError
            If the shape of `signals` does not fit the protocol, or that of `covariates` the model.
        """

    def predict_volume(
        self,
        signals: npt.ArrayLike,
        mask: npt.NDArray[np.bool_],
        *,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        noise_std: npt.ArrayLike | None = None,
        covariates: npt.ArrayLike | None = None,
    ) -> ParameterMaps:
        """Estimate voxels of which it is known where they lie.

        Parameters
        ----------
        signals : array_like
            (n_voxels, n_measurements) of the voxels in the mask, in C order.
        mask : ndarray
            (x, y, z) bool.
        spacing : sequence of float
            Distance of neighbouring voxels along x, y and z, mm.
        noise_std, covariates : array_like, optional
            As in `predict`, which this is unless the estimator `is_spatial`.
        """
        return self.predict(signals, noise_std=noise_std, covariates=covariates)
