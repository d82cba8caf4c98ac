"""Maps of the transmit field (``fmap/*_TB1map``): the choice for a series, and the unit of the values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from qmri_bidsapp.errors import InputError

#: ``Units`` of the sidecar -> factor from stored values to effective over nominal flip angle. BIDS recommends "percent
#: multiplicative factors" and names the unit "arbitrary", which says neither 100 nor 1.
UNIT_FACTORS = {"percent": 0.01, "%": 0.01, "p.u.": 0.01, "1": 1.0, "fraction": 1.0, "ratio": 1.0}
UNSPECIFIED_UNITS = ("", "arbitrary", "a.u.")
ANGLE_UNITS = ("degree", "degrees", "deg")


@dataclass(frozen=True)
class CovariateMap:
    """A map of a known quantity that a model uses in each voxel.

    Attributes
    ----------
    name : str
        Covariate of the models, ``"b1"``.
    file : str
        Absolute path.
    factor : float or None
        Factor from stored values to the covariate's unit; None: to be derived from the values.
    nominal_angle : float or None
        Nominal flip angle of the map, degree, where the sidecar states it.
    """

    name: str
    file: str
    factor: float | None = None
    nominal_angle: float | None = None


def choose_b1(
    candidates: Sequence[tuple[str, Mapping[str, Any]]], files: Sequence[str]
) -> Sequence[tuple[str, Mapping[str, Any]]]:
    """Return the maps of the transmit field that apply to a series, the best first: path and sidecar.

    Parameters
    ----------
    candidates : sequence of (str, mapping)
        Path and sidecar of those of the session.
    files : sequence of str
        The series. Maps whose ``IntendedFor`` names one of them come alone.
    """
    names = {Path(name).name for name in files}
    return [(path, sidecar) for path, sidecar in candidates if names & _intended(sidecar)] or candidates


def _intended(sidecar: Mapping[str, Any]) -> set[str]:
    """Return the file names of ``IntendedFor``, whether it holds paths or BIDS URIs, one or several."""
    value = sidecar.get("IntendedFor") or []
    return {Path(str(name)).name for name in ([value] if isinstance(value, str) else value)}


def read_b1(path: str, sidecar: Mapping[str, Any]) -> CovariateMap:
    """Return a map of the transmit field, with the factor to relative values.

    Raises
    ------
    InputError
        If ``Units`` is not known, or is an angle without the nominal one in ``FlipAngle``.
    """
    unit = str(sidecar.get("Units", "")).strip().lower()
    angle = sidecar.get("FlipAngle")
    nominal = float(angle) if isinstance(angle, Real) and not isinstance(angle, bool) and float(angle) > 0 else None
    if unit in UNSPECIFIED_UNITS:
        return CovariateMap("b1", path, nominal_angle=nominal)
    if unit in UNIT_FACTORS:
        return CovariateMap("b1", path, UNIT_FACTORS[unit], nominal)
    if unit in ANGLE_UNITS and nominal is not None:
        return CovariateMap("b1", path, 1 / nominal, nominal)
    raise InputError(
        f"{path} has Units {sidecar['Units']!r}, but a relative transmit field is needed: percent, 1 (effective over "
        "nominal flip angle), or degree with the nominal FlipAngle; correct the sidecar."
    )
