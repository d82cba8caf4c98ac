"""Where a search begins: the dictionary entry that explains most of a voxel's signal."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from qmri_bidsapp.core.acquisition import B0_THRESHOLD, Acquisition, Diffusion
from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.estimators.cholesky import factorise, solve
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.compose import Composition
from qmri_bidsapp.models.directions import angles_of

#: Size of a dictionary, and most values per parameter.
DICTIONARY_SIZE = 1500
MAX_VALUES = 100
#: Basins of the model from which a fit is started.
N_BASINS = 3
#: Added to the information of Legendre coefficients, per measurement: few directions do not determine all of them.
RIDGE = 1e-3
#: Share of a parameter's range next to its bounds in which no oriented model is started.
INSET = 0.05


class Starts(Protocol):
    """Finds starting points."""

    def __call__(self, target: torch.Tensor) -> torch.Tensor:
        """Return parameters, (n_starts, n, n_parameters), for signals (n, n_measurements) weighted by averages."""


def starts_for(model: SignalModel, acquisition: Acquisition, device: str) -> Starts:
    """Return what finds starting points for a model."""
    kind = OrientedStarts if isinstance(model, Composition) else DictionaryStarts
    return kind(model, acquisition, device)


class _Dictionary:
    """Unit vectors, and which of them is nearest to a vector."""

    def __init__(self, entries: torch.Tensor) -> None:
        self._norm = entries.square().sum(-1).clamp(min=torch.finfo(entries.dtype).tiny).sqrt()
        self._atoms = entries / self._norm.unsqueeze(-1)

    def projections(self, target: torch.Tensor) -> torch.Tensor:
        """Return (n, n_entries) products with the unit vectors."""
        return target @ self._atoms.T

    def amplitude(self, projection: torch.Tensor, entry: torch.Tensor) -> torch.Tensor:
        """Return what to multiply entries with."""
        return projection / self._norm[entry]


class DictionaryStarts:
    """One dictionary over all parameters but the amplitude, which is projected out.

    Parameters
    ----------
    model : SignalModel
    acquisition : Acquisition
    device : str
    """

    def __init__(self, model: SignalModel, acquisition: Acquisition, device: str) -> None:
        grid = model.with_covariates(_grid(model.parameters[1:], device))
        labels = model.basins(grid, acquisition)
        order = torch.argsort(labels, stable=True)
        # Entries of one basin are neighbours, so that a slice finds them.
        grid = grid[order]
        self._basin_sizes = [int(size) for size in torch.bincount(labels) if size]
        averages = torch.tensor(acquisition.n_averages, dtype=grid.dtype, device=device)
        self._dictionary = _Dictionary(model.signal(grid, acquisition) * averages.sqrt())
        self._grid = grid[:, : len(model.parameters)]

    def __call__(self, target: torch.Tensor) -> torch.Tensor:
        """Return the best entry of each of the best basins, with its amplitude; see `Starts`."""
        projection = self._dictionary.projections(target)
        tops = [part.max(-1) for part in torch.split_with_sizes(projection, self._basin_sizes, dim=-1)]
        offsets = np.cumsum([0, *self._basin_sizes[:-1]]).tolist()
        explained = torch.stack([top.values for top in tops])
        entries = torch.stack([top.indices + offset for top, offset in zip(tops, offsets, strict=True)])
        best = explained.topk(min(N_BASINS, len(tops)), dim=0)
        entry = entries.gather(0, best.indices)
        starts = self._grid[entry]
        starts[..., 0] = self._dictionary.amplitude(best.values, entry)
        return starts


class OrientedStarts:
    """Starts of a model with one fibre direction.

    The direction comes from the signals: the axis along which they are lowest. About it, each shell is described by
    three Legendre coefficients, whatever its directions, and a dictionary of these gives the tissue.

    Parameters
    ----------
    model : Composition
        With one bundle.
    acquisition : Diffusion
    device : str
    """

    N_COEFFICIENTS = 3

    def __init__(self, model: SignalModel, acquisition: Acquisition, device: str) -> None:
        assert isinstance(model, Composition)
        assert isinstance(acquisition, Diffusion)
        self._shells = [torch.as_tensor(index, device=device) for index in acquisition.shells()]
        self._direction = torch.tensor(acquisition.direction, dtype=torch.float32, device=device)
        b_value = torch.tensor(acquisition.b_value, device=device)
        self._is_weighted = [bool(b_value[index].max() > B0_THRESHOLD) for index in self._shells]
        self._quadratic = self._fit_of_quadratic_form(b_value)
        # On a bound, a fraction of nothing or of all, other parameters lose their effect: no place to start.
        self._grid = _grid(model.tissue, device, inset=INSET)
        layout = model.layout(acquisition.select(np.array([int(index[0]) for index in self._shells])), self._grid)
        coefficients = model.series(self._grid[:, 1:], layout)[..., : self.N_COEFFICIENTS]
        degree = 2.0 * torch.arange(coefficients.shape[-1], device=device)
        # The mean square of P_l over the sphere is 1 / (2 l + 1).
        self._weights = [(len(index) / (2 * degree + 1)).sqrt() for index in self._shells]
        features = [
            row * weight if weighted else row[:, :1] * weight[:1]
            for row, weight, weighted in zip(coefficients.unbind(1), self._weights, self._is_weighted, strict=True)
        ]
        self._dictionary = _Dictionary(torch.cat(features, dim=-1))

    def _fit_of_quadratic_form(self, b_value: torch.Tensor) -> torch.Tensor:
        """Return the (n_measurements, 6) matrix that gives the elements of A in S = constant of the shell + b g A g."""
        x, y, z = self._direction.double().unbind(-1)
        weighting = (b_value / b_value.max()).double()
        columns = [x * x, 2 * x * y, y * y, 2 * x * z, 2 * y * z, z * z]
        offsets = [torch.zeros_like(x).index_fill(0, index, 1.0) for index in self._shells]
        design = torch.stack([*(weighting * column for column in columns), *offsets], dim=-1)
        elements: torch.Tensor = torch.linalg.pinv(design)[:6]
        return elements.T.float()

    def __call__(self, target: torch.Tensor) -> torch.Tensor:
        """Return one start; see `Starts`."""
        axis = self._axis(target)
        cosine = axis @ self._direction.T
        features = torch.cat(
            [
                _legendre_coefficients(cosine[:, index], target[:, index]) * weight
                if weighted
                else target[:, index].mean(-1, keepdim=True) * weight[:1]
                for index, weight, weighted in zip(self._shells, self._weights, self._is_weighted, strict=True)
            ],
            dim=-1,
        )
        best = self._dictionary.projections(features).max(-1)
        tissue = self._grid[best.indices, 1:]
        amplitude = self._dictionary.amplitude(best.values, best.indices).unsqueeze(-1)
        return torch.cat([amplitude, tissue, angles_of(axis)], dim=-1).unsqueeze(0)

    def _axis(self, target: torch.Tensor) -> torch.Tensor:
        """Return the unit vectors (n, 3) along which signals are lowest."""
        xx, xy, yy, xz, yz, zz = (target @ self._quadratic).unbind(-1)
        rows = [torch.stack(row, dim=-1) for row in ((xx, xy, xz), (xy, yy, yz), (xz, yz, zz))]
        vectors: torch.Tensor = torch.linalg.eigh(torch.stack(rows, dim=-2)).eigenvectors
        return vectors[..., 0]


def _legendre_coefficients(cosine: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
    """Return (n, 3) coefficients c_l, l = 0, 2, 4, of signals (n, m) as sums of c_l P_l(cosine), by least squares."""
    square = cosine.square()
    columns = [torch.ones_like(square), 1.5 * square - 0.5, (4.375 * square - 3.75) * square + 0.375]
    gram = [[(columns[i] * columns[j]).mean(-1) + RIDGE * (i == j) for j in range(i + 1)] for i in range(len(columns))]
    return solve(factorise(gram), [(column * signal).mean(-1) for column in columns])


def _grid(parameters: tuple[Parameter, ...], device: str, inset: float = 0.0) -> torch.Tensor:
    """Return (n_entries, 1 + n_parameters) starts of amplitude one; wide positive ranges are logarithmic."""
    n_values = min(MAX_VALUES, int(DICTIONARY_SIZE ** (1 / max(1, len(parameters)))))
    mesh = np.meshgrid(*(axis_values(parameter, n_values, inset) for parameter in parameters), indexing="ij")
    columns = [np.ones(mesh[0].size), *(axis.ravel() for axis in mesh)]
    return torch.tensor(np.stack(columns, axis=-1), dtype=torch.float32, device=device)


def is_logarithmic(parameter: Parameter) -> bool:
    """Tell whether a parameter's range is positive and wide, so that even steps are those of its logarithm."""
    low, high = parameter.bounds
    return low > 0 and high / low > 20


def axis_values(parameter: Parameter, n_values: int, inset: float = 0.0) -> list[float]:
    """Return values over a parameter's bounds, all but a share at either end; wide positive ranges are logarithmic."""
    low, high = parameter.bounds
    margin = inset * (high - low)
    values = (
        np.geomspace(low, high, n_values)
        if is_logarithmic(parameter)
        else np.linspace(low + margin, high - margin, n_values)
    )
    return [float(value) for value in values]
