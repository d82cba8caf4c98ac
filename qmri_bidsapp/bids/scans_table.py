"""Motion scores in the output folder: a file with the distribution, and columns of ``scans.tsv``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qmri_bidsapp.bids.derivatives import save_json, save_table
from qmri_bidsapp.bids.record import MotionScoreRecord, MotionScoreValues
from qmri_bidsapp.bids.tables import read_table
from qmri_bidsapp.errors import UsageError

#: Column of ``scans.tsv`` -> field of `MotionScoreValues`.
COLUMNS = {"motion_score": "mean", "motion_score_low": "low", "motion_score_high": "high", "motion_score_p": "p_value"}
_TEXTS = {
    "motion_score": "Estimated mean deviation between successive poses of the head (Jenkinson 1999) during the T1w",
    "motion_score_low": "Lower limit of the 90 % interval of motion_score",
    "motion_score_high": "Upper limit of the 90 % interval of motion_score",
    "motion_score_p": "Fraction of the training images of the network that are as unusual; if small, do not trust "
    "motion_score",
}
GRADE = "motion_grade_"


def grade_column(grade: str) -> str:
    """Return the column of the probability of a grade, such as 1 or 1.5."""
    return GRADE + grade.replace("-", "minus").replace(".", "p")


def distribution_file(found: Mapping[str, Any], bins: Sequence[float]) -> dict[str, Any]:
    """Return the content of the file of a distribution, from what `ScoreMotion` found."""
    if "refusal" in found:
        return {"Refusal": found["refusal"]}
    content: dict[str, Any] = {
        "Units": "mm",
        "MotionScore": found["mean"],
        "Interval90": [found["low"], found["high"]],
        "UnlikeTrainingP": found["p_value"],
        "Warnings": list(found["warnings"]),
        "BinCentres": list(bins),
        "Probability": list(found["probability"]),
        "SignalInAir": {
            "Description": "Mean signal in the air of each axial slice, inferior to superior; null where not known",
            "Units": "percent of the median of the head",
            "Values": found["air"],
        },
        "Embedding": list(found["embedding"]),
    }
    if "grades" in found:
        content["GradeProbability"] = found["grades"]
    return content


def write_scans(out_dir: Path, entries: Sequence[MotionScoreRecord], about: Mapping[str, Any]) -> list[str]:
    """Write the rows of T1w images into the ``scans.tsv`` of their sessions; rows of others with the same weights stay.

    Parameters
    ----------
    out_dir : Path
    entries : sequence of MotionScoreRecord
        A row is written where the preprocessed T1w exists.
    about : mapping
        Further fields of the description of ``motion_score``.

    Returns
    -------
    list of str
        Files written, relative to the output folder.
    """
    written = []
    files: dict[str, list[MotionScoreRecord]] = {}
    for entry in entries:
        folders = Path(entry.image).parts[:-2]
        files.setdefault(f"{'/'.join(folders)}/{'_'.join(folders)}_scans.tsv", []).append(entry)
    for name, own in files.items():
        sidecar = name.replace(".tsv", ".json")
        earlier = _read(out_dir / name) if _weights(out_dir / sidecar) == about.get("WeightsSHA256") else []
        rows = {row["filename"]: row for row in earlier}
        for entry in own:
            image = "/".join(Path(entry.image).parts[-2:])
            rows.pop(image, None)
            if (out_dir / entry.image).is_file():
                rows[image] = {"filename": image, **_numbers(entry.score)}
        columns = list(dict.fromkeys(["filename", *COLUMNS, *(column for row in rows.values() for column in row)]))
        if not rows:
            for path in (name, sidecar):
                (out_dir / path).unlink(missing_ok=True)
            continue
        ordered = [rows[image] for image in sorted(rows)]
        save_table(ordered, out_dir, name, columns)
        save_json(_descriptions(columns, about), out_dir, sidecar)
        written.append(name)
    return written


def _numbers(score: MotionScoreValues | None) -> dict[str, float | None]:
    if score is None:
        return dict.fromkeys(COLUMNS)
    found = {column: getattr(score, name) for column, name in COLUMNS.items()}
    # The lowest bins lie below 0, where no score can be.
    numbers = {column: None if value is None else max(0.0, value) for column, value in found.items()}
    return numbers | {grade_column(grade): value for grade, value in score.grades.items()}


def _descriptions(columns: Sequence[str], about: Mapping[str, Any]) -> dict[str, Any]:
    texts: dict[str, Any] = {"filename": {"Description": "Preprocessed T1w"}}
    for column in columns[1:]:
        if column in _TEXTS:
            units = {} if column == "motion_score_p" else {"Units": "mm"}
            texts[column] = {"Description": _TEXTS[column], **units, **(about if column == "motion_score" else {})}
        elif column.startswith(GRADE):
            grade = column.removeprefix(GRADE).replace("minus", "-").replace("p", ".")
            texts[column] = {"Description": f"Probability of grade {grade} by the head trained on the lab's own grades"}
    return texts


def _weights(path: Path) -> str | None:
    """Return the SHA-256 of the weights that the rows beside this description come from."""
    if not path.is_file():
        return None
    try:
        found: str | None = json.loads(path.read_text(encoding="utf-8"))["motion_score"]["WeightsSHA256"]
    except (ValueError, KeyError, TypeError):
        return None
    return found


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an earlier run."""
    if not path.is_file():
        return []
    try:
        table = read_table(path)
    except UsageError:
        # As with a damaged description: the rows are made again with their images.
        return []
    if "filename" not in table:
        return []
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [
        {str(name): word for name, word in row.items()}
        for row in rows
        if row["filename"] and (path.parent / row["filename"]).is_file()
    ]
