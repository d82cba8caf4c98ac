"""Diffusion series that are one: acquired alike in several files, of one or of opposite phase encoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.bids.epi import Epi, FieldMaps
from qmri_bidsapp.bids.files import open_image
from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.core.phase_encoding import PhaseEncoding
from qmri_bidsapp.errors import InputError
from qmri_bidsapp.images.volumes import compare_grids

if TYPE_CHECKING:
    from qmri_bidsapp.bids.inheritance import InheritedFiles
    from qmri_bidsapp.bids.inputs import InputGroup

#: Entities in which files of one series may differ.
VARYING = ("dir", "run")
#: Sidecar fields in which they may differ.
_ENCODING_FIELDS = ("PhaseEncodingDirection", "TotalReadoutTime", "EffectiveEchoSpacing")


def join_diffusion(
    groups: Sequence[InputGroup],
    inherited: InheritedFiles,
    maps: FieldMaps,
    *,
    join: bool = True,
    correct_distortion: bool = True,
) -> list[InputGroup]:
    """Join diffusion series that belong together, and find what their distortion is corrected with.

    Parameters
    ----------
    groups : sequence of InputGroup
        All series of a participant.
    inherited : InheritedFiles
    maps : FieldMaps
    join : bool
        Whether files that differ in ``dir-`` or ``run-`` only, with one grid and one protocol, become one series.
    correct_distortion : bool
        Whether distortion is corrected. Otherwise files of different phase encoding are not joined: they show the head
        in different shapes.
    """
    families: dict[Any, list[InputGroup]] = {}
    for group in groups:
        own: Any = group.name
        if join and isinstance(group.acquisition, Diffusion):
            own = (tuple(item for item in group.entities if item[0] not in VARYING), _alike(group))
        families.setdefault((group.kind, own), []).append(group)
    found: list[InputGroup] = []
    for members in families.values():
        if not isinstance(members[0].acquisition, Diffusion):
            found += members
            continue
        try:
            found.append(_one_series(members, inherited, maps if correct_distortion else None))
        except InputError as error:
            names = " and ".join(group.name for group in members)
            for group in members:
                alone = _one_series([group], inherited, maps if correct_distortion else None)
                assert alone.epi is not None
                note = f"{names} are not joined into one series: {error}"
                found.append(replace(alone, epi=replace(alone.epi, notes=(note, *alone.epi.notes))))
    return found


def _alike(group: InputGroup) -> tuple[Any, ...]:
    """Return what files of one series share: the size of the grid, and the protocol by their sidecars."""
    acquisition = group.acquisition
    assert isinstance(acquisition, Diffusion)
    kept = tuple((name, str(value)) for name, value in group.kept if name not in _ENCODING_FIELDS)
    return (group.shape[:3], kept, acquisition.small_delta, acquisition.large_delta)


def _one_series(members: Sequence[InputGroup], inherited: InheritedFiles, maps: FieldMaps | None) -> InputGroup:
    """Return one series of files that are alike; `maps` is None where distortion is not corrected.

    Raises
    ------
    InputError
        If several files cannot be one series.
    """
    first, names = members[0], [group.name for group in members]
    affine = open_image(first.files[0]).affine
    for group in members[1:]:
        compare_grids(group.files[0], open_image(group.files[0]).affine, first.files[0], affine, first.shape)
    directions = {dict(group.entities).get("dir") for group in members}
    encodings: tuple[PhaseEncoding, ...] = ()
    unknown = "it is left out"
    try:
        encodings = tuple(PhaseEncoding.from_sidecar(inherited.metadata(g.files[0]), g.shape) for g in members)
    except InputError as error:
        if len(directions) > 1:
            raise
        unknown = str(error).rstrip(".")
    series = _concatenated(members) if len(members) > 1 else first
    source, why = None, unknown
    if encodings and maps is not None:
        source, why = maps.source(series, encodings)
    if source is None and len(set(encodings)) > 1:
        raise InputError(f"their phase encoding differs, and distortion is not corrected: {why}.")
    notes = [note for note in dict.fromkeys(encoding.note for encoding in encodings) if note]
    if len(members) > 1:
        notes.append(f"{' and '.join(names)} are one series, {series.name}: one grid and one protocol.")
    if maps is not None:
        notes.append(f"Distortion is corrected {why}." if source else f"Distortion is not corrected: {why}.")
    return replace(series, epi=Epi(tuple(group.shape[3] for group in members), encodings, source, tuple(notes)))


def _concatenated(members: Sequence[InputGroup]) -> InputGroup:
    """Return the files of several series as one, in their order."""
    first = members[0]
    shared = set(first.entities).intersection(*(group.entities for group in members))
    parts = [group.acquisition for group in members if isinstance(group.acquisition, Diffusion)]
    joined = Diffusion(
        tuple(value for part in parts for value in part.b_value),
        tuple(row for part in parts for row in part.direction),
        small_delta=parts[0].small_delta,
        large_delta=parts[0].large_delta,
    )
    return replace(
        first,
        entities=tuple(item for item in first.entities if item in shared),
        files=tuple(file for group in members for file in group.files),
        gradients=tuple(file for group in members for file in group.gradients),
        acquisition=joined,
        kept=tuple(item for item in first.kept if all(item in group.kept for group in members)),
        shape=(*first.shape[:3], sum(group.shape[3] for group in members)),
    )
