"""What reports say of motion scores, of one participant and of a group."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.bids.derivatives import save_json
from qmri_bidsapp.bids.record import MotionScoreRecord, MotionScoreValues, SubjectRecord
from qmri_bidsapp.bids.record_files import write_record
from qmri_bidsapp.bids.scans_table import distribution_file
from qmri_bidsapp.group.motion_scores import group_scores
from qmri_bidsapp.group.report import write_group_report
from qmri_bidsapp.motion.scorer import MotionScore
from qmri_bidsapp.reports.assembler import build_subject_report
from qmri_bidsapp.reports.motion_score import sentence
from qmri_bidsapp.reports.motion_score_figures import most_affected


def entry(mean: float = 0.3, warnings: tuple[str, ...] = (), grades: dict[str, float] | None = None):
    score = MotionScoreValues(mean, mean - 0.4, mean + 0.4, 0.4, grades or {})
    image, distribution = "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz", "sub-01/motion/sub-01_desc-motion_T1w.json"
    return MotionScoreRecord("T1w", image, distribution, score=score, warnings=warnings)


def refused(name: str, refusal: str) -> MotionScoreRecord:
    return MotionScoreRecord(name, "", "", refusal=refusal)


def write(out: Path, motion_scores: list[MotionScoreRecord], subject: str = "01") -> None:
    write_record(SubjectRecord(subject, "0", motion_scores=tuple(motion_scores)), out)


def save_images(out: Path, item: MotionScoreRecord, air: np.ndarray) -> None:
    found = {"probability": np.full(50, 0.02), "embedding": [0.0], "air": air.tolist(), "warnings": item.warnings}
    found |= {"mean": item.score.mean, "low": item.score.low, "high": item.score.high, "p_value": item.score.p_value}
    save_json(distribution_file(found, MotionScore.bins()), out, item.distribution)
    path = out / item.image
    path.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((20, 24, len(air)), np.float32), np.eye(4)), path)


def test_page_of_a_participant(tmp_path):
    air = np.full(40, 2.0)
    air[:5], air[20] = np.nan, 9.0
    item = entry(
        2.4, warnings=("The image is unlike those that the network was trained on.",), grades={"1": 0.2, "2": 0.8}
    )
    save_images(tmp_path, item, air)
    write(tmp_path, [item, refused("run-2 T1w", "Nothing is to be seen inside.")])
    page = build_subject_report(tmp_path, "01", None).read_text()
    assert "moved by 2.4 mm on average" in page
    assert "between 2.0 and 2.8 mm" in page
    # In the section and in the summary.
    assert page.count("unlike those that the network was trained on") == 2
    assert page.count("Nothing is to be seen inside") == 2
    assert "No slice stands out" not in page
    assert "0.80" in page
    for name in ("T1wscore", "T1wdistribution", "T1wair"):
        assert list((tmp_path / "sub-01" / "figures").glob(f"*desc-{name}_*")), name


def test_page_without_air_and_without_file(tmp_path):
    item = entry()
    save_images(tmp_path, item, np.full(40, np.nan))
    write(tmp_path, [item])
    assert "the air beside the head was blanked" in build_subject_report(tmp_path, "01", None).read_text()
    (tmp_path / item.distribution).unlink()
    assert "is not in the output folder" in build_subject_report(tmp_path, "01", None).read_text()


@pytest.mark.parametrize(
    ("mean", "width", "words"),
    [
        (-0.1, 0.4, "hardly any motion"),
        (0.7, 0.4, "little"),
        (1.5, 0.4, "clear"),
        (3, 0.4, "strong"),
        (3, 1.5, "uncertain"),
    ],
    ids=["still", "little", "clear", "strong", "open"],
)
def test_words_for_scores(mean, width, words):
    text = sentence(MotionScoreValues(mean, mean - width, mean + width))
    assert words in text
    assert "-" not in text


def test_a_score_of_an_image_unlike_the_training_is_not_put_in_words_of_motion():
    known, strange = (sentence(MotionScoreValues(3.0, 2.6, 3.4, p)) for p in (0.011, 0.009))
    assert "strong motion" in known
    assert "strong motion" not in strange
    assert "says nothing" in strange


def test_most_affected_slices_are_apart():
    air = np.full(60, 1.0)
    air[30:34], air[10], air[50] = [8, 9, 8, 7], 5, np.nan
    found = most_affected(air)
    assert {10, 31} <= set(found)
    assert len(found) == 3
    assert min(np.diff(found)) >= 3
    assert most_affected(np.full(10, np.nan)) == []


def test_group_names_who_stands_out_by_the_rule(tmp_path):
    scores = [0.30, 0.32, 0.28, 0.31, 0.29, 0.33, 0.70, 0.64, 0.05]
    for number, score in enumerate(scores):
        write(tmp_path, [entry(score)], f"{number:02d}")
    write(tmp_path, [entry(0.3, warnings=("Odd.",))], "10")
    write(tmp_path, [refused("T1w", "4D.")], "11")
    found = group_scores(tmp_path)
    # Nearly all are alike: deviations count as 0.1 mm at least, and 0.64 is not 3.5 of them above 0.305. Nor is 0.05.
    assert [text.split(",")[0] for text in found.outliers] == ["sub-06"]
    assert found.doubts == ("sub-10, T1w (0.30 mm): Odd.",)
    assert found.refused == ("sub-11, T1w: no score: 4D.",)
    page = write_group_report(tmp_path, [], []).read_text()
    assert "sub-06, T1w: 0.70 mm is" in page
    assert "Odd." in page
    assert group_scores(tmp_path, ["06", "07"]).outliers == ()


def test_group_without_scores(tmp_path):
    write(tmp_path, [])
    assert "No T1w has a motion score" in write_group_report(tmp_path, [], []).read_text()
