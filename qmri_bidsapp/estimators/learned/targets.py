"""Targets of learned estimators: positions of parameters within ranges, and their conversion to estimates."""

from __future__ import annotations

import math

import torch

from qmri_bidsapp.core.parameters import BOUND_TOLERANCE, Directional, Parameter
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.directions import angles_of, turns, unit_vector
from qmri_bidsapp.models.rotation import rotation_of_elements
from qmri_bidsapp.models.tensor import full_tensor, quadratic_form

#: Half the range of tensor elements and of quantities derived from them, in standard deviations of the training. Their
#: bounds are too wide to resolve plausible values.
RANGE = 6.0
#: Ranges of the elements of the dyadic tensor of a unit vector.
DYADIC_LOW, DYADIC_HIGH = (0.0, -0.5, 0.0, -0.5, -0.5, 0.0), (1.0, 0.5, 1.0, 0.5, 0.5, 1.0)


class Targets:
    """Positions, 0 to 1, of all learned quantities but the amplitude.

    First come parameters that do not turn with the tissue and derived ones, by their position within their bounds
    (for tensor models, within a part of them). Axes and tensors follow, in the frame of the voxel (see
    `features.Features`): an axis by the elements of its dyadic tensor, which has no sign; a tensor by its elements.

    Parameters
    ----------
    model : SignalModel

    Attributes
    ----------
    names : tuple of str
        Names of the positions.
    ranges : Tensor
        (2, n_positions) lowest and highest values of the quantities; from `learn_ranges`.
    """

    ranges: torch.Tensor

    def __init__(self, model: SignalModel) -> None:
        self._model = model
        everything = (*model.parameters, *model.derived)
        turning = {i for part in model.directional for i in part.columns}
        self._columns = [i for i in range(1, len(everything)) if i not in turning]
        self._scalars = tuple(everything[i] for i in self._columns)
        names = [p.name for p in self._scalars]
        for part in model.directional:
            names += (
                [f"{everything[part.first].name}_dyadic_{axes}" for axes in ("xx", "xy", "yy", "xz", "yz", "zz")]
                if part.kind == "axis"
                else [everything[i].name for i in part.columns]
            )
        self.names = tuple(names)

    def truth(self, theta: torch.Tensor) -> torch.Tensor:
        """Return the quantities, (n, n_truth) float32: positions of scalars, axes, elements of tensors."""
        with torch.no_grad():
            values = torch.cat([theta[:, : len(self._model.parameters)], self._model.derive(theta)], dim=1)
        parts = [_position(values[:, self._columns], self._scalars)]
        for part in self._model.directional:
            columns = values[:, list(part.columns)]
            parts.append(unit_vector(columns) if part.kind == "axis" else columns)
        return torch.cat(parts, dim=1).float()

    def learn_ranges(self, truth: torch.Tensor) -> None:
        """Set the ranges of all positions from the truth of the training."""
        scalars, *turning = self._split(truth)
        low, high = torch.zeros_like(scalars[0]), torch.ones_like(scalars[0])
        if any(part.kind != "axis" for part in self._model.directional):
            low, high = (limits.clamp(0, 1) for limits in _around(scalars))
        parts = [(low, high)]
        for part, values in zip(self._model.directional, turning, strict=True):
            dyadic = (truth.new_tensor(DYADIC_LOW), truth.new_tensor(DYADIC_HIGH))
            parts.append(dyadic if part.kind == "axis" else _around(values))
        self.ranges = torch.stack([torch.cat(limits) for limits in zip(*parts, strict=True)])

    def positions(self, truth: torch.Tensor, frames: torch.Tensor | None) -> torch.Tensor:
        """Return (n, n_positions) for (n, n_truth) and, for models that turn with the tissue, (n, 3, 3) frames."""
        scalars, *turning = self._split(truth)
        elements = [scalars]
        for part, values in zip(self._model.directional, turning, strict=True):
            assert frames is not None
            if part.kind == "axis":
                axis = (frames @ values.unsqueeze(-1)).squeeze(-1)
                elements.append(quadratic_form(axis) / axis.new_tensor([1, 2, 1, 2, 2, 1]))
            else:
                elements.append((rotation_of_elements(frames, _rank(part)) @ values.unsqueeze(-1)).squeeze(-1))
        low, high = self.ranges.unbind(0)
        return ((torch.cat(elements, dim=1) - low) / (high - low)).clamp(0, 1)

    def estimates(
        self, position: torch.Tensor, spread: torch.Tensor, frames: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return estimates and standard deviations of all but the amplitude, and whether all are inside their bounds.

        The standard deviation on a bound is NaN.

        Parameters
        ----------
        position, spread : Tensor
            (n, n_positions) float64, and their standard deviations.
        frames : Tensor or None
            (n, 3, 3), as for `positions`.

        Returns
        -------
        estimate, std : Tensor
            (n, n_parameters + n_derived - 1), in each one's unit.
        is_free : Tensor
            (n,) bool.
        """
        n = len(self._scalars)
        low, high = self.ranges.double().unbind(0)
        values, sigma = low + (high - low) * position, (high - low) * spread
        is_free = ((position > BOUND_TOLERANCE) & (position < 1 - BOUND_TOLERANCE))[:, :n]
        value, slope = _value(values[:, :n], self._scalars)
        n_columns = len(self._columns) + sum(len(part.columns) for part in self._model.directional)
        estimate, std = (values.new_empty(len(values), n_columns) for _ in range(2))
        columns = [i - 1 for i in self._columns]
        estimate[:, columns], std[:, columns] = value, sigma[:, :n] * torch.where(is_free, slope, torch.nan)
        first = n
        for part in self._model.directional:
            assert frames is not None
            size = 6 if part.kind == "axis" else len(part.columns)
            here, there = slice(first, first + size), [i - 1 for i in part.columns]
            turned = _axis if part.kind == "axis" else _tensor
            estimate[:, there], std[:, there] = turned(values[:, here], sigma[:, here], frames.double().mT)
            first += size
        return estimate, std, is_free.all(1)

    def _split(self, truth: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes = [3 if part.kind == "axis" else len(part.columns) for part in self._model.directional]
        return torch.split_with_sizes(truth, [len(self._scalars), *sizes], dim=1)


def _around(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return lowest and highest values of a range around the mean, (n_columns,) each, for (n, n_columns)."""
    half = RANGE * values.std(0)
    return values.mean(0) - half, values.mean(0) + half


def _rank(part: Directional) -> int:
    return 2 if part.kind == "rank-2" else 4


def _tensor(elements: torch.Tensor, sigma: torch.Tensor, rotation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the elements of rotated tensors and their standard deviations, from those of independent elements."""
    matrix = rotation_of_elements(rotation, 2 if elements.shape[1] == 6 else 4)
    variance = matrix.square() @ sigma.square().unsqueeze(-1)
    return (matrix @ elements.unsqueeze(-1)).squeeze(-1), variance.sqrt().squeeze(-1)


def _axis(elements: torch.Tensor, sigma: torch.Tensor, rotation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return polar angle and azimuth, and their standard deviations, degrees, of a rotated dyadic tensor.

    An error E of the tensor turns its principal eigenvector v towards a perpendicular unit vector u by u^T E v.
    """
    principal = torch.linalg.eigh(full_tensor(elements)).eigenvectors[..., 2:]
    angles = angles_of((rotation @ principal).squeeze(-1))
    towards = torch.nn.functional.normalize(turns(angles), dim=-1) @ rotation
    outer = towards.unsqueeze(-1) * principal.mT.unsqueeze(-2)
    (x, xy, xz), (yx, y, yz), (zx, zy, z) = (row.unbind(-1) for row in outer.unbind(-2))
    factor = torch.stack([x, xy + yx, y, xz + zx, yz + zy, z], dim=-1)
    std = torch.rad2deg((factor * sigma.unsqueeze(1)).norm(dim=-1))
    sine = torch.deg2rad(angles[:, :1]).sin().clamp(min=torch.finfo(angles.dtype).tiny)
    return angles, std / torch.cat([torch.ones_like(sine), sine], dim=-1)


def _position(values: torch.Tensor, parameters: tuple[Parameter, ...]) -> torch.Tensor:
    """Return the position of each value within its bounds, 0 to 1, logarithmic for wide positive ranges."""
    columns = []
    for value, p in zip(values.unbind(1), parameters, strict=True):
        low, high = p.bounds
        columns.append((value / low).log() / math.log(high / low) if p.is_scale else (value - low) / (high - low))
    return torch.stack(columns, dim=1).clamp(0, 1) if columns else values


def _value(position: torch.Tensor, parameters: tuple[Parameter, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values of positions, (n, n_parameters), and their derivatives by the position."""
    values, slopes = [position[:, :0]], [position[:, :0]]
    for share, p in zip(torch.split(position, 1, dim=1), parameters, strict=True):
        low, high = p.bounds
        if p.is_scale:
            width = math.log(high / low)
            values.append(low * (width * share).exp())
            slopes.append(width * values[-1])
        else:
            values.append(low + (high - low) * share)
            slopes.append(torch.full_like(share, high - low))
    return torch.cat(values, dim=1), torch.cat(slopes, dim=1)
