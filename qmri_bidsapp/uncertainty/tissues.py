"""Tissues and abnormalities of which the literature gives parameters, to show what an estimator makes of them."""

from __future__ import annotations

from dataclasses import dataclass

from qmri_bidsapp.models.base import SignalModel


@dataclass(frozen=True)
class NamedTissue:
    """A point in parameter space.

    Attributes
    ----------
    name : str
    values : dict
        Parameter -> value, in its unit; others of the model are at their typical magnitude.
    source : str
        Author, year, table.
    """

    name: str
    values: dict[str, float]
    source: str


_GYORI = "Gyori et al. 2021, Table 2"
_SABIDUSSI = "Sabidussi et al. 2021, Table 1"

_SMT = tuple(
    NamedTissue(name, {"intra_fraction": fraction, "diffusivity": diffusivity}, _GYORI)
    for name, fraction, diffusivity in (
        ("White matter", 0.67, 2.20e-3),
        ("Grey matter", 0.16, 1.14e-3),
        ("Abnormality 1", 0.67, 0.50e-3),
        ("Abnormality 2", 0.05, 2.20e-3),
        ("Abnormality 3", 0.60, 1.80e-3),
    )
)
_RELAXATION = (("White matter", 0.78, 0.08), ("Grey matter", 1.4, 0.11), ("Cerebrospinal fluid", 3.5, 2.0))
#: A complete inversion.
_T1 = tuple(NamedTissue(name, {"inversion_factor": 2.0, "t1": t1}, _SABIDUSSI) for name, t1, _ in _RELAXATION)
_T2 = tuple(NamedTissue(name, {"t2": t2}, _SABIDUSSI) for name, _, t2 in _RELAXATION)
#: Model -> tissues.
TISSUES: dict[str, tuple[NamedTissue, ...]] = {"smt": _SMT, "t1": _T1, "t2": _T2}


def tissues_of(model: SignalModel) -> tuple[NamedTissue, ...]:
    """Return the tissues that are known of a model; none for most."""
    return TISSUES.get(model.name, ())
