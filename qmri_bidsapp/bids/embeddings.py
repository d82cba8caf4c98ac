"""Embeddings that earlier runs left beside the motion scores, with a lab's grades of the same images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.bids.tables import PARTICIPANT, read_table
from qmri_bidsapp.errors import InputMissingError, UsageError

SESSION = "session_id"


@dataclass(frozen=True, eq=False)
class GradedImages:
    """Images with a grade and an embedding.

    Attributes
    ----------
    embeddings : ndarray
        (n, feature).
    grades : ndarray
        (n,).
    subjects : list of str
        (n,).
    motion_sha256 : str
        Of the weights that the embeddings come from.
    notes : list of str
        Participants that were left out.
    """

    embeddings: npt.NDArray[np.float64]
    grades: npt.NDArray[np.float64]
    subjects: list[str]
    motion_sha256: str
    notes: list[str]


def read_grades(path: Path, column: str) -> dict[tuple[str, str], float]:
    """Return (participant, session) -> grade of a table; the session is empty where there is no such column.

    Raises
    ------
    InputMissingError
        If the table cannot be read.
    UsageError
        If a column is absent, a grade is no number, or a participant has two.
    """
    table = read_table(path, "--labels")
    absent = [name for name in (PARTICIPANT, column) if name not in table]
    if absent:
        raise UsageError(
            f"--labels {path} has no column {' and '.join(absent)}; it has {', '.join(map(str, table.columns))}."
        )
    table = table[table[column].notna()]
    if table[PARTICIPANT].isna().any():
        raise UsageError(f"--labels {path} has no {PARTICIPANT} in row {table[PARTICIPANT].isna().idxmax()}.")
    sessions = table[SESSION].fillna("") if SESSION in table else [""] * len(table)
    grades: dict[tuple[str, str], float] = {}
    for participant, session, text in zip(table[PARTICIPANT], sessions, table[column], strict=True):
        key = (participant.removeprefix("sub-"), session.removeprefix("ses-"))
        try:
            grade = float(text)
        except ValueError:
            grade = float("nan")
        if not np.isfinite(grade):
            raise UsageError(f"{path}: grades are numbers, from best to worst or the other way; got {text!r}.")
        if grades.setdefault(key, grade) != grade:
            raise UsageError(f"{path}: {' '.join(filter(None, key))} has two grades, {grades[key]:g} and {grade:g}.")
    return grades


def graded_images(folders: Sequence[Path], grades: dict[tuple[str, str], float]) -> GradedImages:
    """Join grades with the embeddings in output folders of ``qmri-bids``.

    A grade without a session is that of all images of a participant.

    Raises
    ------
    InputMissingError
        If no graded image has an embedding.
    UsageError
        If embeddings come from different weights.
    """
    rows: list[tuple[list[float], float, str, str]] = []
    used = set()
    paths = sorted(path for folder in folders for path in Path(folder).rglob("motion/sub-*_desc-motion_T1w.json"))
    for path in paths:
        labels = dict(part.split("-", 1) for part in path.name.split("_") if "-" in part)
        keys = [key for key in ((labels["sub"], labels.get("ses", "")), (labels["sub"], "")) if key in grades]
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            embedding, weights = content.get("Embedding"), content["WeightsSHA256"]
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise InputMissingError(f"{path} cannot be read ({error}): run the participant again.") from error
        if keys and embedding:
            rows.append((embedding, grades[keys[0]], labels["sub"], weights))
            used.add(keys[0])
    if not rows:
        names = ", ".join(map(str, folders))
        raise InputMissingError(
            f"No graded T1w has an embedding in {names} ({len(paths)} motion scores, {len(grades)} grades): run "
            "qmri-bids on the participants of --labels first, with weights of this program (TorchScript gives none)."
        )
    if len({weights for *_, weights in rows}) > 1:
        raise UsageError("The embeddings come from different weights of the motion score: run all participants again.")
    notes = []
    if missing := sorted({f"sub-{subject}" for subject, _ in set(grades) - used}):
        listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        notes.append(f"{len(missing)} graded participants have no embedding and do not count: {listed}.")
    return GradedImages(
        np.array([row[0] for row in rows], dtype=float),
        np.array([row[1] for row in rows]),
        [row[2] for row in rows],
        rows[0][3],
        notes,
    )
