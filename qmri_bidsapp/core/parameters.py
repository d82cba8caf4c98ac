"""Parameters of models: names, units, bounds; directions; named tissues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np
import numpy.typing as npt

#: Distance from a bound, relative to its range, that counts as on the bound.
BOUND_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Parameter:
    """One tissue parameter.

    Attributes
    ----------
    name : str
        Identifier, in snake case, e.g. ``"inversion_efficiency"``.
    unit : str
        BIDS unit (``"s"``, ``"mm2/s"``, ``"1/s"``), ``"1"`` for a fraction, ``"arbitrary"`` for a signal amplitude.
    bounds : tuple of float
        Lowest and highest value that an estimator may return, in `unit`. For an amplitude they are relative
        to the largest absolute signal of the voxel.
    scale : float
        Typical magnitude, in `unit`; optimisers see ``value / scale``.
    description : str
        One line for sidecars, reports and documentation.
    bids_suffix : str or None
        Suffix of the BIDS map (``"T1map"``); None for diffusion parameters, which are written as ``dwimap``.
    display_range : tuple of float or None
        Range of the colour bar in reports, in `unit`; None: 2nd to 98th percentile of the map.
    is_periodic : bool
        Whether the bounds are one turn of an angle, so that an estimate may cross them.
    is_uniform : bool
        Whether plausible values are uniform between the bounds, however wide their range, as for an index.
    is_skewed : bool
        Whether the signal depends on it less and less along its range, so that errors are skewed: the standard
        deviation at the estimate differs from the spread of the true values that lead to this estimate.
    physical : tuple of bool
        Whether the lower and the upper bound are limits of nature, as zero and one are for a fraction. An estimate on
        such a limit is an answer. One on any other bound is not: the program drew that bound, and the best value may
        lie beyond it.
    saved : bool
        Whether the app writes a map of it. Parameters that mean nothing by themselves are returned in Python only.
    """

    name: str
    unit: str
    bounds: tuple[float, float]
    scale: float
    description: str
    bids_suffix: str | None = None
    display_range: tuple[float, float] | None = None
    is_periodic: bool = False
    is_uniform: bool = False
    is_skewed: bool = False
    physical: tuple[bool, bool] = (False, False)
    saved: bool = True

    @property
    def is_logarithmic(self) -> bool:
        """Whether the range is positive and wide, so that grids take even steps of the logarithm."""
        low, high = self.bounds
        return low > 0 and high / low > 20

    @property
    def is_scale(self) -> bool:
        """Whether plausible values are uniform in their logarithm."""
        return self.is_logarithmic and not self.is_uniform

    @property
    def drawn_bounds(self) -> tuple[float, float]:
        """Bounds that the program drew, in `unit`; infinite on the side of a physical limit."""
        low, high = self.bounds
        return -inf if self.physical[0] else low, inf if self.physical[1] else high

    @property
    def label(self) -> str:
        """Value of the BIDS ``param`` entity: the name without underscores."""
        return self.name.replace("_", "")


def on_physical_limits(
    parameters: Sequence[Parameter], values: npt.ArrayLike
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which values lie on their lower and which on their upper physical limit, see `Parameter.physical`.

    Parameters
    ----------
    parameters : sequence of Parameter
    values : array_like
        (n, n_parameters), in each one's unit.

    Returns
    -------
    lower, upper : ndarray
        (n, n_parameters) bool; False where there is no such limit, or no value.
    """
    found = np.asarray(values, dtype=np.float64)
    low, high = (np.array([p.bounds[side] for p in parameters], dtype=np.float64) for side in (0, 1))
    has_low, has_high = (np.array([p.physical[side] for p in parameters], dtype=bool) for side in (0, 1))
    margin = BOUND_TOLERANCE * (high - low)
    return has_low & (found <= low + margin), has_high & (found >= high - margin)


@dataclass(frozen=True)
class NamedTissue:
    """A tissue with published parameters: a point in a model's parameter space.

    Attributes
    ----------
    name : str
        E.g. ``"White matter"``.
    values : dict
        Parameter -> value, in its unit; parameters that are missing are at their `scale`.
    source : str
        Author, year, table.
    """

    name: str
    values: dict[str, float]
    source: str


@dataclass(frozen=True)
class Directional:
    """Parameters that rotate with the tissue.

    Attributes
    ----------
    first : int
        Position of the first of them among the model's parameters; the others follow it.
    kind : {"axis", "rank-2", "rank-4"}
        Polar angle and azimuth of an axis (degrees), or the distinct elements of a symmetric tensor, both in the axes
        of the gradient table, in the order of `models.tensor` and `models.kurtosis`.
    """

    first: int
    kind: Literal["axis", "rank-2", "rank-4"]

    @property
    def columns(self) -> range:
        """Positions of all of them."""
        return range(self.first, self.first + {"axis": 2, "rank-2": 6, "rank-4": 15}[self.kind])
