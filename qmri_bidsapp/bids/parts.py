"""Images that hold parts of a complex signal: magnitude and phase, or real and imaginary part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qmri_bidsapp.bids.files import labels_of
from qmri_bidsapp.errors import InputError

if TYPE_CHECKING:
    from bids.layout import BIDSFile


@dataclass(frozen=True)
class Complement:
    """Images that make a series complex.

    Attributes
    ----------
    part : str
        ``"phase"``, of magnitude images, or ``"imag"``, of real parts.
    files : tuple of str
        Absolute paths, in the order of the series.
    unit : str or None
        ``Units`` of the phase.
    """

    part: str
    files: tuple[str, ...]
    unit: str | None = None


def magnitudes(files: Iterable[BIDSFile]) -> list[BIDSFile]:
    """Return the magnitude images: those of ``part-mag``, or without ``part-``."""
    return [item for item in files if item.entities.get("part") in (None, "mag")]


def split_parts(members: Sequence[BIDSFile], axis: str) -> tuple[list[BIDSFile], list[BIDSFile], str | None]:
    """Separate the images of a series from their phase or imaginary parts.

    Parameters
    ----------
    members : sequence of BIDSFile
        All parts.
    axis : str
        BIDS key of the entity along which the images of the series differ.

    Returns
    -------
    images : list of BIDSFile
        Real parts where imaginary parts complete them, else magnitudes.
    complement : list of BIDSFile
        Imaginary parts or phases in the same order; empty where they do not cover the images.
    note : str or None
        Why phase or imaginary parts are not used.

    Raises
    ------
    InputError
        If there is neither a magnitude nor a complete pair.
    """
    parts: dict[str, list[BIDSFile]] = {"mag": [], "phase": [], "real": [], "imag": []}
    for item in members:
        parts[item.entities.get("part") or "mag"].append(item)
    for first, second in (("real", "imag"), ("mag", "phase")):
        found = {labels_of(item.path)[axis]: item for item in parts[second]}
        labels = [labels_of(item.path)[axis] for item in parts[first]]
        if labels and sorted(labels) == sorted(found):
            return parts[first], [found[label] for label in labels], None
    others = [name for name in ("phase", "real", "imag") if parts[name]]
    if not parts["mag"]:
        raise InputError(
            f"{members[0].path} and its series have part-{', part-'.join(others)} only: magnitude images, or both "
            "part-real and part-imag of every image, are needed; add them."
        )
    note = f"{parts['mag'][0].path} and its series: part-{', part-'.join(others)} do not cover all images: not used."
    return parts["mag"], [], note if others else None
