"""A model with one of its parameters known."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.models.base import SignalModel


def conditional(model: SignalModel, position: int, neutral: float) -> SignalModel:
    """Return a model in which one parameter is the last covariate.

    Parameters
    ----------
    model : SignalModel
    position : int
        Position of the parameter among the model's parameters; not the amplitude, 0.
    neutral : float
        Value of the covariate where none is given, in the parameter's unit.
    """
    others = tuple(index for index in range(len(model.parameters)) if index != position)
    known = replace(model.parameters[position], scale=neutral)

    def whole(theta: torch.Tensor) -> torch.Tensor:
        """Return the columns of theta in the order of the model."""
        columns = list(theta.unbind(-1))
        columns.insert(position, columns.pop())
        return torch.stack(columns, dim=-1)

    class Conditional(SignalModel):
        name: ClassVar[str] = model.name
        title: ClassVar[str] = model.title
        reference: ClassVar[str] = model.reference
        parameters: ClassVar[tuple[Parameter, ...]] = tuple(model.parameters[index] for index in others)
        covariates: ClassVar[tuple[Parameter, ...]] = (*model.covariates, known)
        acquisition_type: ClassVar[type[Acquisition]] = model.acquisition_type
        bids_suffixes: ClassVar[tuple[str, ...]] = model.bids_suffixes

        def signal(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
            return model.signal(whole(theta), acquisition)

        def jacobian(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
            return model.jacobian(whole(theta), acquisition)[..., list(others)]

        def basins(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
            return model.basins(whole(theta), acquisition)

    return Conditional()
