"""Input and output of spatial networks: slices of a series, and normalised parameters."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.models.base import SignalModel

#: For each parameter: whether its logarithm is used, and the origin and unit of its normalised form.
#: Amplitudes are relative to the typical signal of the series, relaxation times in s.
NORMAL_FORMS: dict[str, tuple[bool, float, float]] = {
    "m0": (False, 1.0, 0.4),
    "s0": (False, 1.2, 0.5),
    "inversion_factor": (False, 1.84, 0.12),
    "t1": (True, math.log(1.0), 0.6),
    "t2": (True, math.log(0.1), 0.8),
}


class Slices(NamedTuple):
    """Slices, or patches of slices, of one series.

    Attributes
    ----------
    acquisition : Acquisition
    signals : Tensor
        (n_slices, height, width, n_measurements), in units of the typical signal; finite.
    inside : Tensor
        (n_slices, height, width) bool, which voxels hold a measurement; the network ignores the others.
    noise_std : Tensor
        (n_slices, 1, 1), or with the height and width, standard deviation of the noise, in the same unit.
    is_rician : bool
        Whether the signals are magnitudes with Rician noise; otherwise the noise is Gaussian.
    """

    acquisition: Acquisition
    signals: torch.Tensor
    inside: torch.Tensor
    noise_std: torch.Tensor
    is_rician: bool


class Coordinates:
    """Normalised parameters of a model: zero at the typical value of tissue, with a standard deviation of about one.

    Parameters
    ----------
    model : SignalModel
        With all parameters in `NORMAL_FORMS`.
    device : str
    """

    def __init__(self, model: SignalModel, device: str = "cpu") -> None:
        is_log, centre, width = zip(*(NORMAL_FORMS[parameter.name] for parameter in model.parameters), strict=True)
        self.is_log = torch.tensor(is_log, device=device)
        self.centre = torch.tensor(centre, device=device)
        self.width = torch.tensor(width, device=device)
        bounds = torch.tensor([parameter.bounds for parameter in model.parameters], device=device)
        self._low, self._high = bounds.unbind(-1)

    def physical(self, normal: torch.Tensor) -> torch.Tensor:
        """Return parameters in their units, within their bounds, from normalised ones, both (..., n_parameters)."""
        value = self.centre + self.width * normal
        return torch.where(self.is_log, value.clamp(max=10).exp(), value).clamp(self._low, self._high)

    def is_free(self, theta: torch.Tensor) -> torch.Tensor:
        """Return which parameters, (..., n_parameters) in their units, are not on a bound."""
        return (theta > self._low) & (theta < self._high)

    def normal(self, theta: torch.Tensor) -> torch.Tensor:
        """Return normalised parameters, the inverse of `physical`; values beyond a bound are moved onto it."""
        value = theta.clamp(self._low, self._high)
        return (torch.where(self.is_log, value.log(), value) - self.centre) / self.width

    def slope(self, theta: torch.Tensor) -> torch.Tensor:
        """Return the derivative of `physical` at parameters in their units, (..., n_parameters)."""
        return torch.where(self.is_log, theta, torch.ones_like(theta)) * self.width


def supports_coordinates(model: SignalModel) -> bool:
    """Return whether all parameters of a model have a normalised form, and it has no covariates."""
    return not model.covariates and all(parameter.name in NORMAL_FORMS for parameter in model.parameters)


def typical_signal(signals: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Return the median over measured voxels of their largest absolute signal, (): the unit of a series.

    Parameters
    ----------
    signals : Tensor
        (..., n_measurements).
    inside : Tensor
        (...) bool, with at least one voxel.
    """
    return signals.abs().amax(-1)[inside].median()
