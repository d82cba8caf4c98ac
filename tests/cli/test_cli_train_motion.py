"""``qmri train motion``: from files to a checkpoint, and causes of failure."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from qmri_bidsapp.cli import tools
from qmri_bidsapp.motion.score import GRIDS, Grid


@pytest.fixture(autouse=True)
def same_threads():
    n_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(n_threads)


def run(*options: str) -> int:
    return tools.main(["train", "motion", "--threads", "1", "--device", "cpu", *options])


@pytest.fixture
def heads(tmp_path):
    folder = tmp_path / "heads"
    folder.mkdir()
    axis = (np.arange(45) - 22) * 4.0
    radius = np.sqrt((np.stack(np.meshgrid(axis, axis, axis)) ** 2).sum(0))
    for name in ("one", "two"):
        data = (100 * (radius < 70) - 40 * (radius < 35)).astype(np.int16)
        nib.save(nib.Nifti1Image(data, np.diag([-4.0, 4, 4, 1])), folder / f"{name}_T1w.nii.gz")
    return folder


def test_training_starts_resumes_and_validates_on_heads_held_out(heads, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(GRIDS, 2.0, Grid(6.0, (32, 32, 64), ((2, 2), (2, 2), (4, 2))))
    out = tmp_path / "run"
    options = ("--heads", str(heads), "--hold-out", "two", "--out", str(out), "--spacing", "2", "--width", "8")
    assert run(*options, "--steps", "1") == 0
    assert "1 heads to train on, 1 held out" in capsys.readouterr().out
    assert run(*options, "--steps", "2") == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 1, 2, 2]
    assert set(lines[-1]["validation"]) == {"all", "real"}
    cases = torch.load(out / "validation.pt", weights_only=True)
    assert {case["head"] for case in cases} == {"two_T1w.nii.gz"}


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--heads", "absent"], 66, "absent"),
        ([], 64, "Nothing to train on"),
        (["--spacing", "3"], 64, "--spacing"),
        (["--width", "12"], 64, "--width"),
    ],
    ids=["no-folder", "no-heads", "spacing", "width"],
)
def test_causes_of_failure(options, code, words, tmp_path, capsys):
    assert run("--out", str(tmp_path / "run"), *options) == code
    assert words in capsys.readouterr().err
