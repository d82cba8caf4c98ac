"""What the distortion of a diffusion series is corrected with: images of opposite phase encoding, or a field map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.bids.files import labels_of, open_image
from qmri_bidsapp.core.phase_encoding import PhaseEncoding
from qmri_bidsapp.errors import InputError
from qmri_bidsapp.images.volumes import compare_grids

if TYPE_CHECKING:
    from qmri_bidsapp.bids.inheritance import InheritedFiles
    from qmri_bidsapp.bids.inputs import InputGroup

#: Maps by gradient echoes: name -> suffixes of their images in ``fmap``, the preferred one first.
GRADIENT_ECHOES = {"phasediff": ("phasediff",), "phases": ("phase1", "phase2"), "fieldmap": ("fieldmap",)}
#: Suffixes of their magnitudes, the preferred one first.
MAGNITUDES = ("magnitude1", "magnitude", "magnitude2")
#: Suffixes of all images in ``fmap`` that are looked for.
FMAPS = ("epi", *(suffix for suffixes in GRADIENT_ECHOES.values() for suffix in suffixes), *MAGNITUDES)


@dataclass(frozen=True)
class EpiImage:
    """An EPI and its phase encoding.

    Attributes
    ----------
    file : str
        Absolute path.
    encoding : PhaseEncoding
    """

    file: str
    encoding: PhaseEncoding


@dataclass(frozen=True)
class FieldSource:
    """What the field of a series is found from.

    Attributes
    ----------
    kind : str
        ``"pair"``: EPI of opposite phase encoding; else a map by gradient echoes, a key of `GRADIENT_ECHOES`.
    images : tuple of EpiImage
        Of a pair: those in ``fmap``, used beside the volumes without weighting of the series.
    files : tuple of str
        Of a map: absolute paths.
    echo_times : tuple of float
        Of a map by phases, s.
    unit : str or None
        ``Units`` of a map.
    magnitude : str or None
        Of a map.
    """

    kind: str
    images: tuple[EpiImage, ...] = ()
    files: tuple[str, ...] = ()
    echo_times: tuple[float, ...] = ()
    unit: str | None = None
    magnitude: str | None = None

    @property
    def all_files(self) -> tuple[str, ...]:
        """Everything that is read."""
        return (*(image.file for image in self.images), *self.files, *((self.magnitude,) if self.magnitude else ()))


@dataclass(frozen=True)
class Epi:
    """Files and phase encoding of a diffusion series.

    Attributes
    ----------
    n_volumes : tuple of int
        Of each file.
    encodings : tuple of PhaseEncoding
        Of each file; empty where a sidecar does not state it.
    source : FieldSource or None
        None where distortion is not corrected.
    notes : tuple of str
        Which files were joined, what the field is found from or why from nothing, and how readout times were found.
    """

    n_volumes: tuple[int, ...]
    encodings: tuple[PhaseEncoding, ...] = ()
    source: FieldSource | None = None
    notes: tuple[str, ...] = ()


class FieldMaps:
    """The images in ``fmap`` of one participant from which fields can be found.

    Parameters
    ----------
    files : sequence of str
        Absolute paths of images with the suffixes `FMAPS`.
    inherited : InheritedFiles

    Attributes
    ----------
    notes : list of str
        Images that cannot be used, and why.
    """

    def __init__(self, files: Sequence[str], inherited: InheritedFiles) -> None:
        self.notes: list[str] = []
        self._inherited = inherited
        self._sidecars: dict[str, Mapping[str, Any]] = {}
        for file in files:
            try:
                self._sidecars[file] = inherited.metadata(file)
            except InputError as error:
                self.notes.append(f"{file} is not used for distortion: {error}")

    def source(self, group: InputGroup, encodings: Sequence[PhaseEncoding]) -> tuple[FieldSource | None, str]:
        """Return what the field of a series is found from, and a sentence that says why.

        Images that the series names by ``B0FieldSource``, or that name it by ``IntendedFor``, come before others of
        its session, and EPI of opposite phase encoding before maps by gradient echoes.

        Parameters
        ----------
        group : InputGroup
            Diffusion series.
        encodings : sequence of PhaseEncoding
            Of each of its files.
        """
        named = self._named(group)
        for why, candidates in (*named, ("session and grid", self._unnamed(group))):
            images = self._epi(candidates, group)
            opposite = [image for image in images if any(image.encoding.is_opposite(own) for own in encodings)]
            if opposite:
                names = ", ".join(Path(image.file).name for image in images)
                return FieldSource("pair", tuple(images)), f"by opposite phase encoding, with {names} ({why})"
            is_pair = any(a.is_opposite(b) for a in encodings for b in encodings)
            if is_pair and why != "B0FieldSource":
                return FieldSource("pair"), "by the opposite phase encoding of its files"
            for kind, suffixes in GRADIENT_ECHOES.items():
                files = [file for suffix in suffixes for file in candidates if _suffix(file) == suffix]
                if len(files) < len(suffixes):
                    continue
                try:
                    return self._map(kind, files[: len(suffixes)]), f"with {Path(files[0]).name} ({why})"
                except InputError as error:
                    self.notes.append(f"{files[0]} is not used for the distortion of {group.name}: {error}")
        return None, "no images of opposite phase encoding and no field map were found for it"

    def _named(self, group: InputGroup) -> list[tuple[str, list[str]]]:
        """Return the images that sidecars assign to a series, with the field that does."""
        names = {Path(file).name for file in group.files}
        wanted = {name for file in group.files for name in _listed(self._inherited.metadata(file).get("B0FieldSource"))}
        by_identifier, by_intention = [], []
        for file, sidecar in self._sidecars.items():
            if wanted & set(_listed(sidecar.get("B0FieldIdentifier"))):
                by_identifier.append(file)
            elif names & {Path(name).name for name in _listed(sidecar.get("IntendedFor"))}:
                by_intention.append(file)
        found = (("B0FieldSource", by_identifier), ("IntendedFor", by_intention))
        return [(why, files) for why, files in found if files]

    def _unnamed(self, group: InputGroup) -> list[str]:
        """Return the EPI of the session that no sidecar assigns to other series."""
        session = dict(group.entities).get("ses")
        return [
            file
            for file, sidecar in self._sidecars.items()
            if _suffix(file) == "epi" and labels_of(file).get("ses") == session and not sidecar.get("IntendedFor")
        ]

    def _epi(self, files: Sequence[str], group: InputGroup) -> list[EpiImage]:
        """Return the EPI among images that lie on the grid of a series."""
        found = []
        for file in files:
            if _suffix(file) != "epi":
                continue
            try:
                image = open_image(file)
                if image.shape[:3] != group.shape[:3]:
                    raise InputError(f"it has {image.shape[:3]} voxels, {group.name} {group.shape[:3]}.")
                compare_grids(file, image.affine, group.files[0], open_image(group.files[0]).affine, image.shape)
                found.append(EpiImage(file, PhaseEncoding.from_sidecar(self._sidecars[file], image.shape)))
            except InputError as error:
                self.notes.append(f"{Path(file).name} is not used for the distortion of {group.name}: {error}")
        return found

    def _map(self, kind: str, files: Sequence[str]) -> FieldSource:
        """Return a map by gradient echoes, with the magnitude of the same name; InputError if a field is missing."""
        stem = _stem(files[0])
        found = {_suffix(file): file for file in self._sidecars if _stem(file) == stem}
        magnitude = next((found[suffix] for suffix in MAGNITUDES if suffix in found), None)
        sidecars = [self._sidecars[file] for file in files]
        times: list[Any] = []
        if kind == "phasediff":
            times = [sidecars[0].get("EchoTime1"), sidecars[0].get("EchoTime2")]
        elif kind == "phases":
            times = [sidecar.get("EchoTime") for sidecar in sidecars]
        if not all(isinstance(time, (int, float)) and time > 0 for time in times):
            names = "EchoTime1 and EchoTime2" if kind == "phasediff" else "EchoTime"
            raise InputError(f"its sidecar must give {names}, s, got {times}.")
        unit = sidecars[0].get("Units")
        return FieldSource(
            kind, (), tuple(files), tuple(map(float, times)), None if unit is None else str(unit), magnitude
        )


def _stem(file: str) -> str:
    """Return a path without suffix and extension."""
    return file.removesuffix(".gz").removesuffix(".nii").rpartition("_")[0]


def _suffix(file: str) -> str:
    return Path(file).name.split(".")[0].rpartition("_")[2]


def _listed(value: Any) -> list[str]:
    """Return the texts of a field that holds one or several."""
    return [str(item) for item in value] if isinstance(value, list) else [str(value)] if value else []
