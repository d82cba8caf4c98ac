"""`qmri evaluate motion`: heads of a folder, motion that repeats, files that cannot be used."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from qmri_bidsapp.cli import tools
from qmri_bidsapp.evaluation import motion_score as motion
from qmri_bidsapp.motion.familiarity import Familiarity
from qmri_bidsapp.motion.network import SFCN, Architecture, soft_labels
from qmri_bidsapp.motion.scorer import MotionScorer, save_scorer


def head(seed: int = 0) -> np.ndarray:
    """Return an upright head of 6 mm voxels, coarse for speed."""
    axis = (np.arange(40) - 19.5) * 4.0
    x, y, z = np.meshgrid(axis, axis * 1.2, axis * 1.1, indexing="ij")
    rng = np.random.default_rng(seed)
    image = 60.0 * ((x / 70) ** 2 + (y / 88) ** 2 + ((z + 8) / 76) ** 2 < 1)
    image[(x / 54) ** 2 + (y / 70) ** 2 + ((z + 4) / 58) ** 2 < 1] = 100
    image[((np.abs(x) - 12) / 9) ** 2 + (y / 26) ** 2 + ((z - 4) / 13) ** 2 < 1] = 20
    return (image + rng.normal(0, 1, image.shape) ** 2).astype(np.float32)


@pytest.fixture
def heads(tmp_path):
    folder = tmp_path / "heads"
    (folder / "more").mkdir(parents=True)
    affine = np.diag([4.0, 4.0, 4.0, 1])
    nib.save(nib.Nifti1Image(head(), affine), folder / "one.nii.gz")
    nib.save(nib.Nifti1Image(head(1)[::-1], np.diag([-4.0, 4.0, 4.0, 1])), folder / "more" / "two.nii")
    (folder / "broken.nii.gz").write_bytes(b"no image")
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9), np.float32), affine), folder / "empty.nii")
    return folder


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    network = SFCN(Architecture(channels=(8, 8, 8, 8, 8, 8)))
    familiarity = Familiarity.learn(torch.randn(60, 24), list(range(60)))
    save_scorer(tmp_path / "weights", network, familiarity, torch.rand(1, 14, 17, 14), {})
    return tmp_path / "weights"


def run(*options: object) -> int:
    return tools.main(["evaluate", "motion", "--threads", "1", *map(str, options)])


def test_command_names_what_it_skips_and_repeats(heads, weights, tmp_path, capsys):
    found = []
    for seed in (0, 0, 1):
        file = tmp_path / "found.json"
        options = ("--heads", heads, "--per-head", 3, "--seed", seed, "--motion-weights", weights, "--json", file)
        assert run(*options) == 0
        found.append(json.loads(file.read_text()))
    printed = capsys.readouterr().out
    assert "skipped: broken.nii.gz" in printed
    assert "skipped: empty.nii" in printed
    assert {"r2", "mae_mm", "spearman_within_head", "coverage_90", "still_below_0.5", "by_head"} <= set(found[0])
    assert set(found[0]["by_head"]) == {"one.nii.gz", "more/two.nii"}
    assert found[0]["n"] == 8
    assert found[0] == found[1] != found[2]


def test_figures_are_those_of_a_perfect_and_of_a_biased_scorer(heads, monkeypatch):
    truth: list[float] = []
    bias = 0.0
    real = motion.simulate_levels

    def noted(*arguments):
        for moved, upright, score in real(*arguments):
            truth.append(score)
            yield moved, upright, score

    monkeypatch.setattr(motion, "simulate_levels", noted)

    def network(_image: torch.Tensor) -> tuple[torch.Tensor, None]:
        return soft_labels(torch.tensor([truth[-1] + bias])).clamp_min(1e-9).log(), None

    corrected: list[int] = []

    def correct_bias(image: nib.Nifti1Image) -> nib.Nifti1Image:
        corrected.append(1)
        return image

    quiet = {"report": lambda _: None, "skip": lambda _: None, "correct_bias": correct_bias}
    figures = {}
    for bias in (0.0, 0.4):
        scorer = MotionScorer(network, lambda volume, _affine: volume, bias_corrected=bias > 0)
        found = motion.evaluate(motion.find_volumes(heads), heads, scorer, per_head=5, seed=3, **quiet)
        figures[bias] = found.figures()
    assert len(corrected) == 12  # N4 only for weights that were trained so
    assert figures[0.0]["r2"] > 0.99
    assert figures[0.0]["spearman_within_head"] == pytest.approx(1)
    assert figures[0.0]["coverage_90"] == figures[0.0]["still_below_0.5"] == 1
    assert figures[0.4]["mae_mm"] == pytest.approx(0.4, abs=0.05)
    assert figures[0.4]["coverage_90"] < 0.3
    assert min(score for score in truth if score) < 0.8
    assert max(truth) > 3.2


def test_nothing_to_evaluate(tmp_path, weights, capsys):
    assert run("--heads", tmp_path / "absent", "--motion-weights", weights) == 66
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.nii").write_bytes(b"")
    assert run("--heads", tmp_path / "bad", "--motion-weights", weights) == 1
    assert "None of the 1 files can be scored" in capsys.readouterr().err
    assert run("--heads", tmp_path / "bad", "--motion-weights", weights, "--motion-weights-sha256", "0") == 64
    assert run("--heads", tmp_path / "bad", "--motion-weights", tmp_path / "none") == 66
    assert run("--heads", tmp_path / "bad", "--per-head", 0) == 64
