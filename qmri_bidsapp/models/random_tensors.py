"""Plausible tensors: tissue of a few Gaussian compartments with axes of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.core.prior import Prior, Uniform
from qmri_bidsapp.errors import PriorError

Array = npt.NDArray[np.float64]

LARGEST = Parameter("largest_eigenvalue", "mm2/s", (2e-4, 3e-3), 1e-3, "Diffusivity along a compartment's first axis")
#: Share of the compartments that have the axes of the first.
ALIGNED = 0.5
#: Largest number of rounds in which implausible draws are repeated.
MAX_ROUNDS = 1000


class GaussianCompartments(Prior):
    """Cumulants of a sum of Gaussian compartments.

    The largest eigenvalue of each compartment is uniform, and the two others are uniform below it. Volume fractions are
    uniform on the simplex. Axes are rotated at random; half of the compartments share the axes of the first.

    Parameters
    ----------
    parameters : sequence of Parameter
        The parameters that `elements` returns.
    elements : callable
        Takes (n, n_compartments) fractions and (n, n_compartments, 3, 3) tensors, returns (n, n_parameters).
    n_compartments : int
    ranges : mapping, optional
        ``"largest_eigenvalue"`` -> (lowest, highest) in mm2/s; the bounds of `LARGEST` where not given.
    is_plausible : callable, optional
        Takes (n, n_parameters), returns (n,) bool; the other draws are repeated.
    """

    name: str = "uniform"

    def __init__(
        self,
        parameters: Sequence[Parameter],
        elements: Callable[[Array, Array], Array],
        n_compartments: int = 1,
        *,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        is_plausible: Callable[[Array], npt.NDArray[np.bool_]] | None = None,
    ) -> None:
        super().__init__(parameters)
        self.largest = Uniform((LARGEST,), ranges)
        self.n_compartments = n_compartments
        self._elements, self._is_plausible = elements, is_plausible

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Draw; see `Prior.draw`."""
        parts: list[Array] = []
        for _ in range(MAX_ROUNDS):
            fractions = rng.dirichlet(np.ones(self.n_compartments), n)
            values = self._elements(fractions, self._tensors(n, rng))
            parts.append(values if self._is_plausible is None else values[self._is_plausible(values)])
            if sum(map(len, parts)) >= n:
                return np.concatenate(parts)[:n]
        raise PriorError("Hardly any tissue of these ranges is plausible.")

    def describe(self) -> dict[str, Any]:
        """Return number of compartments and range of the largest eigenvalue."""
        return {**self.largest.describe(), "compartments": self.n_compartments}

    def _tensors(self, n: int, rng: np.random.Generator) -> Array:
        """Return (n, n_compartments, 3, 3) diffusion tensors, mm2/s."""
        shape = (n, self.n_compartments)
        largest = self.largest.draw(shape[0] * shape[1], rng).reshape(*shape, 1)
        values = largest * np.concatenate([np.sort(rng.random((*shape, 2))), np.ones((*shape, 1))], axis=-1)
        axes, _ = np.linalg.qr(rng.standard_normal((*shape, 3, 3)))
        axes = np.where(rng.random((*shape, 1, 1)) < ALIGNED, axes[:, :1], axes)
        return np.asarray((axes * values[:, :, None]) @ axes.swapaxes(-1, -2))


def mean_tensor(fractions: Array, tensors: Array) -> Array:
    """Return elements xx, xy, yy, xz, yz, zz of the mean tensor, (n, 6), mm2/s."""
    mean = np.einsum("nk,nkij->nij", fractions, tensors)
    return np.stack([mean[:, i, j] for i, j in ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2))], axis=1)
