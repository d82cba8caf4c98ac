"""``qmri train motion``: from files to a checkpoint, and causes of failure."""

from __future__ import annotations

import json
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import torch

from qmri_bidsapp.cli import tools
from qmri_bidsapp.motion import scorer
from qmri_bidsapp.motion.network import Architecture
from qmri_bidsapp.motion.network_input import Grid
from qmri_bidsapp.motion.training import recipe


@pytest.fixture(autouse=True)
def same_threads():
    n_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(n_threads)


def run(*options: str) -> int:
    return tools.main(["train", "motion", "--threads", "1", "--device", "cpu", *options])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    small_grid = Grid(6.0, (32, 32, 40), ((2, 2), (2, 2), (4, 2)))
    for module in (recipe, scorer):
        monkeypatch.setattr(module, "GRID", small_grid)
    monkeypatch.setattr(recipe, "Simulator", partial(recipe.Simulator, heads_per_round=2, samples_per_head=2))
    architecture = Architecture(channels=(8, 8, 8, 8, 8, 8), hidden=16)
    monkeypatch.setattr(recipe, "LEVELS", dict.fromkeys(recipe.LEVELS, 2))
    monkeypatch.setattr(recipe, "Settings", partial(recipe.Settings, architecture=architecture, steps_per_round=2))


@pytest.fixture
def heads(tmp_path):
    folder = tmp_path / "heads"
    folder.mkdir()
    axis = (np.arange(45) - 22) * 4.0
    radius = np.sqrt((np.stack(np.meshgrid(axis, axis, axis)) ** 2).sum(0))
    for name in ("one", "two", "three", "four", "five", "six"):
        data = (100 * (radius < 70) - 40 * (radius < 35)).astype(np.int16)
        nib.save(nib.Nifti1Image(data, np.diag([-4.0, 4, 4, 1])), folder / f"{name}_T1w.nii.gz")
    return folder


def test_training_starts_goes_on_and_writes_weights(heads, tmp_path, capsys):
    out = tmp_path / "run"
    options = (str(out), "--heads", str(heads), "--hold-out", "two")
    assert run(*options, "--rounds", "1") == 0
    assert "5 heads to train on, 1 held out" in capsys.readouterr().out
    assert run(*options, "--rounds", "2") == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 1, 2, 2]
    assert set(lines[-1]["validation"]) == {"all", "real"}
    cases = torch.load(out / "validation.pt", weights_only=True)
    assert {case["head"] for case in cases} == {"two_T1w.nii.gz"}
    trained = scorer.MotionScorer.load(out / "weights")
    # However few the heads, the p-value of a strange image falls below the limit.
    assert trained.familiarity.p_value(torch.full((24,), 1e3)) < scorer.UNFAMILIAR
    notes = trained.notes
    assert notes["rounds"] == 2
    assert notes["held_out"] == ["two_T1w.nii.gz"]
    assert len(notes["data"]["real"]) == 5
    assert notes["validation"]["all"] == lines[-1]["validation"]["all"]
    other = (str(out), "--heads", str(heads), "--hold-out", "three")
    assert run(*other, "--rounds", "3") == 64
    assert "on other heads" in capsys.readouterr().err


def test_training_begins_with_other_weights(heads, tmp_path, capsys, monkeypatch):
    begin = []

    class Watched(recipe.Trainer):
        def train_round(self, *arguments):
            begin.append(self.network.head[-1].weight.clone())
            return super().train_round(*arguments)

    monkeypatch.setattr(recipe, "Trainer", Watched)
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(heads.iterdir())[:5]:
        (few / f"new_{path.name}").symlink_to(path)
    options = ("--rounds", "1", "--heads")
    assert run(str(tmp_path / "1"), *options, str(heads), "--hold-out", "two") == 0
    # Another size by default: that of the weights is taken.
    monkeypatch.setattr(recipe, "Settings", partial(recipe.Settings, architecture=Architecture(hidden=8)))
    second = (str(tmp_path / "2"), *options, str(few), "--start-from", str(tmp_path / "1/weights"))
    assert run(*second) == 0
    first, last = (scorer.MotionScorer.load(tmp_path / name / "weights") for name in ("1", "2"))
    assert (first.notes["start_from"], last.notes["start_from"]) == (None, first.sha256)
    trained, _, _ = scorer.load_network(tmp_path / "1/weights")
    assert torch.equal(begin[-1], trained.head[-1].weight)
    # Heads that any of the trainings saw are not to be held out.
    assert len(last.notes["data"]["real"]) == 10
    third = (str(tmp_path / "3"), *options, str(heads), "--start-from", str(tmp_path / "2/weights"))
    assert run(*third, "--hold-out", "one") == 64
    assert "were trained on new_one_T1w.nii.gz, one_T1w.nii.gz" in capsys.readouterr().err
    assert run(*second[:-2]) == 1
    assert f"start_from: {first.sha256}, not None" in capsys.readouterr().err
    assert run(str(tmp_path / "4"), *options, str(heads), "--start-from", str(tmp_path)) == 64
    assert "no readable weights" in capsys.readouterr().err


def test_the_card_describes_the_simulation_by_its_constants(monkeypatch):
    described = recipe.describe_simulation()
    shipped = scorer.load_network(scorer.SHIPPED)[2]
    assert {name: shipped[name] for name in described} == described
    assert shipped["limits"] == list(recipe.LIMITS)
    monkeypatch.setattr(recipe, "MAX_SCORE", 3.0)
    monkeypatch.setattr(recipe, "NOISE", (0.01, 0.02))
    changed = recipe.describe_simulation()
    assert "uniform over 0 to 3 mm" in changed["distribution"]
    assert "1 to 2 % of the 99th percentile" in changed["noise"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--heads", "absent"], 66, "absent"),
        ([], 64, "Nothing to train on"),
        (["--rounds", "0"], 64, "--rounds"),
        (["--heads", "HEADS", "--hold-out", "one", "two"], 64, "at least 5"),
        (["--heads", "HEADS", "--hold-out", "seven"], 64, "--hold-out seven"),
    ],
    ids=["no-folder", "no-heads", "rounds", "few", "nothing-held-out"],
)
def test_causes_of_failure(options, code, words, heads, tmp_path, capsys):
    assert run(str(tmp_path / "run"), *(str(heads) if word == "HEADS" else word for word in options)) == code
    assert words in capsys.readouterr().err
