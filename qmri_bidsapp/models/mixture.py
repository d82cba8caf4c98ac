"""A model as a mixture: given the non-linear parameters, signals in non-negative amounts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.compartments import Compartment, Encoding
from qmri_bidsapp.models.legendre import series


class Mixture:
    r"""The convex part of a model.

    .. math:: S = \sum_i c_i\, \phi_i(\alpha), \quad c_i \ge 0

    With all parameters known but the amplitude and the shares of `SignalModel.mixing`, the signal is the amplitude
    times a convex combination of signals with the shares on their bounds. Each corner φ has a different share as the
    first on its upper bound; in the last corner none is.

    Parameters
    ----------
    model : SignalModel

    Attributes
    ----------
    linear : tuple of int
        Positions of the linear shares among the model's parameters, in their order. The amplitude, the first
        parameter, is linear as well.
    nonlinear : tuple of int
        Positions of all others.
    """

    def __init__(self, model: SignalModel) -> None:
        self._model = model
        self.linear = model.mixing
        self.nonlinear = tuple(i for i in range(1, len(model.parameters)) if i not in self.linear)
        self._bounds = [model.parameters[i].bounds for i in self.linear]

    def corners(self, theta: torch.Tensor) -> torch.Tensor:
        """Return the parameters of the corners, (..., n_linear + 1, n_parameters), for (..., n_parameters)."""
        corners = theta.unsqueeze(-2).repeat(*[1] * (theta.dim() - 1), len(self.linear) + 1, 1)
        corners[..., 0] = 1.0
        for k, (position, (low, high)) in enumerate(zip(self.linear, self._bounds, strict=True)):
            corners[..., position] = low
            corners[..., k, position] = high
        return corners

    def signals(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return the signals of the corners, (..., n_linear + 1, n_measurements), for (..., n_parameters)."""
        return self._model.signal(self._model.with_covariates(self.corners(theta)), acquisition)

    def combine(self, theta: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
        """Return (..., n_parameters) `theta` with the amplitude and the shares that follow from the amounts of corners.

        A share of nothing is undetermined and takes the middle of its bounds.

        Parameters
        ----------
        theta : Tensor
            (..., n_parameters), of which the linear ones are not used.
        amounts : Tensor
            (..., n_linear + 1), not negative.
        """
        left = amounts.flip(-1).cumsum(-1).flip(-1)
        columns = list(theta.unbind(-1))
        columns[0] = left[..., 0]
        for k, (position, (low, high)) in enumerate(zip(self.linear, self._bounds, strict=True)):
            part = torch.where(left[..., k] > 0, amounts[..., k] / left[..., k], 0.5)
            columns[position] = low + (high - low) * part
        return torch.stack(columns, dim=-1)


class _Recorder(dict[str, torch.Tensor]):
    """Values that record which of them were read."""

    def __init__(self, values: dict[str, torch.Tensor]) -> None:
        super().__init__(values)
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.used.add(name)
        return super().__getitem__(name)


def names_used(compartments: Sequence[Compartment], tissue: Sequence[Parameter]) -> frozenset[str]:
    """Return the names of the parameters that the signal of any compartment depends on."""
    value = torch.ones(1, 1)
    recorder = _Recorder({p.name: p.scale / 2 * value for p in tissue})
    constants = series(4, value)
    for compartment in compartments:
        compartment.attenuation(constants.nodes, recorder, Encoding(1e3 * value, 0.01 * value, 0.03 * value, constants))
    return frozenset(recorder.used)
