"""Compartments of tissue and their diffusion-weighted signals.

A compartment's quantities (diffusivities, diameter, dispersion) are each set to a number, to a `Parameter`, which is
then estimated and shared by all compartments that name it, or to a function of the estimated parameters. Names and
definitions follow Panagiotaki et al. 2012, NeuroImage 59:2241.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from scipy.special import jnp_zeros

from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.models.legendre import Series, basis, watson_moments
from qmri_bidsapp.models.smt import FREE_DIFFUSIVITY

#: Name of an estimated parameter -> its values, (..., 1, 1).
Values = Mapping[str, torch.Tensor]
#: How a quantity of a compartment is set.
Setting = float | Parameter | Callable[[Values], torch.Tensor]

_DIFFUSIVITIES = (0.0, FREE_DIFFUSIVITY)
PARALLEL_DIFFUSIVITY = Parameter(
    "parallel_diffusivity",
    "mm2/s",
    (1e-4, FREE_DIFFUSIVITY),
    1e-3,
    "Diffusivity along fibres",
    None,
    _DIFFUSIVITIES,
    is_uniform=True,
)
PERPENDICULAR_DIFFUSIVITY = Parameter(
    "perpendicular_diffusivity",
    "mm2/s",
    _DIFFUSIVITIES,
    1e-3,
    "Diffusivity across fibres",
    None,
    _DIFFUSIVITIES,
    physical=(True, False),
)
ISOTROPIC_DIFFUSIVITY = Parameter(
    "isotropic_diffusivity",
    "mm2/s",
    _DIFFUSIVITIES,
    1e-3,
    "Isotropic diffusivity",
    None,
    _DIFFUSIVITIES,
    physical=(True, False),
)
DIAMETER = Parameter("diameter", "mm", (1e-4, 2e-2), 5e-3, "Axon diameter index", None, (0.0, 2e-2), is_uniform=True)
ODI = Parameter(
    "odi",
    "1",
    (0.01, 0.99),
    1.0,
    "Orientation dispersion index",
    None,
    (0.0, 1.0),
    is_uniform=True,
    is_skewed=True,
    # At the upper bound fibres point everywhere alike, up to 1 %; the lower one is where the program stops.
    physical=(False, True),
)

#: Roots of the derivative of the Bessel function J1. The terms of the sum over them fall with the sixth power of
#: the root; the neglected ones are less than 1e-8 of the sum for diameters up to 20 micrometres.
_BESSEL_ROOTS = jnp_zeros(1, 20)


class Encoding(NamedTuple):
    """Settings of measurements except their direction, and the Legendre series that represents signals.

    Attributes
    ----------
    b_value : Tensor
        (n_encodings, 1) s/mm2.
    small_delta, large_delta : Tensor or None
        (n_encodings, 1) s; None if the model does not need them.
    series : Series
        With the dtype and device of the computation.
    """

    b_value: torch.Tensor
    small_delta: torch.Tensor | None
    large_delta: torch.Tensor | None
    series: Series


@dataclass(frozen=True)
class Compartment(ABC):
    """One kind of tissue, symmetric about the fibre direction.

    Attributes
    ----------
    name : str
        Identifier within a model.
    oriented : bool
        Whether the signal depends on direction.
    """

    oriented: ClassVar[bool] = True

    @property
    @abstractmethod
    def name(self) -> str:
        """Identifier within a model."""

    @property
    def needs_timing(self) -> bool:
        """Whether the signal depends on duration and separation of the gradient pulses."""
        return False

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Estimated parameters, in the order of the compartment's quantities."""
        settings = (getattr(self, item.name) for item in fields(self))
        return tuple(setting for setting in settings if isinstance(setting, Parameter))

    @property
    def dispersion(self) -> Setting:
        """Orientation dispersion index of the fibres about their mean direction."""
        return 0.0

    @abstractmethod
    def attenuation(self, cosine: torch.Tensor, values: Values, encoding: Encoding) -> torch.Tensor:
        """Return the signal relative to the one without diffusion weighting.

        Parameters
        ----------
        cosine : Tensor
            (n_cosines,) of the angle between fibre and gradient.
        values : mapping
            Estimated parameters, (..., 1, 1) each.
        encoding : Encoding

        Returns
        -------
        Tensor
            Broadcasts to (..., n_encodings, n_cosines).
        """


def resolve(setting: Setting, values: Values) -> torch.Tensor | float:
    """Return the value of a quantity: a number, or (..., 1, 1)."""
    if isinstance(setting, Parameter):
        return values[setting.name]
    return setting(values) if callable(setting) else setting


def _gaussian(
    parallel: torch.Tensor | float, perpendicular: torch.Tensor | float, cosine: torch.Tensor, b_value: torch.Tensor
) -> torch.Tensor:
    """Return exp(-b (d_perpendicular + (d_parallel - d_perpendicular) x^2))."""
    return torch.exp(-b_value * (perpendicular + (parallel - perpendicular) * cosine.square()))


@dataclass(frozen=True)
class Dot(Compartment):
    """Water that does not move: no attenuation."""

    name: str = "dot"
    oriented: ClassVar[bool] = False

    def attenuation(self, cosine: torch.Tensor, values: Values, encoding: Encoding) -> torch.Tensor:
        """Return one."""
        return torch.ones_like(encoding.b_value)


@dataclass(frozen=True)
class Ball(Compartment):
    """Isotropic Gaussian diffusion, exp(-b d)."""

    diffusivity: Setting = ISOTROPIC_DIFFUSIVITY
    name: str = "ball"
    oriented: ClassVar[bool] = False

    def attenuation(self, cosine: torch.Tensor, values: Values, encoding: Encoding) -> torch.Tensor:
        """Return exp(-b d)."""
        return torch.exp(-encoding.b_value * resolve(self.diffusivity, values))


@dataclass(frozen=True)
class Stick(Compartment):
    """Diffusion along a line, exp(-b d x^2) (Behrens et al. 2003, Magn Reson Med 50:1077)."""

    diffusivity: Setting = PARALLEL_DIFFUSIVITY
    name: str = "stick"

    def attenuation(self, cosine: torch.Tensor, values: Values, encoding: Encoding) -> torch.Tensor:
        """Return exp(-b d x^2)."""
        return _gaussian(resolve(self.diffusivity, values), 0.0, cosine, encoding.b_value)


@dataclass(frozen=True)
class Zeppelin(Compartment):
    """Axially symmetric Gaussian diffusion."""

    parallel: Setting = PARALLEL_DIFFUSIVITY
    perpendicular: Setting = PERPENDICULAR_DIFFUSIVITY
    name: str = "zeppelin"

    def attenuation(self, cosine: torch.Tensor, values: Values, encoding: Encoding) -> torch.Tensor:
        """Return exp(-b (d_perpendicular + (d_parallel - d_perpendicular) x^2))."""
        parallel, perpendicular = resolve(self.parallel, values), resolve(self.perpendicular, values)
        return _gaussian(parallel, perpendicular, cosine, encoding.b_value)


@dataclass(frozen=True)
class Cylinder(Compartment):
    """Diffusion inside an impermeable cylinder, for pulsed gradients, by the Gaussian phase approximation."""

    diffusivity: Setting = PARALLEL_DIFFUSIVITY
    diameter: Setting = DIAMETER
    name: str = "cylinder"

    @property
    def needs_timing(self) -> bool:
        """Restricted diffusion does."""
        return True

    def attenuation(self, cosine: torch.Tensor, values: Values, encoding: Encoding) -> torch.Tensor:
        """Return the product of free diffusion along and restricted diffusion across the cylinder."""
        assert encoding.small_delta is not None
        assert encoding.large_delta is not None
        diffusivity = torch.as_tensor(resolve(self.diffusivity, values), dtype=cosine.dtype, device=cosine.device)
        across = restricted_diffusivity(
            diffusivity, 0.5 * resolve(self.diameter, values), encoding.small_delta, encoding.large_delta
        )
        return _gaussian(diffusivity, across, cosine, encoding.b_value)


def restricted_diffusivity(
    diffusivity: torch.Tensor, radius: torch.Tensor | float, small_delta: torch.Tensor, large_delta: torch.Tensor
) -> torch.Tensor:
    r"""Return the apparent diffusivity across a cylinder, mm2/s: its attenuation is exp(-b times this).

    With k the roots of J1', a = d δ / R² and c = d Δ / R²,

    .. math::
        \frac{D_\perp}{d} = \frac{2}{a^2 (c - a/3)} \sum_k
        \frac{2 k^2 a - 2 + 2 e^{-k^2 a} + 2 e^{-k^2 c} - e^{-k^2 (c - a)} - e^{-k^2 (c + a)}}{k^6 (k^2 - 1)}

    (van Gelderen et al. 1994, J Magn Reson B 103:255, after Neuman 1974, J Chem Phys 60:4508). The last three
    exponentials are a square, which loses nothing to rounding in wide cylinders.

    Parameters
    ----------
    diffusivity : Tensor
        Of the free fluid, mm2/s.
    radius : Tensor or float
        mm.
    small_delta, large_delta : Tensor
        Duration and separation of the pulses, s.
    """
    a = (diffusivity * small_delta / radius**2).unsqueeze(-1)
    c = (diffusivity * large_delta / radius**2).unsqueeze(-1)
    square = torch.as_tensor(_BESSEL_ROOTS**2, dtype=a.dtype, device=a.device)
    lost = torch.expm1(-square * a)
    pulse = 2 * (square * a + lost)
    between = -torch.exp(-square * (c - a)) * lost.square()
    total = ((pulse + between) / (square**3 * (square - 1))).sum(-1)
    return 2 * diffusivity * total / (a**2 * (c - a / 3)).squeeze(-1)


@dataclass(frozen=True)
class Watson(Compartment):
    """Another compartment with its fibres dispersed about their mean direction by a Watson distribution.

    The orientation dispersion index is 2/pi arctan(1/kappa) (Zhang et al. 2012, NeuroImage 61:1000).
    """

    compartment: Compartment
    odi: Setting = ODI

    @property
    def name(self) -> str:
        """That of the compartment which is dispersed."""
        return self.compartment.name

    @property
    def needs_timing(self) -> bool:
        """Whether the compartment which is dispersed does."""
        return self.compartment.needs_timing

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Those of the compartment which is dispersed, then the dispersion index."""
        return (*self.compartment.parameters, *super().parameters)

    @property
    def dispersion(self) -> Setting:
        """That of the distribution."""
        return self.odi

    def attenuation(self, cosine: torch.Tensor, values: Values, encoding: Encoding) -> torch.Tensor:
        """Return the convolution with the distribution: a product of Legendre coefficients."""
        constants = encoding.series
        terms = len(constants.nodes)
        odi = torch.as_tensor(resolve(self.odi, values), dtype=cosine.dtype, device=cosine.device)
        moments, _ = watson_moments(concentration(odi).squeeze(-1), terms)
        single = self.compartment.attenuation(constants.nodes, values, encoding) @ constants.project
        return (single * moments) @ constants.to_basis @ basis(cosine, terms)


def concentration(odi: torch.Tensor) -> torch.Tensor:
    """Return the Watson concentration kappa = cot(pi ODI / 2)."""
    return 1 / torch.tan(0.5 * np.pi * odi)
