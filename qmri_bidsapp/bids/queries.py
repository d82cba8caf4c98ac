"""From a data set to groups of files that belong together, each with its protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.bids.fieldmaps import choose_b1, read_b1
from qmri_bidsapp.bids.files import check_headers, labels_of, open_image, same_labels_of
from qmri_bidsapp.bids.inputs import InputGroup, Problem, SubjectInputs
from qmri_bidsapp.bids.kinds import ENTITIES, FIELDMAP, Kind, load_kinds, suffixes
from qmri_bidsapp.bids.parts import Complement, split_parts
from qmri_bidsapp.bids.sidecars import series_protocol, volumes_protocol
from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.errors import InputError, NothingMatchedError, UsageError

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
) -> tuple[SubjectInputs, ...]:
    """Find the series of every subject, in the order of their labels.

    Parameters
    ----------
    layout : BIDSLayout
    participant_labels, session_labels, run_labels : tuple of str
        Labels without the key; empty for all. Runs are compared as numbers.
    filters : mapping, optional
        Kind in lower case (``"t1w"``, ``"irt1"``, ..., ``"tb1map"``) -> pybids query.

    Raises
    ------
    NothingMatchedError
        If the labels and filters leave nothing.
    UsageError
        If a filter names an unknown kind or entity.
    """
    queries = _queries(filters or {})
    subjects = sorted(participant_labels or layout.get_subjects())
    found = []
    n_files = 0
    for subject in subjects:
        groups: list[InputGroup] = []
        problems: list[Problem] = []
        for kind in load_kinds().values():
            files = _files(layout, subject, kind.suffix, queries[kind.suffix], session_labels, run_labels)
            if not kind.restores_polarity:
                files = _magnitudes(files)
            n_files += len(files)
            for entities, members in _grouped(files, kind):
                _add_group(layout, subject, kind, entities, members, groups, problems)
        # `choose_b1` takes maps of the session of a series, or without a session.
        fieldmaps = _magnitudes(_files(layout, subject, FIELDMAP, queries[FIELDMAP], (), ()))
        groups = _with_covariates(groups, fieldmaps, problems)
        if not groups and not problems:
            message = f"sub-{subject} has no {' or '.join(suffixes().rsplit(', ', 1))} to work on."
            problems.append(Problem(subject, "", "", message, severity="note"))
        found.append(SubjectInputs(subject, tuple(groups), tuple(problems)))
    if not n_files:
        raise NothingMatchedError(
            f"No {suffixes()} matches the chosen participants, sessions, runs and filters; check the labels."
        )
    return tuple(found)


def _queries(filters: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    known = {kind.lower(): kind for kind in (*load_kinds(), FIELDMAP)}
    unknown = sorted(set(filters) - set(known))
    if unknown:
        raise UsageError(f"The filter file names {', '.join(unknown)}; known: {', '.join(sorted(known))}.")
    return {kind: dict(filters.get(key, {})) for key, kind in known.items()}


def _files(
    layout: BIDSLayout,
    subject: str,
    suffix: str,
    query: dict[str, Any],
    session_labels: tuple[str, ...],
    run_labels: tuple[str, ...],
) -> list[BIDSFile]:
    """Return the images of a suffix, sorted by path."""
    filters = {"suffix": suffix, "extension": [".nii", ".nii.gz"], "scope": "raw", **query, "subject": subject}
    try:
        files = sorted(layout.get(**filters), key=lambda item: item.path)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"pybids does not understand the filter {query} of {suffix.lower()} ({str(error).splitlines()[0]}); "
            "it takes long names, such as acquisition for acq."
        ) from error
    # pybids also finds copies in other folders, such as the output of an earlier run.
    own = Path(layout.root) / f"sub-{subject}"
    files = [item for item in files if own in Path(item.path).parents]
    if session_labels:
        files = [item for item in files if item.entities.get("session") in session_labels]
    if run_labels:
        runs = {int(label) for label in run_labels}
        files = [item for item in files if item.entities.get("run") is not None and int(item.entities["run"]) in runs]
    return files


def _magnitudes(files: Iterable[BIDSFile]) -> list[BIDSFile]:
    return [item for item in files if item.entities.get("part") in (None, "mag")]


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
    layout: BIDSLayout,
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
        reason = _not_needed(kind, path)
        if reason is not None:
            problems.append(Problem(subject, kind.suffix, path, f"{path} is not used: {reason}.", severity="note"))
            return
        if kind.is_steady_state:
            members, note = _first_echo(members)
        elif kind.restores_polarity:
            members, complement, note = split_parts(members, *kind.axis)
        if note:
            problems.append(Problem(subject, kind.suffix, path, note, severity="note"))
        groups.append(_make_group(layout, subject, kind, entities, members, complement))
    except InputError as error:
        problems.append(Problem(subject, kind.suffix, path, str(error)))


def _not_needed(kind: Kind, path: str) -> str | None:
    """Return why a valid image is not used; None if it is."""
    from nibabel.affines import voxel_sizes

    image = open_image(path)
    if kind.ndim == 4 and image.ndim == 3:
        return "it is a single volume, from which nothing can be estimated"
    if kind.min_extent:
        extent = float(min(image.shape[:3] * voxel_sizes(image.affine)))
        if extent < kind.min_extent:
            return (
                f"it is {extent:.0f} mm thick, and brain extraction needs the whole head (at least "
                f"{kind.min_extent:.0f} mm)"
            )
    return None


def _check_distinct(kind: Kind, paths: list[str]) -> None:
    """Raise InputError unless every image has a name of its own: outputs would overwrite each other."""
    seen: dict[tuple[str | None, ...], str] = {}
    for path in paths:
        labels = same_labels_of(path)
        for name in kind.axis:
            if name not in labels:
                raise InputError(f"{path} needs the entity {name}- in its name, as an image of a series; rename it.")
        # Without part-, an image is a magnitude.
        key = (*(labels.get(name) for name in kind.within), labels.get("part", "mag"))
        if key in seen:
            raise InputError(
                f"{path} and {Path(seen[key]).name} are the same series by their names; keep one, or choose one "
                "with --bids-filter-file."
            )
        seen[key] = path


def _with_covariates(groups: list[InputGroup], fieldmaps: list[BIDSFile], problems: list[Problem]) -> list[InputGroup]:
    """Add the map of the transmit field to steady-state series; leave out a series whose map cannot be used."""
    found = []
    for group in groups:
        maps = choose_b1(fieldmaps, dict(group.entities).get("ses"), group.files)
        if not group.row.is_steady_state or not maps:
            found.append(group)
            continue
        chosen = maps[0]
        if len(maps) > 1:
            message = (
                f"{len(maps)} TB1maps apply to {group.name}: {Path(chosen.path).name} is used; "
                "name another with IntendedFor or --bids-filter-file."
            )
            problems.append(Problem(group.subject, group.kind, chosen.path, message, severity="note"))
        try:
            check_headers([chosen.path], ndim=3)
            b1 = read_b1(chosen.path, chosen.get_metadata())
        except InputError as error:
            message = f"{group.name} is left out because of its map of the transmit field: {error}"
            problems.append(Problem(group.subject, group.kind, chosen.path, message))
            continue
        found.append(replace(group, covariates=(b1,)))
    return found


def _make_group(
    layout: BIDSLayout,
    subject: str,
    kind: Kind,
    entities: tuple[tuple[str, str], ...],
    members: list[BIDSFile],
    complement: list[BIDSFile],
) -> InputGroup:
    """Check headers and sidecars, and build the group."""
    paths = [item.path for item in members]
    sidecars = [dict(item.get_metadata()) for item in members]
    shape = check_headers([*paths, *(item.path for item in complement)], ndim=kind.ndim)
    acquisition: Acquisition | None = None
    bval = bvec = completed = None
    if kind.axis:
        acquisition, order = series_protocol(kind, paths, sidecars, signed=bool(complement))
        paths, complement = [paths[i] for i in order], [complement[i] for i in order if complement]
    elif kind.acquisition is not None:
        if kind.is_diffusion:
            root = Path(layout.root)
            bval, bvec = (_gradient_file(root, paths[0], kind.suffix, extension) for extension in (".bval", ".bvec"))
        acquisition = volumes_protocol(kind, paths[0], sidecars[0], shape[3], bval=bval, bvec=bvec)
    if complement:
        part, unit = complement[0].entities["part"], complement[0].get_metadata().get("Units")
        completed = Complement(part, tuple(item.path for item in complement), unit)
    shown = ((field, sidecars[0].get(field)) for field in kind.shown)
    return InputGroup(
        kind=kind.suffix,
        subject=subject,
        entities=entities,
        files=tuple(paths),
        acquisition=acquisition,
        bval=bval,
        bvec=bvec,
        metadata=tuple((field, value) for field, value in shown if isinstance(value, (str, int, float))),
        complement=completed,
        shape=shape,
    )


def _gradient_file(root: Path, path: str, suffix: str, extension: str) -> str | None:
    """Return the gradient file that applies to an image by BIDS' inheritance principle, None if there is none.

    It is in the folder of the image or above it, and its name has no entity that the image's name lacks. The nearest
    one applies; within a folder, the one with most entities. InputError if two have as many.
    """
    image = labels_of(path).items()
    for folder in Path(path).parents:
        # Hidden files are none of the data set, such as the resource files (._*) that macOS leaves on other disks.
        found = [name for name in sorted(folder.glob(f"*{suffix}{extension}")) if not name.name.startswith(".")]
        names = [name for name in found if labels_of(name).items() <= image]
        n_labels = max((len(labels_of(name)) for name in names), default=0)
        best = [name for name in names if len(labels_of(name)) == n_labels]
        if len(best) > 1:
            raise InputError(
                f"{path} needs one {extension} file, but {best[0]} and {best[1].name} apply to it alike; remove one."
            )
        if best:
            return str(best[0])
        if folder == root:
            break
    return None
