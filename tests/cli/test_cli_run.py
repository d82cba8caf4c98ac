from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from qmri_bidsapp.cli import boutiques, run, tools
from qmri_bidsapp.cli.parser import build_parser, parse
from qmri_bidsapp.cli.progress import Progress
from qmri_bidsapp.config import available_cpus, available_memory_gb, read_toml
from qmri_bidsapp.errors import InputMissingError, UsageError

REPOSITORY = Path(__file__).resolve().parents[2]


def write_dataset(root: Path, *subjects: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    for label in subjects:
        (root / f"sub-{label}" / "func").mkdir(parents=True)
        (root / f"sub-{label}" / "func" / f"sub-{label}_task-rest_bold.nii.gz").touch()
    return root


class TestParser:
    def test_labels_lose_their_prefix(self, tmp_path: Path) -> None:
        config = parse([str(tmp_path), "out", "participant", "--participant-label", "sub-01", "02", "01"])
        assert config.participant_label == ("01", "02")

    def test_names_are_split_at_commas(self, tmp_path: Path) -> None:
        config = parse([str(tmp_path), "out", "participant", "--models", "t1,smt", "--estimators", "smt:nlls"])
        assert (config.models, config.estimators) == (("t1", "smt"), ("smt:nlls",))

    def test_choices_survive_the_configuration_file(self, tmp_path: Path) -> None:
        first = parse([str(tmp_path / "a"), "o", "participant", "--models", "t1", "--nprocs", "3", "--clean-workdir"])
        (tmp_path / "c.toml").write_text(first.to_toml())
        again = parse([str(tmp_path / "b"), "o", "group", "--config-file", str(tmp_path / "c.toml"), "--nprocs", "2"])
        assert (again.models, again.nprocs, again.clean_workdir) == (("t1",), 2, True)
        assert again.bids_dir.name == "b"
        assert again.run_id != first.run_id

    def test_unknown_name_in_the_configuration_file(self, tmp_path: Path) -> None:
        (tmp_path / "c.toml").write_text("modles = ['t1']")
        with pytest.raises(UsageError, match="did you mean models"):
            read_toml(tmp_path / "c.toml")
        with pytest.raises(InputMissingError):
            read_toml(tmp_path / "none.toml")

    def test_wrong_type_in_the_configuration_file(self, tmp_path: Path) -> None:
        (tmp_path / "c.toml").write_text("nprocs = 'many'")
        with pytest.raises(UsageError, match="nprocs must be int"):
            parse([str(tmp_path), "o", "participant", "--config-file", str(tmp_path / "c.toml")])

    def test_help_needs_no_heavy_import(self) -> None:
        code = (
            "import sys\nfrom qmri_bidsapp.cli import run\n"
            "try: run.main(['--help'])\nexcept SystemExit: pass\n"
            "print(sorted({'torch', 'nipype', 'bids', 'dipy', 'ants', 'matplotlib', 'numpy'} & set(sys.modules)))"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.splitlines()[-1] == "[]"


class TestExitCodes:
    """The documented code, and the cause in one line."""

    @pytest.mark.parametrize(
        ("arguments", "code", "text"),
        [
            (["{bids}", "{out}", "session"], 17, "participant or group"),
            (["{bids}", "{out}"], 64, "required"),
            (["{bids}", "{out}", "participant", "--nonsense"], 64, "nonsense"),
            (["{bids}", "{out}", "participant", "--nprocs", "0"], 64, "at least 1"),
            (["{bids}", "{out}", "participant", "--device", "tpu"], 64, "--device"),
            (["{bids}", "{out}", "participant", "--device", "cuda:99"], 64, "GPUs are usable"),
            (["{bids}", "{out}", "participant", "--models", "t7"], 64, "no model named 't7'"),
            (
                ["{bids}", "{out}", "participant", "--models", "t1", "--estimators", "wls"],
                64,
                "cannot be used",
            ),
            (["{bids}", "{out}", "participant", "-w", "{bids}/work"], 64, "input folder"),
            (["{bids}", "{out}", "participant", "--bids-filter-file", "none.json"], 66, "does not exist"),
            (["{tmp}/none", "{out}", "participant"], 66, "does not exist"),
            (["{tmp}/empty", "{out}", "participant"], 16, "dataset_description.json"),
            (["{bids}", "{out}", "participant", "--participant-label", "9"], 18, "no sub-9"),
            (["{bids}", "{bids}", "participant"], 73, "mix"),
            (["{bids}", "{out}", "group"], 18, "run them first"),
            (["{bids}", "{out}", "participant", "--reports-only"], 18, "run them first"),
        ],
    )
    def test_code_and_cause(
        self, arguments: list[str], code: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "empty").mkdir()
        bids = write_dataset(tmp_path / "bids", "01")
        filled = [word.format(bids=bids, out=tmp_path / "out", tmp=tmp_path) for word in arguments]
        if "-w" not in filled:
            filled += ["-w", str(tmp_path / "work")]
        assert run.main(filled) == code
        error = capsys.readouterr().err
        assert text in error
        assert len(error.strip().splitlines()) == 1

    def test_nothing_matched(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        bids = write_dataset(tmp_path / "bids", "01")
        assert run.main([str(bids), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work")]) == 18
        assert "No T1w" in capsys.readouterr().err

    def test_unexpected_error_names_the_log(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(config: object) -> None:
            raise RuntimeError("boom")

        monkeypatch.setattr(run, "_find_and_plan", broken)
        bids = write_dataset(tmp_path / "bids", "01")
        assert run.main([str(bids), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work")]) == 1
        error = capsys.readouterr().err
        assert "RuntimeError: boom; details in" in error
        assert "Traceback" in Path(error.strip().split("details in ")[1]).read_text()

    def test_interruption(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(config: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(run, "_find_and_plan", interrupted)
        bids = write_dataset(tmp_path / "bids", "01")
        assert run.main([str(bids), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work")]) == 130

    def test_methods_text_alone(self, tmp_path: Path) -> None:
        bids, out = write_dataset(tmp_path / "bids", "01"), tmp_path / "out"
        assert run.main([str(bids), str(out), "participant", "--boilerplate-only", "-w", str(tmp_path / "work")]) == 0
        text = (out / "logs" / "CITATION.md").read_text()
        assert "## References" in text
        assert "[@" not in text


class TestLimits:
    def test_control_group_version_2(self, tmp_path: Path) -> None:
        (tmp_path / "cpu.max").write_text("150000 100000\n")
        (tmp_path / "memory.max").write_text(str(2 * 1024**3))
        assert available_cpus(tmp_path) == 1
        assert available_memory_gb(tmp_path) == pytest.approx(1.8)

    def test_control_group_version_1(self, tmp_path: Path) -> None:
        (tmp_path / "cpu").mkdir()
        (tmp_path / "memory").mkdir()
        (tmp_path / "cpu/cpu.cfs_quota_us").write_text("100000")
        (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
        (tmp_path / "memory/memory.limit_in_bytes").write_text(str(1024**3))
        assert available_cpus(tmp_path) == 1
        assert available_memory_gb(tmp_path) == pytest.approx(0.9)

    def test_no_limit(self, tmp_path: Path) -> None:
        (tmp_path / "cpu.max").write_text("max 100000\n")
        assert available_cpus(tmp_path) >= 1
        assert available_memory_gb(tmp_path) > 0


def test_progress_is_plain_lines() -> None:
    stream, clock = io.StringIO(), iter([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0])
    progress = Progress({"01": 5}, stream, clock=lambda: next(clock))
    progress.start("01", "a")
    progress.end("01", "a")
    progress.end("01", "b")
    progress.fail("01", "c")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "1/5" in lines[0]
    assert "unchanged" in lines[1]
    assert "FAILED" in lines[2]


class TestBoutiques:
    def test_committed_descriptor_is_current(self) -> None:
        assert (REPOSITORY / "boutiques" / "qmri_bidsapp.json").read_text() == boutiques.descriptor_text()

    def test_every_option_is_an_input(self) -> None:
        inputs = {item["id"]: item for item in json.loads(boutiques.descriptor_text())["inputs"]}
        actions = [action for action in build_parser()._actions if action.dest not in ("help", "version")]
        assert sorted(inputs) == sorted(action.dest for action in actions)
        for action in actions:
            if action.option_strings:
                assert inputs[action.dest]["command-line-flag"] in action.option_strings


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert tools.main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "t1: T1 by inversion recovery" in printed
    assert "T1map" in printed


def test_every_option_in_the_documentation_exists() -> None:
    import re

    known = {option for action in build_parser()._actions for option in action.option_strings}
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    foreign = {"--rm", "--read-only", "--tmpfs", "--network", "--seed"}
    for page in pages:
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text()))
        assert used <= known | foreign, page.name
