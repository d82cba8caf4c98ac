"""A diffusion protocol, sorted by encoding, and signals from Legendre series on it."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.models.compartments import Encoding
from qmri_bidsapp.models.legendre import basis

#: Axes closer than one degree count as one: its cosine.
_SAME_DIRECTION = 0.99985


class Layout(NamedTuple):
    """A protocol, sorted by encoding.

    Attributes
    ----------
    encoding : Encoding
        The distinct encodings.
    counts : list of int
        (n_encodings,) measurements of each.
    direction : Tensor
        (3, n_measurements) unit vectors, in the order of the encodings.
    order : Tensor or None
        (n_measurements,) position of each measurement of the protocol among them; None if they are in order.
    """

    encoding: Encoding
    counts: list[int]
    direction: torch.Tensor
    order: torch.Tensor | None

    def restore(self, values: torch.Tensor) -> torch.Tensor:
        """Return (..., n_measurements) values in the order of the protocol."""
        return values if self.order is None else values[..., self.order]


def along(rows: torch.Tensor, mu: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Return (n, k, n_measurements) values of (n, n_encodings, k, n_terms) series about the axes (n, 3)."""
    rows = rows @ layout.encoding.series.to_basis
    polynomials = basis(mu @ layout.direction, rows.shape[-1])
    parts = zip(rows.unbind(-3), torch.split_with_sizes(polynomials, layout.counts, dim=-1), strict=True)
    return layout.restore(torch.cat([row @ part for row, part in parts], dim=-1))


def over_sphere(rows: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Return (n, k, n_measurements) means over all directions of (n, n_encodings, k, n_terms) series."""
    means = zip(rows[..., 0].unbind(-2), layout.counts, strict=True)
    parts = [mean.unsqueeze(-1).expand(*mean.shape, count) for mean, count in means]
    return layout.restore(torch.cat(parts, dim=-1))


@lru_cache(maxsize=32)
def sort(
    acquisition: Diffusion, timed: bool
) -> tuple[npt.NDArray[np.float64], list[int], npt.NDArray[np.float64], npt.NDArray[np.intp] | None]:
    """Return the distinct encodings (1 or 3, n_encodings), their counts, directions (3, n_measurements) and order."""
    table = [acquisition.effective_b_value, *(acquisition.pulse_timing() if timed else ())]
    distinct, index, counts = np.unique(np.stack(table), axis=1, return_inverse=True, return_counts=True)
    direction = np.asarray(acquisition.direction, dtype=float).reshape(-1, 3)
    norm = np.linalg.norm(direction, axis=1, keepdims=True)
    direction = np.divide(direction, norm, out=np.zeros_like(direction), where=norm > 0)
    by_encoding = np.argsort(index.ravel(), kind="stable")
    order = None if np.all(np.diff(by_encoding) > 0) else np.argsort(by_encoding)
    return distinct, counts.tolist(), direction[by_encoding].T, order


def n_distinct_axes(direction: npt.NDArray[np.float64]) -> int:
    """Return the number of distinct axes among (n, 3) unit vectors."""
    same = np.abs(direction @ direction.T) > _SAME_DIRECTION
    return int(np.sum(~np.any(np.tril(same, -1), axis=1)))
