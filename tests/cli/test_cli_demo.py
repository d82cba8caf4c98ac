"""``qmri demo --check``: tables, JSON and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.truth import write_output

from qmri_bidsapp.cli import tools
from qmri_bidsapp.evaluation.truth import agreement


def test_right_maps_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = write_output(tmp_path)
    assert tools.main(["demo", "--check", str(out), "--json", str(tmp_path / "check.json")]) == 0
    printed = capsys.readouterr().out
    assert "sub-01, IRT1, t1, nlls" in printed
    assert "| t1 | s | GM |" in printed
    assert "| t1, nlls | unmodelled | 27 | 100.0 | found |" in printed
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["passed"]
    assert {"out", "truth", "maps", "flags", "failures", "without_truth", "range_limits"} <= found.keys()
    assert {row["region"] for row in found["maps"]} == {"GM", "WM"}


def test_wrong_standard_deviations_end_with_one_and_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = write_output(tmp_path, scale=0.5)
    assert tools.main(["demo", "--check", str(out), "--json", str(tmp_path / "check.json")]) == 1
    printed = capsys.readouterr()
    assert "| range and interval |" in printed.out
    assert "sub-01, IRT1, t1, t1, GM: range holds the truth in" in printed.err
    assert json.loads((tmp_path / "check.json").read_text())["passed"] is False


def test_the_truth_can_be_named(tmp_path: Path) -> None:
    out, data = write_output(tmp_path)
    (out / "dataset_description.json").unlink()
    assert tools.main(["demo", "--check", str(out)]) == 66
    truth = ["--truth", str(data / "derivatives" / "truth")]
    assert tools.main(["demo", "--check", str(out), *truth, "--participant-label", "sub-01"]) == 0
    assert tools.main(["demo", "--check", str(out), *truth, "--participant-label", "02"]) == 66


def test_too_few_voxels_are_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = write_output(tmp_path)
    monkeypatch.setattr(agreement, "MIN_VOXELS", 10**6)
    assert tools.main(["demo", "--check", str(out)]) == 65
    assert "coverage cannot be judged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["new", "--check", "out"], "leave out the folder"),
        (["--check", "out", "--seed", "1"], "leave out the folder"),
        (["new", "--truth", "x"], "--truth needs --check"),
        (["new", "--participant-label", "01"], "--participant-label needs --check"),
        (["new", "--json", "x.json"], "--json needs --check"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], cause: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tools.main(["demo", *arguments]) == 64
    assert cause in capsys.readouterr().err
