"""A data set of series that measure the same: each series split into two halves, and the series that were repeated.

The halves are raw images, so that whatever processes the data set processes each half apart, and their errors are
independent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from qmri_bidsapp.bids.files import open_image
from qmri_bidsapp.bids.inheritance import InheritedFiles
from qmri_bidsapp.bids.inputs import InputGroup, SubjectInputs
from qmri_bidsapp.core.acquisition import Acquisition, Diffusion
from qmri_bidsapp.core.acquisition.shells import group_b_values
from qmri_bidsapp.errors import NothingMatchedError
from qmri_bidsapp.images.gradients import format_gradients
from qmri_bidsapp.images.volumes import make_image, save_image

#: Ends of ``acq`` of the first, third, ... and of the second, fourth, ... images or volumes of each shell.
HALVES = ("oddhalf", "evenhalf")
#: A series of fewer measurements has no halves that anything could be fitted to.
MIN_MEASUREMENTS = 4
#: Entities that come before ``acq`` in a name.
_BEFORE = ("sub", "ses", "sample")
#: Entities by which repeated series differ.
_REPEATS = ("ses", "run")


@dataclass(frozen=True)
class Pair:
    """Two series that measure the same.

    Attributes
    ----------
    subject : str
        Label, without ``sub-``.
    title : str
        What is compared, for people.
    first, second : str
        Names of the series in the data set that was written.
    are_halves : bool
        Whether they are halves of one series; otherwise the head may have moved between them.
    share_reference : bool
        Whether both contain the only volume without weighting, so that their errors correlate.
    """

    subject: str
    title: str
    first: str
    second: str
    are_halves: bool = True
    share_reference: bool = False


def write_halves(
    bids_dir: Path, subjects: Sequence[SubjectInputs], folder: Path
) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """Write both halves of every series, and the series that were repeated, as a data set of raw images.

    Images that are used whole are links. The sidecars hold all metadata that apply.

    Parameters
    ----------
    bids_dir : Path
        Folder of the data set that the series were found in.
    subjects : sequence of SubjectInputs
    folder : Path
        New folder.

    Returns
    -------
    pairs : tuple of Pair
    notes : tuple of str
        What cannot be compared, and why.

    Raises
    ------
    NothingMatchedError
        If nothing can be compared.
    """
    writer = _Writer(bids_dir, folder)
    pairs: list[Pair] = []
    notes: list[str] = []
    for subject in subjects:
        series = [group for group in subject.groups if group.acquisition is not None]
        repeats, reasons = _repeats(series)
        notes += [f"sub-{subject.subject} {reason}" for reason in (*_unsplittable(series), *reasons)]
        own = [writer.split(group) for group in series if _n_measurements(group) >= MIN_MEASUREMENTS]
        for first, second in repeats:
            writer.link(first)
            writer.link(second)
            title = f"{first.name} and {second.name}"
            own.append(Pair(subject.subject, title, first.name, second.name, are_halves=False))
        if own:
            for group in subject.groups:
                if group.acquisition is None:
                    writer.link(group)
        pairs += own
    notes += [
        f"sub-{pair.subject} {pair.title}: both halves contain the only volume of the lowest b-value; their errors "
        "correlate, and z is smaller than it should be."
        for pair in pairs
        if pair.share_reference
    ]
    if not pairs:
        reason = " ".join(notes) or "the chosen participants have no quantitative series."
        raise NothingMatchedError(f"There is nothing to compare: {reason}")
    writer.write_fieldmaps()
    writer.write_json("dataset_description.json", {"Name": "Halves of series", "BIDSVersion": "1.10.0"})
    return tuple(pairs), tuple(notes)


def _n_measurements(group: InputGroup) -> int:
    return 0 if group.acquisition is None else group.acquisition.n_measurements


def _unsplittable(series: Sequence[InputGroup]) -> list[str]:
    """Return which series cannot be split."""
    counts = {group.name: _n_measurements(group) for group in series}
    return [
        f"{name}: {n} images are too few to split; it takes {MIN_MEASUREMENTS}."
        for name, n in counts.items()
        if n < MIN_MEASUREMENTS
    ]


def _repeats(series: Sequence[InputGroup]) -> tuple[list[tuple[InputGroup, InputGroup]], list[str]]:
    """Return the series that repeat an earlier one, each with that one, and why others do not."""
    known: list[Acquisition] = []
    repeats: dict[Any, list[InputGroup]] = {}
    opposed: dict[Any, list[InputGroup]] = {}
    for group in series:
        assert group.acquisition is not None
        protocol = (group.kind, _number(group.acquisition, known))
        for found, varying in ((repeats, _REPEATS), (opposed, ("dir",))):
            fixed = tuple(item for item in group.entities if item[0] not in varying)
            found.setdefault((*protocol, fixed), []).append(group)
    reasons = [
        f"{' and '.join(group.name for group in groups)}: not compared with each other, since the direction of phase "
        "encoding differs, and with it the distortion."
        for groups in opposed.values()
        if len(groups) > 1
    ]
    return [pair for groups in repeats.values() for pair in pairwise(groups)], reasons


def _number(acquisition: Acquisition, known: list[Acquisition]) -> int:
    """Return the place of the first known protocol that this one repeats; a new one becomes known."""
    found = next((i for i, other in enumerate(known) if _is_same(acquisition, other)), len(known))
    if found == len(known):
        known.append(acquisition)
    return found


def _is_same(first: Acquisition, second: Acquisition) -> bool:
    """Return whether two protocols are the same; recorded b-values of a shell vary between repeats."""
    if not (isinstance(first, Diffusion) and isinstance(second, Diffusion)):
        return type(first) is type(second) and first.rows() == second.rows()
    shells = [[np.asarray(protocol.b_value)[shell] for shell in protocol.shells()] for protocol in (first, second)]
    return list(map(len, shells[0])) == list(map(len, shells[1])) and all(
        len(group_b_values(np.array([a.mean(), b.mean()]))) == 1 for a, b in zip(*shells, strict=True)
    )


def _halved(entities: Iterable[tuple[str, str]], half: str) -> list[tuple[str, str]]:
    """Return entities with `half` at the end of the label of ``acq``."""
    known = list(entities)
    before = [item for item in known if item[0] in _BEFORE]
    after = [item for item in known if item[0] not in (*_BEFORE, "acq")]
    return [*before, ("acq", dict(known).get("acq", "") + half), *after]


class _Writer:
    """Writes a data set, and remembers which images each map of the transmit field is for."""

    def __init__(self, bids_dir: Path, folder: Path) -> None:
        self._root, self._folder, self._inherited = bids_dir, folder, InheritedFiles(bids_dir)
        self._intended: dict[str, list[str]] = {}

    def split(self, group: InputGroup) -> Pair:
        """Write both halves of a series."""
        first, second = (replace(group, entities=tuple(_halved(group.entities, half))).name for half in HALVES)
        shares = False
        if group.row.axis:
            n = len(group.files)
            for index, half in enumerate(HALVES):
                for file in (*group.images[:n][index::2], *group.images[n:][index::2]):
                    self._link(file, self._place(file, half), group)
        else:
            volumes, shares = _volumes(group)
            for half, chosen in zip(HALVES, volumes, strict=True):
                self._write_volumes(group, half, chosen)
        return Pair(group.subject, group.name, first, second, share_reference=shares)

    def link(self, group: InputGroup) -> None:
        """Add a whole series."""
        for file in group.images:
            self._link(file, Path(file).relative_to(self._root), group)
        if group.gradients:
            self._write_gradients(Path(group.files[0]).relative_to(self._root), group.acquisition)

    def write_fieldmaps(self) -> None:
        """Add the maps that the series use, each for these series."""
        for file, names in self._intended.items():
            self._link(file, Path(file).relative_to(self._root), IntendedFor=sorted(names))

    def write_json(self, relative: str | Path, fields: dict[str, Any]) -> None:
        """Write a JSON file of the data set."""
        path = self._folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(fields), encoding="utf-8")

    def _place(self, file: str, half: str) -> Path:
        """Return the place of a half of a file, relative to the data set."""
        path = Path(file).relative_to(self._root)
        *entities, suffix = path.name.split("_")
        pairs = _halved([(key, label) for key, _, label in (word.partition("-") for word in entities)], half)
        return path.parent / "_".join([*(f"{key}-{label}" for key, label in pairs), suffix])

    def _link(self, file: str, place: Path, group: InputGroup | None = None, **fields: Any) -> None:
        target = self._folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.symlink_to(file)
        # A T1w is used without its sidecar, which may not even be readable.
        if group is None or group.acquisition is not None:
            self._write_sidecar(file, place, **fields)
        self._note_fieldmaps(group, place)

    def _note_fieldmaps(self, group: InputGroup | None, place: Path) -> None:
        for item in group.covariates if group else ():
            self._intended.setdefault(item.file, []).append(place.as_posix())

    def _write_sidecar(self, file: str, place: Path, **fields: Any) -> None:
        metadata = {**self._inherited.metadata(file), **fields}
        self.write_json(_beside(place, ".json"), metadata)

    def _write_volumes(self, group: InputGroup, half: str, chosen: npt.NDArray[np.intp]) -> None:
        (file,) = group.files
        place = _beside(self._place(file, half), ".nii")
        image: nib.Nifti1Image = open_image(file)
        values = np.asarray(image.dataobj, dtype=np.float32).reshape(group.shape)[..., chosen]
        path = self._folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(make_image(values, image), path)
        metadata = self._inherited.metadata(file)
        # Some fields hold one value per volume.
        known = {name for field in group.row.fields for name in field.names if isinstance(metadata.get(name), list)}
        self._write_sidecar(file, place, **{name: [metadata[name][i] for i in chosen] for name in known})
        self._note_fieldmaps(group, place)
        if isinstance(group.acquisition, Diffusion):
            self._write_gradients(place, group.acquisition.select(chosen))

    def _write_gradients(self, place: Path, acquisition: Any) -> None:
        texts = format_gradients(np.asarray(acquisition.b_value), np.asarray(acquisition.direction))
        for extension, text in zip((".bval", ".bvec"), texts, strict=True):
            (self._folder / _beside(place, extension)).write_text(text, encoding="utf-8")


def _volumes(group: InputGroup) -> tuple[list[npt.NDArray[np.intp]], bool]:
    """Return the volumes of each half of a 4-D series, and whether they share one.

    Volumes alternate within each shell, and over shells of odd numbers, so that the halves are of one size.
    """
    acquisition = group.acquisition
    if not isinstance(acquisition, Diffusion):
        order = np.arange(group.shape[3])
        return [order[0::2], order[1::2]], False
    shells = acquisition.shells()
    is_single = len(shells[0]) == 1
    order = np.concatenate(shells[1:] if is_single else shells)
    halves = [order[0::2], order[1::2]]
    if is_single:
        halves = [np.append(shells[0], half) for half in halves]
    return [np.sort(half) for half in halves], is_single


def _beside(place: Path, extension: str) -> Path:
    """Return the path of a file beside an image."""
    return place.with_name(place.name.removesuffix(".gz").removesuffix(".nii") + extension)
