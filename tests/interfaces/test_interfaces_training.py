"""Weights are trained once per protocol, shared, and refused where they do not belong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from qmri_bidsapp.core.acquisition import MultiEcho
from qmri_bidsapp.errors import WeightsError
from qmri_bidsapp.estimators.learned.mlp import MultilayerPerceptron
from qmri_bidsapp.estimators.learned.training import Training
from qmri_bidsapp.evaluation.standards import standard
from qmri_bidsapp.fitting.once import train_once
from qmri_bidsapp.interfaces.fitting import Fit
from qmri_bidsapp.interfaces.training import Train
from qmri_bidsapp.registry import get_model

PROTOCOL, OTHER = MultiEcho((0.01, 0.03, 0.09)), MultiEcho((0.01, 0.03, 0.08))


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    options = MultilayerPerceptron.__init__.__kwdefaults__
    monkeypatch.setitem(options, "training", Training(steps=50, batch_size=256))
    monkeypatch.setattr(MultilayerPerceptron, "default_combinations", 2**12)


def weights_of(cache: Path, acquisition: MultiEcho) -> Path:
    node = Train(acquisition=acquisition.to_dict(), model="t2", estimator="mlp", cache=str(cache))
    return Path(node.run().outputs.weights)


def test_one_training_per_protocol(tmp_path, monkeypatch):
    first = weights_of(tmp_path / "cache", PROTOCOL)
    assert weights_of(tmp_path / "cache", OTHER) != first
    card = (first / "card.json").stat().st_mtime_ns

    def fail(*_args, **_options):
        raise AssertionError("trained again")

    monkeypatch.setattr(MultilayerPerceptron, "fit", fail)
    assert weights_of(tmp_path / "cache", PROTOCOL) == first
    assert (first / "card.json").stat().st_mtime_ns == card


def test_another_seed_is_another_training(tmp_path):
    first, second = (
        train_once(MultilayerPerceptron(get_model("t2")), PROTOCOL, tmp_path, seed=seed) for seed in (0, 1)
    )
    assert first != second


def test_the_fit_takes_the_weights_of_its_protocol_and_no_others(tmp_path):
    data = 100 * np.exp(-np.array(PROTOCOL.echo_time) / 0.08) * np.ones((2, 2, 2, 1))
    nib.save(nib.Nifti1Image(data.astype(np.float32), np.eye(4)), tmp_path / "series.nii")
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "mask.nii")
    for acquisition in (PROTOCOL, OTHER):
        weights_of(tmp_path / "cache", acquisition)
    fit = Fit(in_file=tmp_path / "series.nii", in_mask=tmp_path / "mask.nii", model="t2", estimator="mlp")
    fit.inputs.weights = str(tmp_path / "cache")
    fit.inputs.acquisition = PROTOCOL.to_dict()
    outputs = fit.run(cwd=str(tmp_path)).outputs
    expected = MultilayerPerceptron(get_model("t2")).fit(PROTOCOL).predict(data.reshape(-1, 3)).estimate[:, 1]
    np.testing.assert_array_equal(np.asarray(nib.load(outputs.estimates[1]).dataobj).ravel(), expected)
    fit.inputs.acquisition = MultiEcho((0.01, 0.03, 0.07)).to_dict()
    with pytest.raises(WeightsError, match=r"None of the 2 weights .* model .*t2.* echo_time .* `qmri train`"):
        fit.run(cwd=str(tmp_path))


def test_directions_that_motion_correction_turned_are_those_of_the_fit(tmp_path, monkeypatch):
    monkeypatch.setitem(MultilayerPerceptron.__init__.__kwdefaults__, "training", Training(steps=600, batch_size=512))
    model, protocol = get_model("tensor"), standard("tensor")
    rotation = Rotation.from_euler("z", 12, degrees=True).as_matrix()
    turned = replace(protocol, direction=tuple(map(tuple, (np.array(protocol.direction) @ rotation.T).tolist())))
    # A fibre at 45 degrees in the plane of the turn, and two of other directions.
    axes = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 2]]) / np.sqrt([[2], [2], [5]])
    tensors = 3e-4 * np.eye(3) + 1.4e-3 * axes[:, :, None] * axes[:, None]
    along = np.array(turned.direction)
    data = np.exp(-np.array(turned.b_value) * np.einsum("ni,vij,nj->vn", along, tensors, along))
    nib.save(nib.Nifti1Image(100 * data.reshape(3, 1, 1, -1).astype(np.float32), np.eye(4)), tmp_path / "series.nii")
    nib.save(nib.Nifti1Image(np.ones((3, 1, 1), np.uint8), np.eye(4)), tmp_path / "mask.nii")
    train = Train(acquisition=protocol.to_dict(), model="tensor", estimator="mlp", cache=str(tmp_path / "cache"))
    fit = Fit(in_file=tmp_path / "series.nii", in_mask=tmp_path / "mask.nii", model="tensor", estimator="mlp")
    fit.inputs.weights = train.run().outputs.weights
    fit.inputs.acquisition = protocol.to_dict()
    fit.inputs.direction = [list(row) for row in turned.direction]
    estimates = fit.run(cwd=str(tmp_path)).outputs.estimates
    names = [parameter.name for parameter in (*model.parameters, *model.derived)]
    maps = {name: nib.load(file).get_fdata().ravel() for name, file in zip(names, estimates, strict=True)}
    rows = [[maps[f"d{name}"] for name in row] for row in (("xx", "xy", "xz"), ("xy", "yy", "yz"), ("xz", "yz", "zz"))]
    found = np.linalg.eigh(np.moveaxis(np.array(rows), 2, 0)).eigenvectors[:, :, 2]
    assert np.rad2deg(np.arccos(np.abs((found * axes).sum(1)).clip(max=1))).max() < 4
    np.testing.assert_allclose(maps["md"], np.trace(tensors[0]) / 3, rtol=0.15)
