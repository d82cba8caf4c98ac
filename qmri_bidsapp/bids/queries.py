"""From a data set to groups of files that belong together, each with its protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qmri_bidsapp.bids.dataset import subjects_of
from qmri_bidsapp.bids.epi import FMAPS, FieldMaps
from qmri_bidsapp.bids.fieldmaps import choose_b1, read_b1
from qmri_bidsapp.bids.files import check_headers, is_label, labels_of, open_image, same_labels_of, shape_of, slice_axis
from qmri_bidsapp.bids.inheritance import InheritedFiles
from qmri_bidsapp.bids.inputs import InputGroup, Problem, SubjectInputs
from qmri_bidsapp.bids.joining import join_diffusion
from qmri_bidsapp.bids.kinds import ENTITIES, FIELDMAP, KEPT_FIELDS, Kind, load_kinds
from qmri_bidsapp.bids.parts import Complement, magnitudes, split_parts
from qmri_bidsapp.bids.selection import Selection
from qmri_bidsapp.bids.sidecars import series_protocol, volumes_protocol
from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.errors import InputError, NothingMatchedError

if TYPE_CHECKING:
    from bids import BIDSLayout
    from bids.layout import BIDSFile


def find_inputs(
    layout: BIDSLayout,
    *,
    participant_labels: tuple[str, ...] = (),
    session_labels: tuple[str, ...] = (),
    run_labels: tuple[str, ...] = (),
    filters: Mapping[str, Mapping[str, Any]] | None = None,
    skip: tuple[str, ...] = (),
    ignore_fieldmaps: bool = False,
) -> tuple[SubjectInputs, ...]:
    """Find the series of every subject, in the order of their labels.

    Parameters
    ----------
    layout : BIDSLayout
    participant_labels, session_labels, run_labels : tuple of str
        Labels without the key; empty for all. Runs are compared as numbers.
    filters : mapping, optional
        Kind in lower case (``"t1w"``, ``"irt1"``, ..., ``"tb1map"``, ``"epi"``) -> pybids query; see `Selection`.
    skip : tuple of str
        Steps that are left out: ``"join"`` leaves diffusion series apart, ``"distortion"`` as they are.
    ignore_fieldmaps : bool
        Whether images in ``fmap`` are not used for distortion.

    Raises
    ------
    NothingMatchedError
        If there is nothing to work on for anybody; the message says why.
    UsageError
        If a filter names an unknown kind or entity.
    """
    selection = Selection(session_labels, run_labels, filters or {})
    root = Path(layout.root)
    inherited = InheritedFiles(root)
    found = []
    nothing: list[str] = []
    for subject in sorted(participant_labels or subjects_of(root)):
        groups: list[InputGroup] = []
        problems: list[Problem] = []
        for kind in load_kinds().values():
            files = selection.images(layout, inherited, subject, kind.suffix)
            for entities, members in _grouped(files, kind):
                _add_group(inherited, subject, kind, entities, members, groups, problems)
        if session_labels or run_labels:
            unselected = selection.images(layout, inherited, subject, "T1w", by_labels=False)
            groups = _with_t1w(inherited, subject, unselected, groups, problems)
        fieldmaps = magnitudes(selection.images(layout, inherited, subject, FIELDMAP, by_labels=False))
        groups = _with_covariates(inherited, groups, fieldmaps, problems)
        if any(group.row.is_diffusion for group in groups):
            suffixes = () if ignore_fieldmaps else FMAPS
            images = (selection.images(layout, inherited, subject, name, by_labels=False) for name in suffixes)
            files = [item.path for listed in images for item in listed if Path(item.path).parent.name == "fmap"]
            maps = FieldMaps(files, inherited)
            correct = "distortion" not in skip
            groups = join_diffusion(groups, inherited, maps, join="join" not in skip, correct_distortion=correct)
            problems += [Problem(subject, "dwi", "", note, severity="note") for note in maps.notes]
        if not groups and not problems:
            nothing.append(selection.why_nothing(layout, subject))
            severity = "note" if is_label(subject) else "error"
            problems.append(Problem(subject, "", "", nothing[-1], severity=severity))
        found.append(SubjectInputs(subject, tuple(groups), tuple(problems)))
    if len(nothing) == len(found):
        more = f" {len(nothing) - 1} more participants have nothing either." if len(nothing) > 1 else ""
        raise NothingMatchedError(f"There is nothing to work on in {root}: {nothing[0]}{more}")
    return tuple(found)


def _grouped(files: Iterable[BIDSFile], kind: Kind) -> list[tuple[tuple[tuple[str, str], ...], list[BIDSFile]]]:
    """Group files by the entities that distinguish series; return those entities as the first file has them."""
    keys = [name for name in ENTITIES if name not in kind.within]
    groups: dict[tuple[str | None, ...], list[BIDSFile]] = {}
    for item in files:
        same = same_labels_of(item.path)
        groups.setdefault(tuple(same.get(name) for name in keys), []).append(item)
    found = []
    for members in groups.values():
        labels = labels_of(members[0].path)
        found.append((tuple((name, labels[name]) for name in keys if name in labels), members))
    return sorted(found, key=lambda item: item[0])


def _first_echo(members: list[BIDSFile]) -> tuple[list[BIDSFile], str | None]:
    """Return the images of the first echo, the least T2*-weighted one, and a note on what was left out."""
    echoes = [int(item.entities.get("echo", 0)) for item in members]
    kept = [item for item, echo in zip(members, echoes, strict=True) if echo == min(echoes)]
    if len(kept) == len(members):
        return members, None
    return kept, f"{kept[0].path} and its series: of {len(set(echoes))} echoes only the first is used."


def _add_group(
    inherited: InheritedFiles,
    subject: str,
    kind: Kind,
    entities: tuple[tuple[str, str], ...],
    members: list[BIDSFile],
    groups: list[InputGroup],
    problems: list[Problem],
) -> None:
    """Append a group; what cannot be used becomes a problem."""
    path = members[0].path
    complement: list[BIDSFile] = []
    note = None
    try:
        _check_distinct(kind, [item.path for item in members])
        if not kind.restores_polarity:
            members = _of_magnitude(members)
            path = members[0].path
        reason = _not_needed(kind, path)
        if reason is not None:
            problems.append(Problem(subject, kind.suffix, path, f"{path} is not used: {reason}.", severity="note"))
            return
        if kind.is_steady_state:
            members, note = _first_echo(members)
        elif kind.restores_polarity:
            members, complement, note = split_parts(members, *kind.axis)
        elif kind.is_diffusion:
            note = _other_slices(path)
        try:
            sidecars = [inherited.metadata(item.path) for item in members]
        except InputError as error:
            if kind.acquisition is not None:
                raise
            # Nothing is computed from the sidecar of such an image.
            sidecars, note = [{} for _ in members], f"{path} is used without its sidecar: {error}"
        if note:
            problems.append(Problem(subject, kind.suffix, path, note, severity="note"))
        groups.append(_make_group(inherited, subject, kind, entities, members, complement, sidecars))
    except InputError as error:
        problems.append(Problem(subject, kind.suffix, path, str(error)))


def _of_magnitude(members: list[BIDSFile]) -> list[BIDSFile]:
    """Return the magnitude images of a series; InputError if there are none."""
    found = magnitudes(members)
    if not found:
        parts = ", ".join(sorted({f"part-{item.entities['part']}" for item in members}))
        raise InputError(
            f"{members[0].path} and its series have {parts} only, but magnitude images are needed; add them (from "
            "part-real and part-imag, the root of the sum of squares)."
        )
    return found


def _not_needed(kind: Kind, path: str) -> str | None:
    """Return why a valid image is not used, None if it is; InputError if it has another number of dimensions."""
    from nibabel.affines import voxel_sizes

    image = open_image(path)
    if kind.ndim == 4 and image.ndim == 3:
        return "it is a single volume, from which nothing can be estimated"
    if kind.min_extent:
        extent = float(min(np.multiply(shape_of(path, image, ndim=3), voxel_sizes(image.affine))))
        if extent < kind.min_extent:
            return (
                f"it is {extent:.0f} mm thick, and brain extraction needs the whole head (at least "
                f"{kind.min_extent:.0f} mm)"
            )
    return None


def _other_slices(path: str) -> str | None:
    """Return a note if slices of a series do not lie along its third axis."""
    axis = slice_axis(open_image(path))
    if axis == 2:
        return None
    return (
        f"{path} has its slices along the {('first', 'second')[axis]} axis, by its header or voxel sizes, but "
        "unringing takes them along the third: store image and directions with slices last, or give --skip unring."
    )


def _check_distinct(kind: Kind, paths: list[str]) -> None:
    """Raise InputError unless every image has a name of its own: outputs would overwrite each other."""
    seen: dict[tuple[str | None, ...], str] = {}
    for path in paths:
        labels = same_labels_of(path)
        for name in kind.axis:
            if name not in labels:
                # All volumes in one file is the usual cause.
                shape_of(path, open_image(path), ndim=kind.ndim)
                raise InputError(f"{path} needs the entity {name}- in its name, as an image of a series; rename it.")
        # Without part-, an image is a magnitude.
        key = (*(labels.get(name) for name in kind.within), labels.get("part", "mag"))
        if key in seen:
            raise InputError(
                f"{path} and {Path(seen[key]).name} are the same series by their names; keep one, or choose one "
                "with --bids-filter-file."
            )
        seen[key] = path


def _with_t1w(
    inherited: InheritedFiles,
    subject: str,
    unselected: list[BIDSFile],
    groups: list[InputGroup],
    problems: list[Problem],
) -> list[InputGroup]:
    """Add, to series of sessions without a chosen T1w, the one that they would have if nothing was chosen.

    That is the first usable one of the session or else of the participant: it gives mask and tissues.
    """
    kind = load_kinds()["T1w"]
    t1w = [group for group in groups if group.kind == kind.suffix]
    series = [group for group in groups if group.kind != kind.suffix]
    sessions = sorted({_session(group.entities) for group in series} - {_session(group.entities) for group in t1w})
    everyone = _grouped(unselected, kind)
    for session in sessions:
        same = [item for item in everyone if _session(item[0]) == session]
        for entities, members in (*same, *everyone):
            found: list[InputGroup] = []
            notes: list[Problem] = []
            _add_group(inherited, subject, kind, entities, members, found, notes)
            if found and found[0] not in t1w:
                t1w += found
                message = (
                    f"{found[0].files[0]} gives mask and tissues: the chosen sessions and runs have no T1w for the "
                    f"series{f' of ses-{session}' if session else ''}."
                )
                problems += [*notes, Problem(subject, kind.suffix, found[0].files[0], message, severity="note")]
            if found:
                break
    return [*sorted(t1w, key=lambda group: group.entities), *series]


def _session(entities: tuple[tuple[str, str], ...]) -> str:
    """Return the session of a group, empty if it has none."""
    return dict(entities).get("ses", "")


def _with_covariates(
    inherited: InheritedFiles, groups: list[InputGroup], fieldmaps: list[BIDSFile], problems: list[Problem]
) -> list[InputGroup]:
    """Add the map of the transmit field to steady-state series; leave out a series whose map cannot be used."""
    found = []
    for group in groups:
        if not group.row.is_steady_state:
            found.append(group)
            continue
        # The field depends on the position of the head: a map of another session does not apply.
        session = dict(group.entities).get("ses")
        same = [item.path for item in fieldmaps if item.entities.get("session") in (None, session)]
        try:
            maps = choose_b1([(path, inherited.metadata(path)) for path in same], group.files)
            if len(maps) > 1:
                message = (
                    f"{len(maps)} TB1maps apply to {group.name}: {Path(maps[0][0]).name} is used; "
                    "name another with IntendedFor or --bids-filter-file."
                )
                problems.append(Problem(group.subject, group.kind, maps[0][0], message, severity="note"))
            covariates = []
            for path, sidecar in maps[:1]:
                check_headers([path], ndim=3)
                covariates.append(read_b1(path, sidecar))
        except InputError as error:
            message = f"{group.name} is left out because of its map of the transmit field: {error}"
            problems.append(Problem(group.subject, group.kind, group.files[0], message))
            continue
        found.append(replace(group, covariates=tuple(covariates)))
    return found


def _make_group(
    inherited: InheritedFiles,
    subject: str,
    kind: Kind,
    entities: tuple[tuple[str, str], ...],
    members: list[BIDSFile],
    complement: list[BIDSFile],
    sidecars: list[dict[str, Any]],
) -> InputGroup:
    """Check headers and sidecars, and build the group."""
    paths = [item.path for item in members]
    shape = check_headers([*paths, *(item.path for item in complement)], ndim=kind.ndim)
    acquisition: Acquisition | None = None
    gradients: tuple[str, ...] = ()
    completed = None
    if kind.axis:
        acquisition, order = series_protocol(kind, paths, sidecars, signed=bool(complement))
        paths, complement = [paths[i] for i in order], [complement[i] for i in order if complement]
    elif kind.acquisition is not None:
        bval = bvec = None
        if kind.is_diffusion:
            bval, bvec = (inherited.gradient_file(paths[0], extension) for extension in (".bval", ".bvec"))
            gradients = tuple(file for file in (bval, bvec) if file)
        acquisition = volumes_protocol(kind, paths[0], sidecars[0], shape[3], bval=bval, bvec=bvec)
    if complement:
        part, unit = complement[0].entities["part"], inherited.metadata(complement[0].path).get("Units")
        completed = Complement(part, tuple(item.path for item in complement), unit)
    shown = ((field, sidecars[0].get(field)) for field in kind.shown)
    return InputGroup(
        kind=kind.suffix,
        subject=subject,
        entities=entities,
        files=tuple(paths),
        acquisition=acquisition,
        gradients=gradients,
        metadata=tuple((field, value) for field, value in shown if isinstance(value, (str, int, float))),
        kept=tuple((name, sidecars[0][name]) for name in KEPT_FIELDS if _agree(sidecars, name)),
        complement=completed,
        shape=shape,
    )


def _agree(sidecars: list[dict[str, Any]], name: str) -> bool:
    """Return whether all images of a series have one value of a sidecar field."""
    return all(name in sidecar and sidecar[name] == sidecars[0][name] for sidecar in sidecars)
