"""What a model estimates: names, units, bounds."""

from __future__ import annotations

from dataclasses import dataclass


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
        Whether the bounds are one turn, as of an angle: nothing ends there.
    saved : bool
        Whether the app writes a map of it; what is no quantity of its own is left to the Python interface.
    """

    name: str
    unit: str
    bounds: tuple[float, float]
    scale: float
    description: str
    bids_suffix: str | None = None
    display_range: tuple[float, float] | None = None
    is_periodic: bool = False
    saved: bool = True

    @property
    def is_logarithmic(self) -> bool:
        """Whether the range is positive and wide, so that even steps are those of the logarithm."""
        low, high = self.bounds
        return low > 0 and high / low > 20

    @property
    def label(self) -> str:
        """Value of the BIDS ``param`` entity: the name without underscores."""
        return self.name.replace("_", "")
