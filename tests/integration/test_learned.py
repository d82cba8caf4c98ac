"""From the maps of a first run to weights, and from these to maps, on coarse simulated heads."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.cli import run, tools
from qmri_bidsapp.estimators.mlp import MultilayerPerceptron
from qmri_bidsapp.estimators.training import Training

SHAPE, VOXEL, T2 = (18, 22, 14), 8.0, (0.08, 0.11)
ECHO_TIMES = {"01": (0.015, 0.04, 0.08, 0.15), "02": (0.015, 0.04, 0.08, 0.15), "03": (0.015, 0.04, 0.08, 0.16)}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> tuple[Path, Path]:
    """Data set of three subjects, two of one protocol, and the output folder of a run by least squares."""
    root = tmp_path_factory.mktemp("learned")
    bids = root / "bids"
    x, y, z = np.meshgrid(*(VOXEL * (np.arange(n) - (n - 1) / 2) for n in SHAPE), indexing="ij")
    distance = np.sqrt((x / 60) ** 2 + (y / 75) ** 2 + (z / 48) ** 2)
    rng = np.random.default_rng(0)
    for subject, times in ECHO_TIMES.items():
        t2 = np.where(distance < 0.6, *T2) * (1 + 0.05 * rng.standard_normal(SHAPE))
        for index, time in enumerate(times, start=1):
            path = bids / f"sub-{subject}" / "anat" / f"sub-{subject}_echo-{index}_MESE.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            clean = np.where(distance < 1, 1000 * np.exp(-time / t2), 0)
            noise = rng.standard_normal((2, *SHAPE)) * 10
            affine = np.diag([VOXEL, VOXEL, VOXEL, 1.0])
            nib.save(nib.Nifti1Image(np.hypot(clean + noise[0], noise[1]).astype(np.float32), affine), path)
            fields = {"EchoTime": time, "RepetitionTime": 5.0}
            Path(str(path).replace(".nii.gz", ".json")).write_text(json.dumps(fields))
    (bids / "dataset_description.json").write_text(json.dumps({"Name": "learned", "BIDSVersion": "1.10.0"}))
    (bids / "README").write_text("Simulated for a test.")
    app(bids, root / "out")
    return bids, root / "out"


def app(bids: Path, out: Path, *options: str) -> None:
    arguments = [str(bids), str(out), "participant", "-w", str(out.parent / "work"), "--models", "t2"]
    resources = ["--skip-bids-validation", "--nprocs", "2", "--device", "cpu"]
    assert run.main([*arguments, *resources, *options]) == 0


@pytest.fixture
def short_training(monkeypatch):
    options = MultilayerPerceptron.__init__.__kwdefaults__
    monkeypatch.setitem(options, "training", Training(steps=1000, batch_size=256))
    monkeypatch.setitem(options, "n_combinations", 2**15)


def train(out: Path, weights: Path, *options: str) -> int:
    return tools.main(["train", "t2", str(weights), "--bids-derivatives", str(out), "--snr", "100", *options])


def test_weights_from_the_fits_of_the_data_set(fitted, short_training, tmp_path, capsys):
    bids, out = fitted
    weights = tmp_path / "weights"
    assert train(out, weights, "--prior", "healthy") == 0
    cards = [json.loads(path.read_text()) for path in sorted(weights.glob("*/card.json"))]
    assert sorted(card["identity"]["protocol"]["echo_time"][-1] for card in cards) == [0.15, 0.16]
    for card in cards:
        assert card["notes"]["prior"]["n_subjects"] == 3
        low, middle, high = card["notes"]["prior"]["percentiles_5_50_95"]["t2"]
        assert 0.06 < low < middle < high < 0.15
    assert train(out, weights, "--prior", "healthy") == 0
    assert capsys.readouterr().out.count("there already") == 2

    app(bids, tmp_path / "mlp", "--estimators", "mlp", "--weights", str(weights))
    name = "sub-03/anat/sub-03_T2map.nii.gz"
    learned, classical = (np.asarray(nib.load(folder / name).dataobj) for folder in (tmp_path / "mlp", out))
    inside = np.isfinite(learned) & np.isfinite(classical)
    assert inside.sum() > 500
    assert np.median(np.abs(learned / classical - 1)[inside]) < 0.05


@pytest.mark.parametrize(
    ("options", "code", "cause"),
    [
        (["--prior", "healthy-wm"], 66, "no tissue segmentation"),
        (["--estimator", "nlls"], 64, "nlls is not learned"),
        (["--range", "t2", "0.01", "9"], 64, "range of t2 must lie within 0.001 to 4 s"),
        (["--range", "t2", "low", "9"], 64, "--range takes a name and two numbers"),
        (["--prior", "healthy", "--range", "t2", "0.1", "0.2"], 64, "--range is for a uniform distribution"),
        (["--snr", "1", "2", "3"], 64, "--snr takes one or two numbers"),
    ],
    ids=["no tissues", "not learned", "beyond bounds", "no number", "range of healthy", "three ratios"],
)
def test_what_cannot_be_trained(fitted, tmp_path, capsys, options, code, cause):
    assert train(fitted[1], tmp_path / "weights", *options) == code
    assert cause in capsys.readouterr().err


def test_folders_without_fits(tmp_path, capsys):
    assert train(tmp_path, tmp_path / "weights") == 66
    assert "holds no fit of model t2" in capsys.readouterr().err
