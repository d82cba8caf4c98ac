"""What a learned estimator learns: positions of parameters between their bounds."""

from __future__ import annotations

import math

import torch

from qmri_bidsapp.core.parameters import Parameter


def position(values: torch.Tensor, parameters: tuple[Parameter, ...]) -> torch.Tensor:
    """Return where between its bounds each value lies, 0 to 1, by the logarithm for wide positive ranges.

    Parameters
    ----------
    values : Tensor
        (n, n_parameters), in each parameter's unit.
    parameters : tuple of Parameter
    """
    columns = []
    for value, p in zip(values.unbind(1), parameters, strict=True):
        low, high = p.bounds
        columns.append((value / low).log() / math.log(high / low) if p.is_logarithmic else (value - low) / (high - low))
    return torch.stack(columns, dim=1).clamp(0, 1)


def value_of(position: torch.Tensor, parameters: tuple[Parameter, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values of positions, (n, n_parameters), and their derivatives by the position."""
    values, slopes = [], []
    for share, p in zip(position.unbind(1), parameters, strict=True):
        low, high = p.bounds
        if p.is_logarithmic:
            width = math.log(high / low)
            values.append(low * (width * share).exp())
            slopes.append(width * values[-1])
        else:
            values.append(low + (high - low) * share)
            slopes.append(torch.full_like(share, high - low))
    return torch.stack(values, dim=1), torch.stack(slopes, dim=1)
