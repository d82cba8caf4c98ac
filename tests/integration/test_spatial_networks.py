"""The app with spatial networks, on a coarse simulated head: those shipped, and those that need weights."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.artifacts.weights import save_weights
from qmri_bidsapp.cli.app import run
from qmri_bidsapp.core.acquisition import InversionRecovery
from qmri_bidsapp.estimators.spatial.estimators import RecurrentInference, ResidualEstimation
from qmri_bidsapp.models.relaxometry import InversionRecoveryT1

SHAPE, VOXEL, T1 = (24, 28, 12), 6.0, (0.8, 1.4)
TIMES = (0.05, 0.2, 0.5, 0.9, 1.6, 2.8)


@pytest.fixture(scope="module")
def bids(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("networks") / "bids"
    x, y, z = np.meshgrid(*(VOXEL * (np.arange(n) - (n - 1) / 2) for n in SHAPE), indexing="ij")
    distance = np.sqrt((x / 60) ** 2 + (y / 75) ** 2 + (z / 36) ** 2)
    t1 = np.where(distance < 0.6, *T1)
    rng = np.random.default_rng(0)
    for index, time in enumerate(TIMES, start=1):
        clean = np.where(distance < 1, 1000 * np.abs(1 - 1.9 * np.exp(-time / t1)), 0)
        noise = rng.standard_normal((2, *SHAPE)) * 20
        path = root / "sub-01" / "anat" / f"sub-01_inv-{index}_IRT1.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        affine = np.diag([VOXEL, VOXEL, VOXEL, 1.0])
        nib.save(nib.Nifti1Image(np.hypot(clean + noise[0], noise[1]).astype(np.float32), affine), path)
        Path(str(path).replace(".nii.gz", ".json")).write_text(json.dumps({"InversionTime": time}))
    (root / "dataset_description.json").write_text(json.dumps({"Name": "networks", "BIDSVersion": "1.10.0"}))
    (root / "README").write_text("Simulated for a test.")
    return root


def app(bids: Path, out: Path, *options: str) -> int:
    arguments = [str(bids), str(out), "participant", "-w", str(out.parent / "work"), "--models", "t1"]
    resources = ["--skip-bids-validation", "--nprocs", "2", "--device", "cpu"]
    return run.main([*arguments, *resources, *options])


def test_shipped_weights_give_maps_that_say_what_they_are(bids, tmp_path):
    assert app(bids, tmp_path / "out", "--estimators", "t1:nlls", "t1:rim") == 0
    anat = tmp_path / "out" / "sub-01" / "anat"
    maps = {name: np.asarray(nib.load(anat / f"sub-01_desc-{name}_T1map.nii.gz").dataobj) for name in ("nlls", "rim")}
    inside = np.isfinite(maps["nlls"]) & np.isfinite(maps["rim"])
    assert inside.sum() > 1000
    assert np.median(np.abs(maps["rim"] / maps["nlls"] - 1)[inside]) < 0.1
    sidecar = json.loads((anat / "sub-01_desc-rim_T1map.json").read_text())
    assert "15 label maps" in sidecar["EstimatorTraining"]
    card = json.loads((RecurrentInference.shipped(InversionRecoveryT1()) / "card.json").read_text())
    assert sidecar["EstimatorWeightsSHA256"] == card["sha256"]
    assert "EstimatorTraining" not in json.loads((anat / "sub-01_desc-nlls_T1map.json").read_text())
    report = (tmp_path / "out" / "sub-01.html").read_text()
    assert sidecar["EstimatorTraining"] in report
    assert "recurrent inference machine trained on slices" in report
    assert RecurrentInference.std_kind in report
    std = np.asarray(nib.load(anat / "sub-01_desc-rimstd_T1map.nii.gz").dataobj)
    assert np.isfinite(std[inside]).mean() > 0.95


def test_without_weights_nothing_is_begun(bids, tmp_path, capsys):
    assert app(bids, tmp_path / "out", "--estimators", "resnet") == 64
    assert "qmri train t1 FOLDER --estimator resnet --labels DIR" in capsys.readouterr().err
    assert not (tmp_path / "out" / "sub-01").exists()


def test_weights_are_for_their_protocol(bids, tmp_path, capsys):
    model = InversionRecoveryT1()
    for name, times in (("own", TIMES), ("other", (*TIMES[:-1], 3.0))):
        protocol = InversionRecovery(times)
        network = ResidualEstimation.build(model, protocol)
        notes = {"iterations": 0, "n_label_maps": 0, "distribution": {"snr": [3, 100], "protocols": "one protocol"}}
        identity = ResidualEstimation.identity(model, protocol)
        save_weights(tmp_path / name / "resnet", network.state_dict(), identity, notes)
    options = ("--estimators", "t1:resnet", "--weights")
    assert app(bids, tmp_path / "out", *options, str(tmp_path / "own")) == 0
    assert (tmp_path / "out" / "sub-01" / "anat" / "sub-01_T1map.nii.gz").exists()
    assert app(bids, tmp_path / "out2", *options, str(tmp_path / "other")) == 1
    printed = capsys.readouterr()
    assert "None of the 1 weights" in printed.out + printed.err
    assert not (tmp_path / "out2" / "sub-01" / "anat").exists()
