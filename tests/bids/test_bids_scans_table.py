"""Rows of motion scores in ``scans.tsv``."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmri_bidsapp.bids.record import MotionScoreRecord, MotionScoreValues
from qmri_bidsapp.bids.scans_table import write_scans

ABOUT = {"WeightsSHA256": "abc"}


@pytest.fixture
def scored(tmp_path: Path) -> list[MotionScoreRecord]:
    """Two runs of a T1w, whose preprocessed images exist."""
    images = [f"sub-01/anat/sub-01_run-{run}_desc-preproc_T1w.nii.gz" for run in (1, 2)]
    (tmp_path / "sub-01" / "anat").mkdir(parents=True)
    for image in images:
        (tmp_path / image).touch()
    score = MotionScoreValues(1.0, -0.25, 1.5, grades={"1.5": 0.75})
    return [MotionScoreRecord("T1w", image, "", score=score) for image in images]


def rows(out: Path) -> list[list[str]]:
    return [line.split("\t") for line in (out / "sub-01" / "sub-01_scans.tsv").read_text().splitlines()]


def test_rows_of_earlier_runs_stay_as_they_are(tmp_path: Path, scored: list[MotionScoreRecord]) -> None:
    assert write_scans(tmp_path, scored[:1], ABOUT) == ["sub-01/sub-01_scans.tsv"]
    before = rows(tmp_path)
    assert before[0][1:] == [
        *("motion_score", "motion_score_low", "motion_score_high", "motion_score_p", "motion_grade_1p5")
    ]
    assert before[1][1:] == ["1", "0", "1.5", "n/a", "0.75"]
    write_scans(tmp_path, scored[1:], ABOUT)
    assert rows(tmp_path)[:2] == before
    assert len(rows(tmp_path)) == 3


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"name\tx\na\t1\n"], ids=["binary", "empty", "no names"])
def test_a_damaged_table_is_made_again(tmp_path: Path, scored: list[MotionScoreRecord], content: bytes) -> None:
    write_scans(tmp_path, scored[:1], ABOUT)
    (tmp_path / "sub-01" / "sub-01_scans.tsv").write_bytes(content)
    write_scans(tmp_path, scored[1:], ABOUT)
    assert [row[0] for row in rows(tmp_path)[1:]] == ["anat/sub-01_run-2_desc-preproc_T1w.nii.gz"]
