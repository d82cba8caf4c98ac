"""The BIDS App's course: exit codes, one line for every cause, reports and the table at the end."""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
from pathlib import Path

import pytest
from helpers.datasets import write_image, write_sidecar

from qmri_bidsapp.bids.dataset import Issue
from qmri_bidsapp.bids.inputs import InputGroup, Problem, SubjectInputs
from qmri_bidsapp.bids.record import FitRecord, MapRecord, SeriesRecord, SubjectRecord
from qmri_bidsapp.bids.record_files import write_record
from qmri_bidsapp.bids.usable_record import UsableRecord
from qmri_bidsapp.cli.app import run
from qmri_bidsapp.cli.app.environment import CACHES, THREADS
from qmri_bidsapp.cli.exits import exit_code
from qmri_bidsapp.config import Config, read_toml
from qmri_bidsapp.errors import (
    InputError,
    InputMissingError,
    InvalidBIDSError,
    NothingMatchedError,
    OutputError,
    QmriError,
    UnknownLevelError,
    UsageError,
)
from qmri_bidsapp.fitting.clusters import Cluster, Clusters
from qmri_bidsapp.workflows.base import SubjectPlan
from qmri_bidsapp.workflows.execution import RunResult


@pytest.fixture
def with_subject(bids_dir) -> Path:
    """Return a data set whose only series cannot be fitted."""
    folder = bids_dir / "sub-01" / "func"
    folder.mkdir(parents=True)
    (folder / "sub-01_task-rest_bold.nii.gz").touch()
    return bids_dir


@pytest.mark.parametrize(
    ("error", "n_failed", "code"),
    [
        (None, 0, 0),
        (None, 2, 1),
        (InputError("x"), 0, 1),
        (InvalidBIDSError("x"), 0, 16),
        (UnknownLevelError("x"), 0, 17),
        (NothingMatchedError("x"), 0, 18),
        (UsageError("x"), 0, 64),
        (InputMissingError("x"), 0, 66),
        (OutputError("x"), 0, 73),
        (KeyboardInterrupt(), 0, 130),
        (ValueError("x"), 0, 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_exit_code(error, n_failed, code):
    assert exit_code(error, n_failed) == code


@pytest.mark.parametrize(
    ("arguments", "code", "cause"),
    [
        (["{bids}", "{out}", "session"], 17, "participant or group"),
        (["{bids}", "{out}"], 64, "required"),
        (["{bids}", "{out}", "participant", "--nonsense"], 64, "nonsense"),
        (["{bids}", "{out}", "participant", "--nprocs", "0"], 64, "at least 1"),
        (["{bids}", "{out}", "participant", "--device", "tpu"], 64, "--device"),
        (["{bids}", "{out}", "participant", "--run-label", "first"], 64, "takes numbers"),
        (["{bids}", "{out}", "participant", "--device", "cuda:99"], 64, "usable GPUs"),
        (["{bids}", "{out}", "participant", "--models", "t7"], 64, "no model named 't7'"),
        (["{bids}", "{out}", "participant", "--models", "t1", "--estimators", "wls"], 64, "cannot be used"),
        (["{bids}", "{out}", "participant", "--work-dir", "{bids}/work"], 64, "input folder"),
        (["{bids}", "{out}", "participant", "--bids-filter-file", "none.json"], 66, "does not exist"),
        (["{tmp}/none", "{out}", "participant"], 66, "does not exist"),
        (["{tmp}/raw2", "{out}", "participant"], 16, "dataset_description.json"),
        (["{bids}", "{out}", "participant", "--participant-label", "9"], 18, "no sub-9"),
        (["{bids}", "{out}", "participant"], 18, "sub-01 has no T1w"),
        (["{bids}", "{bids}", "participant"], 73, "mix"),
        (["{bids}", "{bids}/dataset_description.json/out", "participant"], 73, "cannot be written"),
        (["{bids}", "{out}", "participant", "-w", "{bids}/../raw2/file/w"], 73, "work folder"),
        (["{bids}", "{out}", "group"], 18, "run the participant level first"),
        (["{bids}", "{out}", "participant", "--reports-only"], 18, "has no record of any participant"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_code_and_cause_in_one_line(arguments, code, cause, with_subject, tmp_path, capsys):
    (tmp_path / "raw2").mkdir()
    (tmp_path / "raw2/file").touch()
    filled = [word.format(bids=with_subject, out=tmp_path / "out", tmp=tmp_path) for word in arguments]
    assert run.main(filled) == code
    error = capsys.readouterr().err
    assert error.startswith("qmri-bids: error: ")
    assert cause in error
    assert len(error.splitlines()) == 1


def test_a_folder_for_temporary_files_that_ants_cannot_use(with_subject, tmp_path, monkeypatch, capsys):
    """It takes names with commas and brackets for lists; blanks are no trouble."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a,b"))
    assert run.main([str(with_subject), str(tmp_path / "out"), "participant"]) == 73
    assert "set TMPDIR" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_absent_input_leaves_nothing_behind(tmp_path):
    assert run.main([str(tmp_path / "none"), "out", "participant"]) == 66
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("plugin: [", "not valid YAML"),
        ("- SLURM", "must contain 'plugin: NAME'"),
        ("plugin: SLURM\nplugin_args: 3", "plugin_args must map"),
    ],
    ids=["syntax", "list", "arguments"],
)
def test_plugin_file_with_an_error(text, cause, with_subject, tmp_path, capsys):
    (tmp_path / "plugin.yml").write_text(text)
    assert run.main([str(with_subject), "out", "participant", "--use-plugin", "plugin.yml"]) == 64
    error = capsys.readouterr().err
    assert cause in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "cause"),
    [("{", "not valid JSON"), ('["dwi"]', "must map kinds"), ('{"bold": {}}', "names bold")],
    ids=["syntax", "list", "kind"],
)
def test_filter_file_with_an_error(text, cause, with_subject, tmp_path, capsys):
    (tmp_path / "filter.json").write_text(text)
    assert run.main([str(with_subject), "out", "participant", "--bids-filter-file", "filter.json"]) == 64
    assert cause in capsys.readouterr().err


def fail_with(monkeypatch, error: BaseException) -> None:
    def raising(config: Config) -> None:
        raise error

    monkeypatch.setattr(run, "_find_and_plan", raising)


def test_unexpected_error_names_the_log(with_subject, monkeypatch, capsys):
    fail_with(monkeypatch, RuntimeError("boom"))
    assert run.main([str(with_subject), "out", "participant"]) == 1
    error = capsys.readouterr().err
    assert "unexpected error: RuntimeError: boom; details in" in error
    assert len(error.splitlines()) == 1
    assert "Traceback" in Path(error.strip().split("details in ")[1]).read_text()


def test_error_of_several_lines_is_said_in_one(with_subject, monkeypatch, capsys):
    fail_with(monkeypatch, QmriError("first\nsecond"))
    assert run.main([str(with_subject), "out", "participant"]) == 1
    assert capsys.readouterr().err == "qmri-bids: error: first second\n"


def test_interruption(with_subject, monkeypatch, capsys):
    fail_with(monkeypatch, KeyboardInterrupt())
    assert run.main([str(with_subject), "out", "participant"]) == 130
    assert "interrupted; finished steps are kept" in capsys.readouterr().err


def test_termination_is_an_interruption(with_subject, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(run, "_find_and_plan", lambda _config: os.kill(os.getpid(), signal.SIGTERM))
    assert run.main([str(with_subject), "out", "participant"]) == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_log_is_closed_and_libraries_are_set_up(with_subject, tmp_path):
    assert run.main([str(with_subject), "out", "participant", "-w", "w", "--omp-nthreads", "3"]) == 18
    assert logging.getLogger("qmri_bidsapp").handlers == []
    for name in CACHES:
        assert Path(os.environ[name]).is_relative_to(tmp_path / "w")
        assert Path(os.environ[name]).is_dir()
    assert {os.environ[name] for name in THREADS} == {"1"}
    assert os.environ["NIPYPE_CONFIG_DIR"] == str(tmp_path / "w" / "nipype")


def test_choices_are_beside_the_log(with_subject, tmp_path):
    run.main([str(with_subject), "out", "participant", "--models", "t1"])
    (dumped,) = (tmp_path / "out/logs").glob("*.toml")
    assert dumped.with_suffix(".log").is_file()
    assert read_toml(dumped)["models"] == ["t1"]


def test_methods_text_alone(bids_dir, tmp_path):
    """It is on what the run would do: of all models, those of the one series."""
    for echo in (1, 2, 3):
        stem = bids_dir / "sub-01" / "anat" / f"sub-01_echo-{echo}_MESE"
        write_image(stem.with_suffix(".nii.gz"))
        write_sidecar(stem.with_suffix(".json"), EchoTime=0.02 * echo)
    options = ["--boilerplate-only", "--skip-bids-validation"]
    assert run.main([str(bids_dir), "out", "participant", *options]) == 0
    assert not list((tmp_path / "out").glob("sub-*"))
    text = (tmp_path / "out/logs/CITATION.md").read_text()
    assert "## References" in text
    assert "[@" not in text
    assert "T2 was estimated from multi-echo spin-echo images" in text
    assert not [word for word in ("T2*", "inversion", "iffusion", "T1-weighted", "ROBEX") if word in text]
    assert (tmp_path / "out/logs/CITATION.html").is_file()


# The whole course, with the steps of other folders replaced.

GROUP = InputGroup(kind="T1w", subject="", entities=(), files=("/raw/x_T1w.nii.gz",))
SERIES = SeriesRecord("IRT1", "IRT1", {}, ("x_IRT1.nii.gz",))
MAP = MapRecord("t1", "T1", "s", None, "t1.nii.gz", "std.nii.gz")
FIT = FitRecord("IRT1", "IRT1", "t1", "T1", "", "nlls", "NLLS", "", "status.nii.gz", (MAP, MAP))


class Scene:
    """Stands for data set, graph and reports; notes what it was asked for."""

    def __init__(self) -> None:
        self.inputs: dict[str, tuple[Problem, ...]] = {}
        self.made: dict[str, bool] = {}
        self.crashes: dict[str, list[str]] = {}
        self.issues: list[Issue] = []
        self.empty: set[str] = set()
        self.usable: dict[str, UsableRecord] = {}
        self.reports: list[tuple[str, Path | None]] = []
        self.broken_report = ""

    def add(self, label: str, *problems: Problem, made: bool = True, crash: str | None = None) -> None:
        self.inputs[label] = problems
        self.made[label] = made
        if crash:
            self.crashes[label] = [crash]

    def plan(self, _config, subjects):
        return tuple(SubjectPlan(item, item.groups, ()) for item in subjects)

    def find_inputs(self, _layout, **_options):
        groups = {label: () if label in self.empty else (GROUP,) for label in self.inputs}
        return tuple(SubjectInputs(label, groups[label], found) for label, found in self.inputs.items())

    def run(self, config, plans, make_progress):
        progress = make_progress({item.subject: 1 for item in plans})
        for item in plans:
            progress.start(item.subject, "step")
            progress.end(item.subject, "step")
            made = self.made[item.subject]
            series, fits = (SERIES,) if made else (), (FIT,) if made and not item.is_empty else ()
            usables = (self.usable[item.subject],) if item.subject in self.usable else ()
            record = SubjectRecord(item.subject, "0", series=series, fits=fits, usables=usables)
            write_record(record, config.derivatives_dir)
        return RunResult(failed=self.crashes)

    def report(self, out_dir, subject, crash_dir):
        self.reports.append((subject, crash_dir))
        if subject == self.broken_report:
            raise ValueError("no figure")
        (out_dir / f"sub-{subject}.html").touch()


@pytest.fixture
def scene(monkeypatch) -> Scene:
    found = Scene()
    monkeypatch.setattr("qmri_bidsapp.bids.dataset.open_layout", lambda *_args, **_options: None)
    monkeypatch.setattr("qmri_bidsapp.bids.dataset.validate", lambda _folder: found.issues)
    monkeypatch.setattr("qmri_bidsapp.bids.queries.find_inputs", found.find_inputs)
    monkeypatch.setattr("qmri_bidsapp.workflows.base.plan", found.plan)
    monkeypatch.setattr("qmri_bidsapp.workflows.execution.run", found.run)
    monkeypatch.setattr("qmri_bidsapp.reports.assembler.build_subject_report", found.report)
    monkeypatch.setattr("qmri_bidsapp.bids.dataset.blocking", blocking_in_used)
    return found


def blocking_in_used(issues, _subjects, _bids_dir):
    return [issue for issue in issues if issue.location == "/used"]


def rows(output: str) -> dict[str, list[str]]:
    """Return outcome, maps and errors per participant of the table at the end."""
    table = output[output.index("where to look") :].splitlines()
    return {line.split()[0]: line.split()[1:4] for line in table if line.startswith("sub-")}


def test_all_well(scene, bids_dir, tmp_path, capsys):
    scene.add("01")
    scene.add("02", Problem("02", "MESE", "", "There is no MESE.", severity="note"))
    assert run.main([str(bids_dir), "out", "participant"]) == 0
    output = capsys.readouterr().out
    assert output.index("Found series") < output.index("step") < output.index("where to look")
    assert rows(output) == {"sub-01": ["done", "2", "0"], "sub-02": ["done", "2", "0"]}
    assert "There is no MESE." in output[output.index("where to look") :]
    assert str(tmp_path / "out/sub-01.html") in output
    assert [subject for subject, _ in scene.reports] == ["01", "02"]
    assert output.index("sub-01: report 1 of 2") < output.index("sub-02: report 2 of 2") < output.index("where to look")
    assert json.loads((tmp_path / "out/dataset_description.json").read_text())["DatasetType"] == "derivative"
    assert (tmp_path / "out/logs/CITATION.md").is_file()


def test_the_end_says_what_is_usable_and_never_only_that_there_were_no_errors(scene, bids_dir, capsys):
    cluster = Cluster(32, (28.0, 40.0, 0.0), (16.0, 16.0, 8.0), "right, anterior")
    counts = {"01": (930, 50, Clusters((cluster,), 5)), "02": (0, 1000, Clusters())}
    for label, (usable, unlike, clusters) in counts.items():
        scene.add(label)
        scene.usable[label] = UsableRecord("IRT1", "t1", "nlls", "m.nii.gz", 1000, usable, unlike, clusters)
    assert run.main([str(bids_dir), "out", "participant"]) == 0
    printed = capsys.readouterr()
    end = printed.out[printed.out.index("where to look") :] + printed.err
    suspect = {line.split()[0]: line.split()[4] for line in end.splitlines() if line.startswith("sub-")}
    assert suspect == {"sub-01": "0", "sub-02": "1"}
    shares = next(line for line in end.splitlines() if line.startswith("IRT1 t1 (nlls)"))
    assert " ".join(shares.split()[3:]) == "0.0 to 93.0 % 5.0 to 100.0 %"
    assert "sub-02, IRT1 t1 (nlls): 100% of the voxels are unlike all simulated ones" in end
    assert "sub-01, IRT1 t1 (nlls): largest flagged cluster: 32 voxels around (28, 40, 0) mm" in end


def test_without_a_certificate_nothing_is_said_of_unlike_voxels(scene, bids_dir, capsys):
    scene.add("01")
    scene.usable["01"] = UsableRecord("IRT1", "t1", "nlls", "m.nii.gz", 1000, 400)
    assert run.main([str(bids_dir), "out", "participant"]) == 0
    printed = capsys.readouterr()
    shares = next(line for line in printed.out.splitlines() if line.startswith("IRT1 t1 (nlls)"))
    assert shares.split()[-3:] == ["40.0", "%", "n/a"]
    assert "only 40% of the voxels are usable" in printed.out + printed.err


def test_one_crash_fails_alone(scene, bids_dir, tmp_path, capsys):
    crash = tmp_path / "crash-1.txt"
    crash.write_text("Node: x\nTraceback (most recent call last):\nInputError: it is all zero\n")
    scene.add("01", made=False, crash=str(crash))
    scene.add("02")
    assert run.main([str(bids_dir), "out", "participant"]) == 1
    output = capsys.readouterr().out
    assert rows(output) == {"sub-01": ["FAILED", "0", "1"], "sub-02": ["done", "2", "0"]}
    assert "    InputError: it is all zero\n" in output
    assert f"    details: {crash}\n" in output


def test_series_that_had_to_be_left_out(scene, bids_dir, capsys):
    scene.add("01", Problem("01", "dwi", "x.bval", "x.bval is missing."))
    assert run.main([str(bids_dir), "out", "participant"]) == 1
    output = capsys.readouterr().out
    assert rows(output) == {"sub-01": ["FAILED", "2", "1"]}
    assert "    x.bval is missing.\n" in output[output.index("where to look") :]


def test_participant_without_any_series_is_no_failure(scene, bids_dir, capsys):
    scene.add("01")
    scene.add("02", Problem("02", "", "", "There is no series to use.", severity="note"))
    scene.empty = {"02"}
    assert run.main([str(bids_dir), "out", "participant"]) == 0
    assert rows(capsys.readouterr().out)["sub-02"] == ["nothing", "0", "0"]


def test_participant_that_was_not_reached_is_not_done(scene, bids_dir, tmp_path, capsys):
    (tmp_path / "crash.txt").write_text("ValueError: x\n")
    scene.add("01", made=False, crash=str(tmp_path / "crash.txt"))
    scene.add("02", made=False)
    assert run.main([str(bids_dir), "out", "participant", "--stop-on-first-crash"]) == 1
    output = capsys.readouterr().out
    assert rows(output)["sub-02"] == ["FAILED", "0", "0"]
    assert output.count("The run stopped before it was complete") == 1


def test_report_that_cannot_be_made(scene, bids_dir, tmp_path, capsys):
    scene.add("01")
    scene.broken_report = "01"
    assert run.main([str(bids_dir), "out", "participant"]) == 1
    output = capsys.readouterr().out
    assert "sub-01: the report could not be written (ValueError: no figure)" in output
    (log,) = (tmp_path / "out/logs").glob("*.log")
    assert str(log) in output[output.index("where to look") :]
    assert "Traceback" in log.read_text()


ISSUES = [
    Issue("EMPTY_FILE", "error", "/other", ""),
    Issue("EMPTY_FILE", "error", "/more", ""),
    Issue("NO_AUTHORS", "warning", "/dataset_description.json", ""),
]


def test_errors_on_other_files_are_listed(scene, bids_dir, capsys):
    scene.add("01")
    scene.issues = ISSUES
    assert run.main([str(bids_dir), "out", "participant"]) == 0
    assert "BIDS validation: EMPTY_FILE (2 files); 1 warnings." in capsys.readouterr().out


def test_many_kinds_of_errors_are_cut_and_said_to_be(scene, bids_dir, tmp_path, capsys):
    scene.add("01")
    scene.issues = [Issue(f"CODE_{number:02d}", "error", "/other", "") for number in range(13)]
    assert run.main([str(bids_dir), "out", "participant"]) == 0
    assert "CODE_09 (1 files); 3 more kinds in the log; 0 warnings" in capsys.readouterr().out
    (log,) = (tmp_path / "out/logs").glob("*.log")
    assert "CODE_12" in log.read_text()


def test_error_on_a_used_file_ends_the_run(scene, bids_dir, capsys):
    scene.add("01")
    scene.issues = [*ISSUES, Issue("BAD_NIFTI", "error", "/used", "broken")]
    assert run.main([str(bids_dir), "out", "participant"]) == 16
    assert "finds 1 errors in files that would be used, first: BAD_NIFTI at /used (broken)" in capsys.readouterr().err
    assert run.main([str(bids_dir), "out", "participant", "--skip-bids-validation"]) == 0


def test_reports_only_shows_the_last_run_of_each(scene, bids_dir, tmp_path, capsys):
    logs = tmp_path / "out/logs"
    for run_id in ("20260101-000000_aaaaaaaa", "20260102-000000_00000000"):
        (logs / "sub-01").mkdir(parents=True, exist_ok=True)
        (logs / "sub-01" / f"{run_id}.log").touch()
    for label in ("01", "02"):
        (logs / f"sub-{label}.json").write_text("{}")
    assert run.main([str(bids_dir), "out", "participant", "--reports-only"]) == 0
    assert scene.reports == [("01", logs / "sub-01" / "20260102-000000_00000000"), ("02", None)]
    scene.reports.clear()
    assert run.main([str(bids_dir), "out", "participant", "--reports-only", "--participant-label", "02"]) == 0
    assert [subject for subject, _ in scene.reports] == ["02"]


@pytest.mark.parametrize("level", [["participant", "--reports-only"], ["group"]], ids=["reports", "group"])
def test_participant_without_a_record_is_named(scene, level, bids_dir, tmp_path, capsys):
    (tmp_path / "out/logs").mkdir(parents=True)
    (tmp_path / "out/logs/sub-01.json").write_text("{}")
    assert run.main([str(bids_dir), "out", *level, "--participant-label", "01", "07"]) == 18
    assert "no record of sub-07:" in capsys.readouterr().err


@pytest.mark.parametrize(("warnings", "code"), [([], 0), (["a map cannot be read"], 1)], ids=["well", "unread"])
def test_group(monkeypatch, bids_dir, tmp_path, warnings, code, capsys):
    (tmp_path / "out/logs").mkdir(parents=True)
    (tmp_path / "out/logs/sub-01.json").write_text("{}")
    monkeypatch.setattr("qmri_bidsapp.group.aggregate.aggregate", lambda _folder, _labels: ([], warnings))
    monkeypatch.setattr("qmri_bidsapp.group.report.write_group_report", lambda folder, *_: folder / "group.html")
    assert run.main([str(bids_dir), "out", "group"]) == code
    output = capsys.readouterr().out
    assert f"Group report: {tmp_path / 'out' / 'group.html'}" in output
    assert output.count("warning: a map cannot be read") == len(warnings)
