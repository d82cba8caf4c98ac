"""The record of a participant survives its file; what is damaged or of another version is refused with the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qmri_bidsapp import formats
from qmri_bidsapp.bids.record import (
    FitRecord,
    MapRecord,
    MotionScoreRecord,
    MotionScoreValues,
    OrientationRecord,
    ProblemRecord,
    SeriesRecord,
    SubjectRecord,
    TruthMaps,
    TruthRecord,
)
from qmri_bidsapp.bids.record_files import gather_record, read_record, record_file, step_file, write_record, write_step
from qmri_bidsapp.bids.usable_record import UsableRecord
from qmri_bidsapp.core.acquisition import Diffusion, MultiEcho
from qmri_bidsapp.errors import InputMissingError

T1W = SeriesRecord("T1w", "T1w", {}, ("sub-01/anat/sub-01_T1w.nii.gz",), preproc="p.nii.gz", mask="m.nii.gz")
MESE = SeriesRecord(
    "ses-1_MESE",
    "MESE",
    {"ses": "1"},
    ("a.nii.gz", "b.nii.gz"),
    {"type": "MultiEcho", "echo_time": [0.01, 0.05]},
    metadata={"MagneticFieldStrength": 3, "Manufacturer": "Größe"},
    covariates={"b1": "b1.nii.gz"},
    notes=("Alignment left out.",),
    head_motion=((0.0, 0.01, 0, 1, 0.5, 0), (0, 0, 0, 0, 0, 0)),
)
T2 = MapRecord("t2", "T2", "s", (0.0, 0.2), "t2.nii.gz", "std.nii.gz", "low.nii.gz", "high.nii.gz")
S0 = MapRecord("s0", "S0", "arbitrary", None, "s0.nii.gz", "s0std.nii.gz", "s0low.nii.gz", "s0high.nii.gz")
FIT = FitRecord(
    *("ses-1_MESE", "MESE", "t2", "T2", "Somebody 2010", "grid", "Grid", "posterior", "status.nii.gz"),
    maps=(T2, S0),
    log_evidence="evidence.nii.gz",
    status_counts={"OK": 10, "FAILED": 1},
    seconds=1.25,
    training={"EstimatorTraining": {"n": 3}},
)
TRUTH = TruthRecord(
    *("ses-1_MESE", "t2", "grid", "logs/certificates/x.json"),
    maps=(TruthMaps("s0", "b0", "l0", "h0", "d0"), TruthMaps("t2", "b2", "l2", "h2", "d2")),
    trust="trust.nii.gz",
    flag="flag.nii.gz",
    p_value="p.nii.gz",
    counts={"WIDE": 3},
    wide_counts={"t2": 3},
    flag_counts={"MISFIT": 1},
    noise_factor=0.5,
)
USABLE = UsableRecord("ses-1_MESE", "t2", "grid", "usable.nii.gz", 12, 9, 3)
SCORES = (
    MotionScoreRecord("T1w", "i", "d", "w", "sha", score=MotionScoreValues(1.0, 0.5, 1.5, None, {"1": 0.25})),
    MotionScoreRecord("run-2_T1w", "i2", "d2", refusal="Empty.", warnings=("Odd.",)),
)
RECORD = SubjectRecord(
    "01",
    "1.2",
    series=(T1W, MESE),
    orientations=(OrientationRecord("dwi", "n.nii.gz", "v.nii.gz", ("Few.",)),),
    fits=(FIT,),
    truths=(TRUTH,),
    usables=(USABLE,),
    motion_scores=SCORES,
    problems=(ProblemRecord("x needs EchoTime", "MESE", "x"), ProblemRecord("Fine.", severity="note")),
    notes=("dwi was left out.",),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert write_record(RECORD, tmp_path) == "logs/sub-01.json"
    assert read_record(record_file(tmp_path, "01")) == RECORD
    assert next(iter(json.loads((tmp_path / "logs" / "sub-01.json").read_text()).items())) == ("format", formats.RECORD)


def test_steps_are_gathered(tmp_path: Path) -> None:
    for part in ("series", "orientations", "fits", "truths", "usables", "motion_scores"):
        for number, entry in enumerate(getattr(RECORD, part)):
            write_step(entry, step_file(tmp_path, part, f"{number}"))
    assert gather_record(tmp_path, "01", "1.2", RECORD.problems, RECORD.notes) == RECORD
    assert gather_record(tmp_path / "none", "02", "1.2", (), ()) == SubjectRecord("02", "1.2")
    with pytest.raises(ValueError, match="got 'motion'"):
        step_file(tmp_path, "motion", "0")


def test_parts_find_each_other() -> None:
    assert RECORD.series_of(FIT) is MESE
    assert RECORD.truth_of(FIT) is TRUTH
    assert SubjectRecord("01", "1", fits=(FIT,)).truth_of(FIT) is None
    assert RECORD.usable_of(FIT) is USABLE
    assert (USABLE.part_usable, USABLE.part_unlike) == (0.75, 0.25)
    assert SubjectRecord("01", "1", fits=(FIT,)).usable_of(FIT) is None
    assert T1W.acquisition is None
    assert MESE.acquisition == MultiEcho((0.01, 0.05))


def test_protocols_survive_the_file(tmp_path: Path) -> None:
    protocol = Diffusion(b_value=(0.0, 1000.0), direction=((0.0, 0.0, 0.0), (1.0, 0.0, 0.0)), small_delta=0.01)
    series = SeriesRecord("dwi", "dwi", {}, ("dwi.nii.gz",), protocol.to_dict())
    write_record(SubjectRecord("01", "1", series=(series,)), tmp_path)
    assert read_record(record_file(tmp_path, "01")).series[0].acquisition == protocol


def test_files_come_in_the_order_in_which_nodes_make_them() -> None:
    assert FIT.posterior_files == ("low.nii.gz", "s0low.nii.gz", "high.nii.gz", "s0high.nii.gz", "evidence.nii.gz")
    assert [file for *_, file in TRUTH.map_files()] == ["b0", "b2", "l0", "l2", "h0", "h2", "d0", "d2"]
    assert TRUTH.map_files()[-1] == ("debiased", "t2", "d2")
    assert TRUTH.files[-3:] == ("trust.nii.gz", "flag.nii.gz", "p.nii.gz")
    assert TruthRecord("x", "t2", "nlls").files == ()


OLD = {"subject": "01", "version": "0.9", "series": [], "fits": [], "problems": [], "notes": [], "motion": []}


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (json.dumps(OLD), rf"need the record of a participant in format {formats.RECORD}, got format 1 of version 0.9"),
        (json.dumps({**OLD, "format": formats.RECORD + 1}), rf"got format {formats.RECORD + 1}"),
        ("[]", "got no record"),
        ("{", "cannot be read"),
        (json.dumps({"format": formats.RECORD, "subject": "01"}), "version: Field required"),
        (
            json.dumps({"format": formats.RECORD, "subject": "01", "version": "1", "fits": [{}]}),
            r"fits\.0\.series: Field",
        ),
    ],
    ids=["older", "newer", "list", "truncated", "no version", "empty fit"],
)
def test_other_versions_and_damage_are_refused(tmp_path: Path, text: str, cause: str) -> None:
    path = record_file(tmp_path, "01")
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(InputMissingError, match=cause) as error:
        read_record(path)
    assert str(error.value).startswith(str(path))
    assert str(error.value).endswith("run participant sub-01 again.")


def test_a_fit_of_no_series_is_refused(tmp_path: Path) -> None:
    write_record(SubjectRecord("01", "1", series=(T1W,), fits=(FIT,)), tmp_path)
    with pytest.raises(InputMissingError, match=r"a fit of ses-1_MESE, no such series.*run participant sub-01 again"):
        read_record(record_file(tmp_path, "01"))


def test_a_participant_that_was_never_run(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="run the participant level for sub-07 first"):
        read_record(record_file(tmp_path, "07"))
