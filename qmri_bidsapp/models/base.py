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
        Estimated parameters. The first is the amplitude: the signal is proportional to it.
    derived : tuple of Parameter
        Quantities that `derive` computes from the parameters.
    covariates : tuple of Parameter
        Quantities of a voxel that come from another map, such as the transmit field, and are not estimated. ``scale``
        is the neutral value, used where there is no map; values out of ``bounds`` are invalid. In `theta` they are the
        columns after the parameters.
    directional : tuple of Directional
        Parameters that rotate with the tissue: angles, elements of tensors.
    smooth : str or None
        Name of a parameter that varies smoothly over space, independent of tissue, if there is one.
    acquisition_type : type
        Type of the protocol that `signal` takes.
    bids_suffixes : tuple of str
        BIDS suffixes of the series that the model is fitted to.
    needs : str
        What `check` requires of a protocol, in words.
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
        """Positions of the fractions that mix signals: with all other parameters known, the signal is linear in them.

        Each is the fraction, between 0 and 1, of what the ones before it leave; a single one may have other bounds.
        None by default.
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

        The base class uses automatic differentiation. Models override it with a closed form where that is faster; the
        contract tests compare the two. `theta` is as in `signal`.
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
        """Return the distribution of plausible tissue, for training and for certificates.

        The base class draws every parameter but the amplitude uniformly within its bounds. Models override it where
        the bounds admit implausible tissue. Draws are rotated at random afterwards, so that a prior has no directions.

        Parameters
        ----------
        ranges : mapping, optional
            Name -> (lowest, highest) value, in the parameter's unit, in place of its bounds.

        Raises
        ------
        PriorError
            If a name is unknown or belongs to a direction, or a range is not within the bounds.
        """
        turning = {self.parameters[i].name for part in self.directional for i in part.columns}
        if named := sorted(turning & set(ranges or {})):
            raise PriorError(f"Tissue is turned at random: no range can be set for {', '.join(named)}.")
        return Uniform(self.parameters[1:], ranges)

    def canonical(self, parameters: torch.Tensor) -> torch.Tensor:
        """Return (..., n_parameters) equivalent parameters in the unique form in which they are reported."""
        return parameters

    def basins(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return the label of the basin of each point, (n,): a part of parameter space with a minimum of its own.

        Estimators that start from a grid of n points start once in each promising basin. `theta` is as in `signal`,
        (n, n_parameters + n_covariates).
        """
        return torch.zeros(len(theta), dtype=torch.int64, device=theta.device)

    def caution(self, acquisition: Acquisition) -> str | None:
        """Return what of a protocol may bias the parameters or is not used, for plan, report and sidecars; or None.

        `acquisition` is the protocol as acquired.
        """
        return None

    def adapt(self, acquisition: Acquisition) -> tuple[Acquisition, npt.NDArray[np.float64] | None]:
        """Return the protocol that the model uses of a series, and the matrix that reduces the series to it.

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

        The base class requires the right type and at least as many measurements as parameters; subclasses add what
        their physics needs.
        """
        self._check_type(acquisition)
        if acquisition.n_measurements < len(self.parameters):
            raise ProtocolError(
                f"Model {self.name} needs at least {len(self.parameters)} measurements, "
                f"got {acquisition.n_measurements}; add the missing ones or leave the model out with --models."
            )

    def _check_type(self, acquisition: Acquisition) -> None:
        """Raise ProtocolError unless the protocol is of `acquisition_type`; name `adapt` if that makes it so."""
        needed, got = self.acquisition_type.__name__, type(acquisition).__name__
        if isinstance(acquisition, self.acquisition_type):
            return
        if isinstance(self.adapt(acquisition)[0], self.acquisition_type):
            raise ProtocolError(
                f"Model {self.name} is fitted to a {needed} protocol, which follows from this {got} series: call "
                "`protocol, matrix = model.adapt(acquisition)`, use `protocol` in place of the series and "
                "`signals @ matrix` in place of its signals; or call `qmri_bidsapp.fit`, which takes the series."
            )
        raise ProtocolError(f"Model {self.name} needs a {needed} protocol, got {got}.")


class SeparableModel(SignalModel):
    r"""A model whose signal is linear in some parameters once the others are known.

    .. math:: S = \sum_l c_l\, \phi_l(\alpha)

    or the magnitude of this. Variable projection then searches over the non-linear parameters alone (Golub and
    Pereyra 1973, SIAM J Numer Anal 10:413).

    Tensors here have the voxels last, which is the fast layout for sums over measurements.

    Attributes
    ----------
    nonlinear : tuple of int
        Positions of the non-linear parameters in `parameters`; at most two.
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
            Each (n_measurements, n_voxels), or (n_measurements, 1) if it depends on no parameter.
        slopes : list of (int, Tensor)
            For each non-linear parameter, the position of the one function that depends on it, and its derivative,
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
        """Return candidates for the signs that a magnitude lost, (n_patterns, n_voxels, n_measurements).

        Parameters
        ----------
        signals : Tensor
            (n_voxels, n_measurements).
        acquisition : Acquisition

        Returns
        -------
        Tensor or None
            None if no sign is lost.
        """
        return None
