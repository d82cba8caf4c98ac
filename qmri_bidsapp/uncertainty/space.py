"""The space in which estimates and truths of a model are compared."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.models.base import SignalModel

Array = npt.NDArray[np.float64]

#: Lowest ratio of estimated to true amplitude whose logarithm is taken.
LEAST_RATIO = 1e-9


class Space:
    """The quantities of a model that do not turn with the tissue: the amplitude, parameters, derived parameters.

    Distances and errors are those of `Space.forward`: of the logarithm if plausible values are spread evenly in it
    (`Parameter.is_scale`), of the value otherwise. For the amplitude only the ratio of estimate and truth matters.

    Parameters
    ----------
    model : SignalModel

    Attributes
    ----------
    parameters : tuple of Parameter
        The quantities, the amplitude first.
    columns : list of int
        Their positions among the model's parameters and derived parameters.
    axes : list of int
        Positions, among the quantities, of those that span the space: parameters that are saved as maps, or derived
        ones if all parameters turn with the tissue.
    """

    def __init__(self, model: SignalModel) -> None:
        everything = (*model.parameters, *model.derived)
        turning = {i for part in model.directional for i in part.columns}
        self.columns = [i for i, p in enumerate(everything) if i not in turning and (i == 0 or p.saved)]
        self.parameters = tuple(everything[i] for i in self.columns)
        own = [k for k, i in enumerate(self.columns) if 0 < i < len(model.parameters)]
        self.axes = own or list(range(1, len(self.columns)))

    @property
    def is_ratio(self) -> npt.NDArray[np.bool_]:
        """(n_quantities,) whether errors are ratios of estimate and truth."""
        return np.array([k == 0 or p.is_scale for k, p in enumerate(self.parameters)])

    def forward(self, values: npt.ArrayLike) -> Array:
        """Return (n, n_quantities) values with the logarithm taken where errors are ratios."""
        result = np.array(values, dtype=np.float64)
        for k in np.flatnonzero(self.is_ratio):
            least = self.parameters[k].bounds[0] if k else LEAST_RATIO
            result[:, k] = np.log(np.maximum(result[:, k], least))
        return result

    def place(self, values: npt.ArrayLike) -> Array:
        """Return (n, n_axes) places, see `axes`."""
        return self.forward(values)[:, self.axes]

    def back(self, places: npt.ArrayLike) -> Array:
        """Return the values, (n, n_axes), of places."""
        logarithmic = self.is_ratio[self.axes]
        return np.where(logarithmic, np.exp(np.where(logarithmic, places, 0.0)), places)

    def bounds(self) -> Array:
        """Return (2, n_quantities) bounds; none for the amplitude, whose unit is that of the scanner."""
        limits = np.array([p.bounds for p in self.parameters], dtype=np.float64).T
        limits[:, 0] = 0.0, np.inf
        return limits


def unit_box(places: Array) -> tuple[Array, Array]:
    """Return offset and size, (n_axes,), of the box that holds the central 99 % of places along each axis."""
    low, high = np.percentile(places, [0.5, 99.5], axis=0)
    return low, np.where(high > low, high - low, 1.0)
