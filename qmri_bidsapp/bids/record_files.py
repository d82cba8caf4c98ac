"""The file of a participant's record, ``logs/sub-<label>.json``: one writer, one reader.

Each saving step writes its own part into the work folder; the end of a run gathers the parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from qmri_bidsapp import formats
from qmri_bidsapp.bids.derivatives import json_text, save_json, save_text
from qmri_bidsapp.bids.record import (
    FitRecord,
    MotionScoreRecord,
    OrientationRecord,
    ProblemRecord,
    SeriesRecord,
    SubjectRecord,
    TruthRecord,
)
from qmri_bidsapp.bids.usable_record import UsableRecord
from qmri_bidsapp.errors import InputMissingError

T = TypeVar("T")
#: Field of `SubjectRecord` -> type of its parts, each of which one step writes.
STEPS: dict[str, type[Any]] = {
    "series": SeriesRecord,
    "orientations": OrientationRecord,
    "fits": FitRecord,
    "truths": TruthRecord,
    "usables": UsableRecord,
    "motion_scores": MotionScoreRecord,
}


def record_file(out_dir: Path, subject: str) -> Path:
    """Return the path of the record of a participant."""
    return out_dir / "logs" / f"sub-{subject}.json"


def record_files(out_dir: Path, subjects: Sequence[str] = ()) -> list[Path]:
    """Return the records in an output folder, sorted; of these participants, or of all."""
    found = sorted((out_dir / "logs").glob("sub-*.json"))
    return [path for path in found if not subjects or path.stem.removeprefix("sub-") in subjects]


def step_file(folder: Path, part: str, step: str) -> Path:
    """Return the file of one step; `part` is a key of `STEPS`, `step` distinguishes the steps of a part."""
    if part not in STEPS:
        raise ValueError(f"Parts of a record are {', '.join(STEPS)}; got {part!r}.")
    return folder / f"{part}-{step}.json"


def write_step(entry: Any, path: str | Path) -> str:
    """Write the part of the record that one step made, and return its path."""
    save_text(json_text(asdict(entry)), Path(path).parent, Path(path).name)
    return str(path)


def gather_record(
    folder: Path, subject: str, version: str, problems: Iterable[ProblemRecord], notes: Iterable[str]
) -> SubjectRecord:
    """Join the parts that the steps of a participant left in a folder."""
    parts: dict[str, Any] = {
        part: tuple(_parse(kind, path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{part}-*.json")))
        for part, kind in STEPS.items()
    }
    return SubjectRecord(subject, version, **parts, problems=tuple(problems), notes=tuple(notes))


def write_record(record: SubjectRecord, out_dir: Path) -> str:
    """Write the record of a participant, and return its path relative to the output folder."""
    name = record_file(out_dir, record.subject).relative_to(out_dir)
    return save_json({"format": record.format, **asdict(record)}, out_dir, name.as_posix())


def read_record(path: Path) -> SubjectRecord:
    """Read the record of a participant.

    Raises
    ------
    InputMissingError
        If there is none, it is damaged, or it has another format; the message names the file and the remedy.
    """
    remedy = f"run participant {path.stem} again"
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
    except FileNotFoundError as error:
        raise InputMissingError(f"{path} does not exist: run the participant level for {path.stem} first.") from error
    except (OSError, ValueError) as error:
        raise InputMissingError(f"{path} cannot be read ({type(error).__name__}: {error}): {remedy}.") from error
    found = data.get("format", 1) if isinstance(data, dict) else None
    if found != formats.RECORD:
        what = f"the record of a participant in format {formats.RECORD}"
        got = "no record" if found is None else f"format {found} of version {data.get('version', 'unknown')}"
        raise InputMissingError(f"{path}: need {what}, got {got}: {remedy}.")
    try:
        record = _parse(SubjectRecord, text)
    except ValueError as error:
        raise InputMissingError(f"{path} cannot be used ({_cause(error)}): {remedy}.") from error
    known = {item.name for item in record.series}
    if unknown := {fit.series for fit in record.fits} - known:
        raise InputMissingError(f"{path} cannot be used (a fit of {min(unknown)}, no such series): {remedy}.")
    return record


def _parse(kind: type[T], text: str) -> T:
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_json(text)


def _cause(error: ValueError) -> str:
    """Return the first finding of pydantic in one line."""
    first: list[dict[str, Any]] = getattr(error, "errors", list)()[:1]
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in first) or str(error)
