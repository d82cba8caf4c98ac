"""Parameters of models: names, units, bounds; directions; named tissues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
    def label(self) -> str:
        """Value of the BIDS ``param`` entity: the name without underscores."""
        return self.name.replace("_", "")


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
        Polar angle and azimuth of an axis (degrees), or the distinct elements of a symmetric tensor in voxel axes, in
        the order of `models.tensor` and `models.kurtosis`.
    """

    first: int
    kind: Literal["axis", "rank-2", "rank-4"]

    @property
    def columns(self) -> range:
        """Positions of all of them."""
        return range(self.first, self.first + {"axis": 2, "rank-2": 6, "rank-4": 15}[self.kind])
