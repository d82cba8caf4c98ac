"""Which images of a data set are used: labels of the command line, and filters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.bids.epi import FMAPS
from qmri_bidsapp.bids.files import is_label
from qmri_bidsapp.bids.kinds import FIELDMAP, load_kinds, suffixes
from qmri_bidsapp.errors import InputError, UsageError

if TYPE_CHECKING:
    from bids import BIDSLayout
    from bids.layout import BIDSFile

    from qmri_bidsapp.bids.inheritance import InheritedFiles

IMAGES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Selection:
    """Labels and filters that choose among the images of a participant.

    Attributes
    ----------
    sessions, runs : tuple of str
        Labels without the key; empty for all. Runs are compared as numbers.
    filters : mapping
        Suffix in lower case -> pybids query. Keys in lower case are entities, others sidecar fields.

    Raises
    ------
    UsageError
        If a filter names an unknown kind.
    """

    sessions: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    filters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = sorted(kind.lower() for kind in (*load_kinds(), FIELDMAP, *FMAPS))
        unknown = sorted(set(self.filters) - set(known))
        if unknown:
            raise UsageError(f"The filter file names {', '.join(unknown)}; known: {', '.join(known)}.")

    def images(
        self, layout: BIDSLayout, inherited: InheritedFiles, subject: str, suffix: str, *, by_labels: bool = True
    ) -> list[BIDSFile]:
        """Return the images of a suffix that are chosen, sorted by path.

        Parameters
        ----------
        layout : BIDSLayout
        inherited : InheritedFiles
            Sidecars, for filters by their fields. An image whose sidecars cannot be read is kept: it is reported with
            its series.
        subject, suffix : str
        by_labels : bool
            Whether sessions and runs are among the conditions.

        Raises
        ------
        UsageError
            If a filter names an unknown entity.
        """
        query = self.filters.get(suffix.lower(), {})
        entities = {name: value for name, value in query.items() if not name[:1].isupper()}
        wanted = {name: value for name, value in query.items() if name not in entities}
        conditions = {"suffix": suffix, "extension": list(IMAGES), "scope": "raw", **entities, "subject": subject}
        try:
            files = layout.get(**conditions)
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"pybids does not understand the filter {dict(query)} of {suffix.lower()} "
                f"({str(error).splitlines()[0]}); it takes long names, such as acquisition for acq."
            ) from error
        found = _of_subject(layout, subject, files)
        if by_labels:
            found = [item for item in found if self._has_labels(item)]
        is_regex = bool(query.get("regex_search"))
        return [item for item in found if _has_fields(inherited, item.path, wanted, is_regex=is_regex)]

    def _has_labels(self, item: BIDSFile) -> bool:
        if self.sessions and item.entities.get("session") not in self.sessions:
            return False
        run = item.entities.get("run")
        return not self.runs or (run is not None and int(run) in {int(label) for label in self.runs})

    def why_nothing(self, layout: BIDSLayout, subject: str) -> str:
        """Return why there is no image to work on for a participant."""
        if not is_label(subject):
            return (
                f"sub-{subject} is no name of BIDS: a label holds letters and digits only. Rename the folder and its "
                f"files, for example to sub-{re.sub('[^0-9A-Za-z]', '', subject)}."
            )
        files = _of_subject(layout, subject, layout.get(subject=subject, extension=list(IMAGES), scope="raw"))
        usable = [item for item in files if item.entities.get("suffix") in load_kinds()]
        if usable:
            return (
                f"sub-{subject} has {_listed(usable)}, but none with {' and '.join(self._conditions())}; it has "
                f"{_labels(usable, 'session')} and {_labels(usable, 'run')}."
            )
        others = f"its images are {_listed(files)}" if files else "it has no images"
        return f"sub-{subject} has no {' or '.join(suffixes().rsplit(', ', 1))} to work on: {others}."

    def _conditions(self) -> list[str]:
        """Return the options that are given, as they are written."""
        labels = (("--session-label", self.sessions), ("--run-label", self.runs))
        found = [f"{option} {' '.join(values)}" for option, values in labels if values]
        return [*found, *(["the filters of --bids-filter-file"] if self.filters else [])]


def _of_subject(layout: BIDSLayout, subject: str, files: Sequence[BIDSFile]) -> list[BIDSFile]:
    """Return the files below the participant's folder: pybids also finds copies, such as the output of a run."""
    own = Path(layout.root) / f"sub-{subject}"
    return sorted((item for item in files if own in Path(item.path).parents), key=lambda item: item.path)


def _has_fields(inherited: InheritedFiles, path: str, wanted: Mapping[str, Any], *, is_regex: bool) -> bool:
    """Return whether the sidecars of an image have these values: one of several in a list, None for no such field."""
    if not wanted:
        return True
    try:
        sidecar = inherited.metadata(path)
    except InputError:
        return True

    def has(name: str, value: Any) -> bool:
        if is_regex and value is not None:
            return name in sidecar and re.search(str(value), str(sidecar[name])) is not None
        return bool(sidecar.get(name) == value)

    return all(
        any(has(name, value) for value in (values if isinstance(values, list) else [values]))
        for name, values in wanted.items()
    )


def _listed(files: Sequence[BIDSFile]) -> str:
    """Return the suffixes of images and their numbers."""
    counts = Counter(str(item.entities.get("suffix")) for item in files)
    return ", ".join(f"{suffix} ({count})" for suffix, count in sorted(counts.items()))


def _labels(files: Sequence[BIDSFile], entity: str) -> str:
    """Return the labels that images have of an entity."""
    labels = sorted({str(item.entities[entity]) for item in files if entity in item.entities})
    return f"{entity} {', '.join(labels)}" if labels else f"no {entity}-"
