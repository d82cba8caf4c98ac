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

    The constructor only stores options. `fit` does all the work that depends on the protocol alone, `predict` that on
    voxels. Voxels do not influence each other unless the estimator `is_spatial`.

    Parameters
    ----------
    model : SignalModel
        Model whose parameters are estimated.
    device : str
        Torch device, e.g. ``"cpu"`` or ``"cuda:0"``.

    Attributes
    ----------
    name : str
        Registry name, e.g. ``"nlls"``.
    std_kind : str
        How standard deviations are obtained, in words.
    reference : str
        Author, year, journal of the method.
    methods : str
        Sentence for the methods text, with ``[@key]`` marks for references; empty for the default estimators, which the
        text describes for all fits.
    bibliography : str
        BibTeX entries of the keys in `methods` that ``data/boilerplate.bib`` does not have.
    needs_raw_magnitudes : bool
        Whether the method models the noise of magnitudes as acquired (Rician). Series whose noise floor was removed by
        preprocessing, as of diffusion series, must not be given to it.
    is_spatial : bool
        Whether neighbouring voxels influence each other, so that `predict_volume` should be given the whole volume.
    has_posterior : bool
        Whether its maps hold credible intervals and the log evidence.
    std_from_residuals : bool
        Whether standard deviations rest on each voxel's own residuals where no noise is given. Its maps then hold
        the residual variance, so that the noise estimates of all voxels of a series can be pooled.
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

    #: Protocol; after `fit`.
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
        """Return whether this estimator can be used with a model."""

    @classmethod
    def check(cls, model: SignalModel, acquisition: Acquisition) -> None:
        """Raise ProtocolError if a protocol cannot identify the model's parameters or this estimator cannot use it."""
        model.check(acquisition)

    @abstractmethod
    def fit(self, acquisition: Acquisition, *, seed: int = 0) -> Self:
        """Prepare for a protocol.

        Parameters
        ----------
        acquisition : Acquisition
            Protocol of the signals: that of the series, or the one that `model.adapt` makes of it.
        seed : int
            Seed of all random numbers; methods without any ignore it.

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
        """Estimate the parameters of voxels.

        Parameters
        ----------
        signals : array_like
            (n_voxels, n_measurements), in any unit; the amplitude parameter comes in the same unit.
        noise_std : array_like, optional
            (n_voxels,) standard deviation of the noise of one raw measurement, in the unit of the signals, or one
            number for all voxels. Standard deviations are proportional to it. Without it, the noise is estimated from
            each voxel's residuals. A value that is not finite and positive means that the noise of this voxel is
            unknown: its standard deviations are NaN, unless the class documents otherwise.
        covariates : array_like, optional
            (n_voxels, n_covariates) values of the model's covariates, in its order and their units; neutral values by
            default. A voxel with a value that is not finite or out of bounds is INVALID_INPUT.

        Returns
        -------
        ParameterMaps
            Maps of the model's parameters and derived parameters.

        Raises
        ------
        ProtocolError
            If `fit` was not called.
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
        """Estimate the voxels of a mask, whose positions are known.

        Parameters
        ----------
        signals : array_like
            (n_voxels, n_measurements) of the voxels in the mask, in C order.
        mask : ndarray
            (x, y, z) bool.
        spacing : sequence of float
            Distance of neighbouring voxels along x, y and z, mm.
        noise_std, covariates : array_like, optional
            As in `predict`.

        Returns
        -------
        ParameterMaps
            Those of `predict`, unless the estimator `is_spatial`.
        """
        return self.predict(signals, noise_std=noise_std, covariates=covariates)
