"""From the maps of a first run to weights, and from these to maps, on coarse simulated heads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.bids.record_files import read_record, record_file
from qmri_bidsapp.cli import tools
from qmri_bidsapp.cli.app import run
from qmri_bidsapp.estimators.learned.mlp import MultilayerPerceptron
from qmri_bidsapp.estimators.learned.training import Training

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
    resources = ["--skip-bids-validation", "--no-certificate", "--nprocs", "2", "--device", "cpu"]
    assert run.main([*arguments, *resources, *options]) == 0


@pytest.fixture
def short_training(monkeypatch):
    options = MultilayerPerceptron.__init__.__kwdefaults__
    monkeypatch.setitem(options, "training", Training(steps=1000, batch_size=256))
    monkeypatch.setattr(MultilayerPerceptron, "default_combinations", 2**15)


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
    assert capsys.readouterr().out.count("exists already") == 2

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


def test_training_in_the_app_on_the_fits_of_an_earlier_run(fitted, short_training, tmp_path, capsys):
    bids, out = fitted
    # In one process, where the training is short.
    (tmp_path / "linear.yml").write_text("plugin: Linear")
    options = ["--estimators", "mlp", "--prior", "mixed", "--use-plugin", str(tmp_path / "linear.yml")]
    app(bids, out, *options)
    record = read_record(record_file(out, "03"))
    assert [fit.estimator for fit in record.fits] == ["mlp", "nlls"]
    folders = sorted((out.parent / "work").glob("*/weights/*/card.json"))
    cards = [json.loads(path.read_text()) for path in folders]
    assert sorted(card["identity"]["protocol"]["echo_time"][-1] for card in cards) == [0.15, 0.16]
    for card in cards:
        uniform, healthy = card["notes"]["prior"]["parts"]
        assert (uniform["name"], healthy["name"], healthy["n_subjects"]) == ("uniform", "healthy", 3)
    # The fits that are trained on were kept: a repetition finds the same weights.
    app(bids, out, *options, "--participant-label", "01")
    assert sorted((out.parent / "work").glob("*/weights/*/card.json")) == folders
    assert "training t2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("subjects", "options", "code", "cause"),
    [
        ((), ["--estimators", "mlp"], 66, "holds no fit of model t2"),
        (("01", "02"), ["--estimators", "mlp"], 64, "needs the fits of at least 3 subjects, got 2"),
        (("01", "02", "03"), ["--estimators", "nlls"], 64, "--prior healthy has no effect"),
        (("01", "02", "03"), ["--estimators", "mlp", "--prior", "healthy-gm"], 66, "no tissue segmentation"),
    ],
    ids=["no fits", "too few", "nothing learned", "no tissues"],
)
def test_priors_that_cannot_be_made_end_the_run_before_any_work(
    fitted, tmp_path, capsys, subjects, options, code, cause
):
    bids, finished = fitted
    out = tmp_path / "out"
    for subject in subjects:
        shutil.copytree(finished / f"sub-{subject}", out / f"sub-{subject}")
        (out / "logs").mkdir(exist_ok=True)
        shutil.copy(finished / "logs" / f"sub-{subject}.json", out / "logs")
    arguments = [str(bids), str(out), "participant", "-w", str(tmp_path / "work"), "--models", "t2"]
    assert run.main([*arguments, "--skip-bids-validation", "--device", "cpu", "--prior", "healthy", *options]) == code
    captured = capsys.readouterr()
    assert cause in captured.err
    assert len(captured.err.splitlines()) == 1
    assert "read MESE" not in captured.out


def test_weights_for_some_participants_only(fitted, short_training, tmp_path, capsys):
    bids, out = fitted
    assert train(out, tmp_path / "weights") == 0
    cards = {path.parent: json.loads(path.read_text()) for path in (tmp_path / "weights").glob("*/card.json")}
    weights = next(folder for folder, card in cards.items() if card["identity"]["protocol"]["echo_time"][-1] == 0.15)
    options = ["--estimators", "mlp", "--weights", str(weights), "--participant-label", "02", "03", "--nprocs", "2"]
    arguments = [str(bids), str(tmp_path / "out"), "participant", "-w", str(out.parent / "work"), "--models", "t2"]
    assert run.main([*arguments, "--skip-bids-validation", "--device", "cpu", *options]) == 1
    printed = capsys.readouterr().out
    assert "error: MESE: t2 cannot be fitted by mlp" in printed
    assert "0.15], needed [0.015, 0.04, 0.08, 0.16]" in printed
    assert (tmp_path / "out" / "sub-02" / "anat" / "sub-02_T2map.nii.gz").is_file()
    assert "sub-03            1/" not in printed


def test_protocols_of_raw_data(fitted, short_training, tmp_path, capsys):
    bids, _ = fitted
    command = ["train", "t2", str(tmp_path / "weights"), "--bids-dir", str(bids), "--snr", "50"]
    assert tools.main(command) == 0
    cards = [json.loads(path.read_text()) for path in (tmp_path / "weights").glob("*/card.json")]
    assert sorted(card["identity"]["protocol"]["echo_time"][-1] for card in cards) == [0.15, 0.16]
    assert tools.main([*command, "--prior", "healthy"]) == 64
    assert "Prior healthy is made from fits" in capsys.readouterr().err
    assert tools.main(["train", "smt", *command[2:]]) == 66
    assert "holds no dwi series, which model smt needs; see `qmri models`" in capsys.readouterr().err


def test_too_few_subjects_and_folders_that_are_no_data_set(fitted, tmp_path, capsys):
    _, finished = fitted
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out" / "logs" / "sub-01.json").unlink()
    assert train(tmp_path / "out", tmp_path / "weights", "--prior", "healthy") == 64
    assert "Prior healthy needs the fits of at least 3 subjects, got 2" in capsys.readouterr().err
    assert tools.main(["train", "t2", str(tmp_path / "weights"), "--bids-dir", str(tmp_path / "absent")]) == 66
    assert tools.main(["train", "t2", str(tmp_path / "weights")]) == 64
    assert "--bids-dir DIR or --bids-derivatives DIR" in capsys.readouterr().err
    assert not (tmp_path / "weights").exists()


def test_folders_without_fits(tmp_path, capsys):
    assert train(tmp_path, tmp_path / "weights") == 66
    assert "holds no fit of model t2" in capsys.readouterr().err
