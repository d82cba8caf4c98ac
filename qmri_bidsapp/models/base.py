"""The contract of a signal model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.parameters import Directional, NamedTissue, Parameter
from qmri_bidsapp.core.prior import Prior, Uniform
from qmri_bidsapp.errors import PriorError, ProtocolError
from qmri_bidsapp.models.differentiation import derivatives


class SignalModel(ABC):
    """Maps tissue parameters to the noise-free signal of a protocol.

    Subclasses hold no state: the same instance serves every protocol, device and precision.

    Attributes
    ----------
    name : str
        Registry name, e.g. ``"t1"``; also the value of the BIDS ``model`` entity.
    title : str
        For reports, e.g. ``"T1 by inversion recovery"``.
    reference : str
        Author, year, journal and equation that the signal follows.
    methods : str
        Sentence for the methods text of a run, with ``[@key]`` marks for references.
    bibliography : str
        BibTeX entries of the keys in `methods` that ``data/boilerplate.bib`` does not have.
    tissues : tuple of NamedTissue
        Tissues and abnormalities with published parameters; a certificate shows how the estimator reproduces them.
    parameters : tuple of Parameter
        What is estimated. The first is the signal's amplitude: the signal is proportional to it.
    derived : tuple of Parameter
        What follows from the parameters by `derive`.
    covariates : tuple of Parameter
        What is known of a voxel from another map, such as the transmit field; not estimated. ``scale`` is the
        neutral value, which holds where there is no map; a value out of ``bounds`` is no measurement. In `theta`
        they are columns after the parameters.
    directional : tuple of Directional
        Parameters that turn with the tissue: angles, elements of tensors.
    smooth : str or None
        Name of a parameter that varies smoothly over space, whatever the tissue, where that is known of one.
    acquisition_type : type
        Protocol that `signal` takes.
    bids_suffixes : tuple of str
        BIDS suffixes of the series that the model is fitted to.
    needs : str
        What `check` asks of a protocol, in words.
    opt_in : bool
        Whether ``auto`` leaves the model out, so that it is fitted only when named. Set for models that need data
        acquired for them, which the protocol alone cannot show.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    reference: ClassVar[str]
    methods: ClassVar[str] = ""
    bibliography: ClassVar[str] = ""
    tissues: ClassVar[tuple[NamedTissue, ...]] = ()
    parameters: ClassVar[tuple[Parameter, ...]]
    derived: ClassVar[tuple[Parameter, ...]] = ()
    covariates: ClassVar[tuple[Parameter, ...]] = ()
    directional: ClassVar[tuple[Directional, ...]] = ()
    smooth: ClassVar[str | None] = None
    acquisition_type: ClassVar[type[Acquisition]]
    bids_suffixes: ClassVar[tuple[str, ...]]
    needs: ClassVar[str] = ""
    opt_in: ClassVar[bool] = False

    @property
    def mixing(self) -> tuple[int, ...]:
        """Positions of the shares that mix signals: with all other parameters known, the signal is linear in them.

        Each is a share, between 0 and 1, of what those before it leave; a single one may have other bounds. None by
        default.
        """
        return ()

    @abstractmethod
    def signal(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return the signal.

        Parameters
        ----------
        theta : Tensor
            (..., n_parameters + n_covariates), in each parameter's unit.
        acquisition : Acquisition
            Protocol of `acquisition_type`.

        Returns
        -------
        Tensor
            (..., n_measurements), with the dtype and device of `theta`.
        """

    def jacobian(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return the derivatives of the signal by the parameters, (..., n_measurements, n_parameters).

        This is automatic differentiation. Models override it with a closed form where that pays; this one is then
        the test's oracle. `theta` is as in `signal`.
        """
        flat = theta.reshape(-1, theta.shape[-1])
        _, jacobian = derivatives(lambda value: self.signal(value, acquisition), flat)
        return jacobian.reshape(*theta.shape[:-1], *jacobian.shape[1:])[..., : len(self.parameters)]

    def derive(self, theta: torch.Tensor) -> torch.Tensor:
        """Return the derived parameters, (..., n_derived), in each one's unit; `theta` is as in `signal`."""
        return theta[..., :0]

    def with_covariates(self, parameters: torch.Tensor, covariates: torch.Tensor | None = None) -> torch.Tensor:
        """Return `theta` for `signal`: (..., n_parameters) and (..., n_covariates), neutral where None."""
        if covariates is None:
            covariates = parameters.new_tensor([covariate.scale for covariate in self.covariates])
            covariates = covariates.expand(*parameters.shape[:-1], -1)
        return torch.cat([parameters, covariates], dim=-1) if self.covariates else parameters

    def default_prior(self, ranges: Mapping[str, tuple[float, float]] | None = None) -> Prior:
        """Return the distribution of plausible tissue of which nothing else is known, for training.

        The base class draws every parameter but the amplitude uniformly within its bounds; models whose bounds admit
        what no tissue can be override it. Whatever is drawn is then turned at random: directions are not for a prior.

        Parameters
        ----------
        ranges : mapping, optional
            Name -> (lowest, highest) value, in the parameter's unit, in place of its bounds.

        Raises
        ------
        PriorError
            If a name is unknown or that of a direction, or a range is not within the bounds.
        """
        turning = {self.parameters[i].name for part in self.directional for i in part.columns}
        if named := sorted(turning & set(ranges or {})):
            raise PriorError(f"Tissue is turned at random: no range can be set for {', '.join(named)}.")
        return Uniform(self.parameters[1:], ranges)

    def canonical(self, parameters: torch.Tensor) -> torch.Tensor:
        """Return (..., n_parameters) that mean the same, in the one form in which they are reported."""
        return parameters

    def basins(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return (n,) labels of the parts of parameter space, each with a minimum of its own, that `theta` lies in.

        Estimators that start from a grid of n points then start once from each promising part. `theta` is as in
        `signal`, (n, n_parameters + n_covariates).
        """
        return torch.zeros(len(theta), dtype=torch.int64, device=theta.device)

    def adapt(self, acquisition: Acquisition) -> tuple[Acquisition, npt.NDArray[np.float64] | None]:
        """Return the protocol that the model uses of a series, and how the series' values lead to it.

        Returns
        -------
        Acquisition
            Protocol for `signal`.
        ndarray or None
            (n_measurements of the series, n_measurements of the returned protocol); ``signals @ matrix`` are the
            values to fit. None: the series is used as it is.
        """
        return acquisition, None

    def check(self, acquisition: Acquisition) -> None:
        """Raise ProtocolError if the protocol cannot identify the parameters.

        The base class asks for the right type and for at least as many distinct measurements as parameters;
        subclasses add what their physics needs.
        """
        if not isinstance(acquisition, self.acquisition_type):
            raise ProtocolError(
                f"Model {self.name} needs a {self.acquisition_type.__name__} protocol, "
                f"got {type(acquisition).__name__}."
            )
        if acquisition.n_measurements < len(self.parameters):
            raise ProtocolError(
                f"Model {self.name} needs at least {len(self.parameters)} measurements, "
                f"got {acquisition.n_measurements}; add the missing ones or leave the model out with --models."
            )


class SeparableModel(SignalModel):
    r"""A model whose signal is linear in some parameters once the others are known.

    .. math:: S = \sum_l c_l\, \phi_l(\alpha)

    or the magnitude of this. Variable projection then searches over the non-linear parameters alone (Golub and
    Pereyra 1973, SIAM J Numer Anal 10:413).

    Tensors here have the voxels last, which is the fast layout for sums over measurements.

    Attributes
    ----------
    nonlinear : tuple of int
        Positions of the non-linear parameters among `parameters`; at most two.
    """

    nonlinear: ClassVar[tuple[int, ...]]

    @abstractmethod
    def basis(
        self, nonlinear: torch.Tensor, acquisition: Acquisition
    ) -> tuple[list[torch.Tensor], list[tuple[int, torch.Tensor]]]:
        """Return the basis functions and their slopes.

        Parameters
        ----------
        nonlinear : Tensor
            (n_nonlinear, n_voxels), in each parameter's unit.
        acquisition : Acquisition

        Returns
        -------
        functions : list of Tensor
            Each (n_measurements, n_voxels), or (n_measurements, 1) where it depends on no parameter.
        slopes : list of (int, Tensor)
            For each non-linear parameter the one function that depends on it, and its derivative,
            (n_measurements, n_voxels).
        """

    @abstractmethod
    def combine(self, coefficients: list[torch.Tensor], nonlinear: torch.Tensor) -> torch.Tensor:
        """Return theta, (n_voxels, n_parameters).

        Parameters
        ----------
        coefficients : list of Tensor
            (n_voxels,) for each basis function.
        nonlinear : Tensor
            (n_nonlinear, n_voxels).
        """

    def signs(self, signals: torch.Tensor, acquisition: Acquisition) -> torch.Tensor | None:
        """Return the signs that a magnitude may have lost, (n_patterns, n_voxels, n_measurements).

        Parameters
        ----------
        signals : Tensor
            (n_voxels, n_measurements).
        acquisition : Acquisition

        Returns
        -------
        Tensor or None
            None: no sign is lost.
        """
        return None
