"""Where a search begins: the dictionary entry that explains most of a voxel's signal."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from qmri_bidsapp.core.acquisition import Acquisition, Diffusion, reference_limit
from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.compose import Composition
from qmri_bidsapp.models.directions import angles_of
from qmri_bidsapp.models.layout import along
from qmri_bidsapp.solvers.cholesky import factorise, solve
from qmri_bidsapp.solvers.levenberg_marquardt import minimise
from qmri_bidsapp.solvers.problem import Bounds, sum_of_squares

#: Size of a dictionary, and most values per parameter. With many parameters it is larger, up to a limit, as fewer
#: values than these would miss minima.
DICTIONARY_SIZE = 1500
MAX_VALUES = 100
MIN_VALUES = 7
MAX_SIZE = 20_000
#: Basins of the model from which a fit is started.
N_BASINS = 5
#: Added to the information of Legendre coefficients, per measurement: few directions do not determine all of them.
RIDGE = 1e-3
#: Share of a parameter's range next to its bounds in which no oriented model is started.
INSET = 0.05
#: Least fraction of a bundle to begin with.
SMALLEST_FRACTION = 0.1


class Starts(Protocol):
    """Finds starting points.

    Attributes
    ----------
    n_scout : int
        Steps after which the starts of a voxel can be compared, so that only the promising ones go on; none where the
        lowest minimum may be reached too slowly for that.
    """

    n_scout: int

    def __call__(self, target: torch.Tensor, directions: torch.Tensor | None = None) -> torch.Tensor:
        """Return starting points.

        Parameters
        ----------
        target : Tensor
            (n, n_measurements) signals, weighted by averages.
        directions : Tensor, optional
            (n, n_bundles, 3) of the fibres; lengths are in proportion to the bundles' shares.

        Returns
        -------
        Tensor
            (n_starts, n, n_parameters).
        """


def starts_for(model: SignalModel, acquisition: Acquisition, device: str) -> Starts:
    """Return the way of finding starting points that suits a model."""
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
        """Return the amplitude of each entry, from its projection."""
        return projection / self._norm[entry]


class DictionaryStarts:
    """One dictionary over all parameters but the amplitude, which is projected out.

    Parameters
    ----------
    model : SignalModel
    acquisition : Acquisition
    device : str
    """

    n_scout = 4

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

    def __call__(self, target: torch.Tensor, directions: torch.Tensor | None = None) -> torch.Tensor:
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
    """Starts of a model with fibre directions.

    The direction of a single bundle, where it is not given, comes from the signals: the axis along which they are
    lowest. About the directions, each shell is described by three Legendre coefficients, whatever its measurements, and
    a dictionary of these gives the tissue. Without a direction, the mean over each shell takes their place.

    Parameters
    ----------
    model : Composition
    acquisition : Diffusion
    device : str
    """

    n_scout = 0
    N_COEFFICIENTS = 3
    #: Steps of the fit to these coefficients.
    N_STEPS = 3

    def __init__(self, model: SignalModel, acquisition: Acquisition, device: str) -> None:
        assert isinstance(model, Composition)
        assert isinstance(acquisition, Diffusion)
        shells = acquisition.timed_shells() if model.needs_timing else acquisition.shells()
        self._shells = [torch.as_tensor(index, device=device) for index in shells]
        self._direction = torch.tensor(acquisition.direction, dtype=torch.float32, device=device)
        b_value = torch.tensor(acquisition.b_value, device=device)
        self._is_weighted = [
            bool(b_value[index].max() > reference_limit(acquisition.b_value)) for index in self._shells
        ]
        self._quadratic = self._fit_of_quadratic_form(b_value)
        # On a bound, a fraction of nothing or of all, other parameters lose their effect: no place to start.
        self._model, self._acquisition, self._n_bundles = model, acquisition, model.n_bundles
        tissue = model.parameters[1 : len(model.parameters) - 2 * model.n_bundles - max(0, model.n_bundles - 1)]
        self._grid = _grid(tissue, device, inset=INSET)
        self._layout = model.layout(acquisition.select(np.array([int(index[0]) for index in self._shells])), self._grid)
        n_coefficients = self.N_COEFFICIENTS if model.n_bundles else 1
        coefficients = model.series(model.complete(self._grid[:, 1:]), self._layout)[..., :n_coefficients]
        degree = 2.0 * torch.arange(coefficients.shape[-1], device=device)
        # The mean square of P_l over the sphere is 1 / (2 l + 1).
        self._weights = [(len(index) / (2 * degree + 1)).sqrt() for index in self._shells]
        features = [
            row * weight if weighted else row[:, :1] * weight[:1]
            for row, weight, weighted in zip(coefficients.unbind(1), self._weights, self._is_weighted, strict=True)
        ]
        table = torch.cat(features, dim=-1)
        whole = torch.nn.functional.pad(self._grid, (0, len(model.parameters) - self._grid.shape[1]))
        labels = model.basins(whole, acquisition)
        # Entries and dictionary of each part of the tissue's space.
        self._basins = [
            (self._grid[labels == i], _Dictionary(table[labels == i])) for i in range(int(labels.max()) + 1)
        ]
        parameters = (model.parameters[0], *tissue)
        self._scale = torch.tensor([p.scale for p in parameters], device=device)
        lower, upper = (torch.tensor([p.bounds[i] for p in parameters], device=device) / self._scale for i in (0, 1))
        self._bounds = Bounds(lower, upper, torch.zeros_like(lower, dtype=torch.bool))

    def _fit_of_quadratic_form(self, b_value: torch.Tensor) -> torch.Tensor:
        """Return the (n_measurements, 6) matrix that gives the elements of A in S = constant of the shell + b g A g."""
        x, y, z = self._direction.double().unbind(-1)
        weighting = (b_value / b_value.max()).double()
        columns = [x * x, 2 * x * y, y * y, 2 * x * z, 2 * y * z, z * z]
        offsets = [torch.zeros_like(x).index_fill(0, index, 1.0) for index in self._shells]
        design = torch.stack([*(weighting * column for column in columns), *offsets], dim=-1)
        # The trace and the constants are collinear; the trace does not turn the axes.
        elements: torch.Tensor = torch.linalg.pinv(design, rtol=1e-6)[:6]
        return elements.T.float()

    def __call__(self, target: torch.Tensor, directions: torch.Tensor | None = None) -> torch.Tensor:
        """Return one start in each basin; see `Starts`."""
        if directions is None:
            if self._n_bundles > 1:
                raise ValueError(f"A model with {self._n_bundles} bundles needs their directions.")
            directions = self._axis(target).unsqueeze(1)[:, : self._n_bundles]
        length = directions.norm(dim=-1, keepdim=True)
        mu, fraction = directions / length, length.squeeze(-1) / length.sum(1)
        return torch.stack([self._start(target, mu, fraction, *basin) for basin in self._basins])

    def _start(
        self, target: torch.Tensor, mu: torch.Tensor, fraction: torch.Tensor, grid: torch.Tensor, entries: _Dictionary
    ) -> torch.Tensor:
        """Return a start (n, n_parameters) from one basin; see `_look_up`."""
        tissue, amplitude = self._look_up(target, mu, fraction, grid, entries)
        if self._n_bundles > 1:
            # With fractions that are far off, a bundle would vanish on the way to the minimum.
            fraction = self._fractions(target, tissue, mu)
            tissue, amplitude = self._look_up(target, mu, fraction, grid, entries)
        remaining = fraction.flip(-1).cumsum(-1).flip(-1)
        shares = (fraction / remaining)[:, : max(0, self._n_bundles - 1)]
        return torch.cat([amplitude, tissue, shares, angles_of(mu).flatten(1)], dim=-1)

    def _look_up(
        self, target: torch.Tensor, mu: torch.Tensor, fraction: torch.Tensor, grid: torch.Tensor, entries: _Dictionary
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tissue (n, n_tissue) and amplitude (n, 1) for unit vectors (n, n_bundles, 3) and their fractions.

        They are looked up among the dictionary's entries, whose tissue the grid holds.
        """
        columns = _legendre_columns(mu @ self._direction.T, fraction) if self._n_bundles else None
        features = torch.cat(
            [
                _least_squares([column[:, index] for column in columns], target[:, index]) * weight
                if weighted and columns
                else target[:, index].mean(-1, keepdim=True) * weight[:1]
                for index, weight, weighted in zip(self._shells, self._weights, self._is_weighted, strict=True)
            ],
            dim=-1,
        )
        best = entries.projections(features).max(-1)
        tissue = grid[best.indices].clone()
        tissue[:, 0] = entries.amplitude(best.values, best.indices)
        # Coefficients of several bundles are known too roughly for more than an entry.
        if self._n_bundles == 1:
            tissue = self._refine(tissue, features)
        return tissue[:, 1:], tissue[:, :1]

    def _refine(self, tissue: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Return amplitude and tissue (n, 1 + n_tissue) fitted to the few coefficients, which is fast."""

        def evaluate(scaled: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            theta = scaled * self._scale
            coefficients, slopes = self._model.series_and_slopes(theta[:, 1:], self._layout)
            rows = torch.cat([coefficients.unsqueeze(-2), theta[:, :1, None, None] * slopes], dim=-2)
            parts = [
                row[..., : self.N_COEFFICIENTS] * weight if weighted else row[..., :1] * weight[:1]
                for row, weight, weighted in zip(rows.unbind(1), self._weights, self._is_weighted, strict=True)
            ]
            jacobian = torch.cat(parts, dim=-1).mT
            return jacobian[..., 0] * theta[:, :1] - features[index], jacobian * self._scale

        start = self._bounds.bring_back(tissue / self._scale)
        found, _, _ = minimise(sum_of_squares(evaluate), start, self._bounds, iterations=self.N_STEPS)
        return found * self._scale

    def _fractions(self, target: torch.Tensor, tissue: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
        """Return the fractions (n, n_bundles) that explain the signals best with given tissue, none of them small."""
        layout = self._model.layout(self._acquisition, target)
        rows = self._model.series(self._model.complete(tissue), layout).unsqueeze(-2)
        signals = [along(rows, axis, layout).squeeze(-2) for axis in mu.unbind(1)]
        weights = _least_squares(signals, target)
        least = SMALLEST_FRACTION * weights.sum(-1, keepdim=True).abs()
        return torch.nn.functional.normalize(weights.clamp(min=least), p=1.0)

    def _axis(self, target: torch.Tensor) -> torch.Tensor:
        """Return the unit vectors (n, 3) along which signals are lowest."""
        xx, xy, yy, xz, yz, zz = (target @ self._quadratic).unbind(-1)
        rows = [torch.stack(row, dim=-1) for row in ((xx, xy, xz), (xy, yy, yz), (xz, yz, zz))]
        vectors: torch.Tensor = torch.linalg.eigh(torch.stack(rows, dim=-2)).eigenvectors
        return vectors[..., 0]


def _legendre_columns(cosine: torch.Tensor, fraction: torch.Tensor) -> list[torch.Tensor]:
    """Return the sums over bundles of P_l(cosine), l = 0, 2, 4, (n, m) each.

    Parameters
    ----------
    cosine : Tensor
        (n, n_bundles, m) of the angle between each bundle and each gradient.
    fraction : Tensor
        (n, n_bundles) of each bundle.
    """
    square = cosine.square()
    polynomials = [1.5 * square - 0.5, (4.375 * square - 3.75) * square + 0.375]
    sums = [(fraction.unsqueeze(-1) * polynomial).sum(1) for polynomial in polynomials]
    return [torch.ones_like(sums[0]), *sums]


def _least_squares(columns: list[torch.Tensor], signal: torch.Tensor) -> torch.Tensor:
    """Return the (n, n_columns) coefficients of signals (n, m) in columns (n, m) each."""
    gram = [[(columns[i] * columns[j]).mean(-1) + RIDGE * (i == j) for j in range(i + 1)] for i in range(len(columns))]
    return solve(factorise(gram), [(column * signal).mean(-1) for column in columns])


def _grid(parameters: tuple[Parameter, ...], device: str, inset: float = 0.0) -> torch.Tensor:
    """Return (n_entries, 1 + n_parameters) starts of amplitude one; wide positive ranges are logarithmic."""
    usual, most = (int(size ** (1 / max(1, len(parameters)))) for size in (DICTIONARY_SIZE, MAX_SIZE))
    n_values = min(MAX_VALUES, max(usual, min(MIN_VALUES, most)))
    mesh = np.meshgrid(*(axis_values(parameter, n_values, inset) for parameter in parameters), indexing="ij")
    columns = [np.ones(mesh[0].size), *(axis.ravel() for axis in mesh)]
    return torch.tensor(np.stack(columns, axis=-1), dtype=torch.float32, device=device)


def axis_values(parameter: Parameter, n_values: int, inset: float = 0.0) -> list[float]:
    """Return values over a parameter's bounds, all but a share at either end; wide positive ranges are logarithmic."""
    low, high = parameter.bounds
    margin = inset * (high - low)
    values = (
        np.geomspace(low, high, n_values)
        if parameter.is_logarithmic
        else np.linspace(low + margin, high - margin, n_values)
    )
    return [float(value) for value in values]
