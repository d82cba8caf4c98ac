"""From a T1w to the files of its motion score, with weights that were never trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.heads import made_up_head

from qmri_bidsapp.bids.embeddings import graded_images, read_grades
from qmri_bidsapp.bids.record import MotionScoreRecord, SubjectRecord
from qmri_bidsapp.bids.record_files import gather_record, step_file, write_record
from qmri_bidsapp.bids.scans_table import write_scans
from qmri_bidsapp.errors import InputMissingError, UsageError, WeightsError
from qmri_bidsapp.group.motion_correction import scan_scores
from qmri_bidsapp.group.motion_scores import group_scores
from qmri_bidsapp.interfaces.derivatives import SaveMotionScore
from qmri_bidsapp.interfaces.motion_score import ScoreMotion
from qmri_bidsapp.motion.familiarity import Familiarity
from qmri_bidsapp.motion.network import SFCN, Architecture
from qmri_bidsapp.motion.qc_head import QualityHead
from qmri_bidsapp.motion.scorer import MotionScorer, save_scorer


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights") / "motion"
    familiarity = Familiarity.learn(torch.randn(60, 24), list(range(60)))
    save_scorer(folder, SFCN(Architecture(channels=(8, 8, 8, 8, 8, 8))), familiarity, torch.rand(1, 14, 17, 14), {})
    return folder


@pytest.fixture(scope="module")
def head_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    volume, affine = made_up_head()
    path = tmp_path_factory.mktemp("t1w") / "t1w.nii"
    # Left first, as files of FSL are.
    nib.save(nib.Nifti1Image(volume.numpy()[::-1], affine @ np.diag([-1.0, 1, 1, 1])), path)
    return path


def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Path, weights: Path, **inputs: str) -> dict:
    monkeypatch.chdir(tmp_path)
    digest = MotionScorer.load(weights).sha256
    node = ScoreMotion(in_file=str(image), weights=str(weights), sha256=digest, **inputs)
    return node.run().outputs.found


def save(tmp_path: Path, found: dict, subject: str = "01") -> MotionScoreRecord:
    stem = f"sub-{subject}/ses-a/{{}}/sub-{subject}_ses-a_desc-{{}}_T1w."
    image, distribution = stem.format("anat", "preproc") + "nii.gz", stem.format("motion", "motion") + "json"
    record = MotionScoreRecord("ses-a T1w", image, distribution)
    folder, sidecar = tmp_path / "records", {"WeightsSHA256": "abc"}
    file = str(step_file(folder, "motion_scores", "0"))
    SaveMotionScore(found=found, record=record, record_file=file, out_dir=str(tmp_path / "out"), sidecar=sidecar).run()
    return gather_record(folder, subject, "0", (), ()).motion_scores[0]


def test_a_score_reaches_scans_and_the_group(tmp_path, monkeypatch, head_file, weights):
    found = score(tmp_path, monkeypatch, head_file, weights)
    record = save(tmp_path, found)
    content = json.loads((tmp_path / "out" / record.distribution).read_text())
    assert sum(content["Probability"]) == pytest.approx(1, abs=1e-5)
    assert content["MotionScore"] == pytest.approx(np.dot(content["BinCentres"], content["Probability"]), abs=1e-4)
    assert content["WeightsSHA256"] == "abc"
    assert len(content["SignalInAir"]["Values"]) == 100
    out = tmp_path / "out"
    assert write_scans(out, [record], {}) == []  # there is no image that a row could name
    image = out / record.image
    image.parent.mkdir(parents=True)
    image.touch()
    name = "sub-01/ses-a/sub-01_ses-a_scans.tsv"
    assert write_scans(out, [record], {"WeightsSHA256": "abc"}) == [name]
    assert json.loads((out / name.replace("tsv", "json")).read_text())["motion_score"]["WeightsSHA256"] == "abc"
    scores, warnings = scan_scores(out)
    assert warnings == []
    assert scores["01", "a"] == pytest.approx(found["mean"], rel=1e-4)
    # Another T1w of the session keeps the row, but not if it was scored with other weights.
    other = MotionScoreRecord("T1w", record.image.replace("_desc", "_run-2_desc"), "", refusal="no head")
    (out / other.image).touch()
    write_scans(out, [other], {"WeightsSHA256": "abc"})
    assert (out / name).read_text().splitlines()[-1].split("\t")[1:] == ["n/a"] * 4
    assert scan_scores(out)[0]["01", "a"] == pytest.approx(found["mean"], rel=1e-4)
    write_scans(out, [replace(record, score=replace(record.score, low=-0.3))], {"WeightsSHA256": "def"})
    assert len((out / name).read_text().splitlines()) == 2
    assert float((out / name).read_text().splitlines()[-1].split("\t")[2]) == 0  # no score is below zero


def test_an_image_that_cannot_be_scored_is_no_failure(tmp_path, monkeypatch, weights):
    path = tmp_path / "flat.nii"
    nib.save(nib.Nifti1Image(np.ones((40, 40, 40), np.float32), np.diag([5.0, 4, 4, 1])), path)
    found = score(tmp_path, monkeypatch, path, weights)
    assert list(found) == ["refusal"]
    record = save(tmp_path, found)
    assert (record.score, record.warnings) == (None, ())
    write_record(SubjectRecord("01", "0", motion_scores=(record,)), tmp_path / "out")
    assert group_scores(tmp_path / "out").refused[0].startswith("sub-01, ses-a T1w: no score: The T1w image is empty")


def test_grades_come_from_the_embedding_and_belong_to_its_weights(tmp_path, monkeypatch, head_file, weights):
    rng = np.random.default_rng(0)
    grades = np.repeat([1.0, 2.0, 3.0], 20)
    head = QualityHead.learn(rng.normal(size=(60, 24)) + grades[:, None], grades)
    digest = MotionScorer.load(weights).sha256
    head.save(tmp_path / "head", digest, {})
    found = score(tmp_path, monkeypatch, head_file, weights, qc_head=str(tmp_path / "head"), qc_head_sha256="x")
    expected = head.predict(np.array([found["embedding"]]))[0]
    assert list(found["grades"]) == ["1", "2", "3"]
    np.testing.assert_allclose(list(found["grades"].values()), expected)
    with pytest.raises(WeightsError, match="embedding"):
        QualityHead.load(tmp_path / "head", "0" * 64)


def test_embeddings_are_joined_with_grades_by_participant_and_session(tmp_path):
    for subject, session, value in (("01", "a", 1.0), ("01", "b", 2.0), ("02", "a", 3.0), ("03", "a", 4.0)):
        folder = tmp_path / f"sub-{subject}" / f"ses-{session}" / "motion"
        folder.mkdir(parents=True)
        content = {"Embedding": [value, 0.0], "WeightsSHA256": "w"}
        (folder / f"sub-{subject}_ses-{session}_desc-motion_T1w.json").write_text(json.dumps(content))
    labels = tmp_path / "labels.tsv"
    labels.write_text(
        "participant_id\tsession_id\tgrade\nsub-01\tses-a\t1\nsub-01\tses-b\t2\n02\ta\t3\n09\ta\t1\n03\ta\tn/a\n"
    )
    found = graded_images([tmp_path], read_grades(labels, "grade"))
    assert found.embeddings[:, 0].tolist() == found.grades.tolist() == [1, 2, 3]
    assert found.subjects == ["01", "01", "02"]
    assert found.motion_sha256 == "w"
    assert "sub-09" in found.notes[0]
    labels.write_text("participant_id\tgrade\n01\t1\n02\t2\n")
    assert graded_images([tmp_path], read_grades(labels, "grade")).grades.tolist() == [1, 1, 2]
    with pytest.raises(InputMissingError, match="No graded T1w"):
        graded_images([tmp_path / "labels.tsv"], {("01", ""): 1.0})
    labels.write_text("participant_id\tgrade\n01\tgood\n")
    with pytest.raises(UsageError, match="grades are numbers"):
        read_grades(labels, "grade")
    with pytest.raises(UsageError, match="no column quality"):
        read_grades(labels, "quality")
