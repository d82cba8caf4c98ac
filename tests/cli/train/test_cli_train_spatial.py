"""``qmri train ... --estimator rim``: from label maps to a checkpoint, and on from it."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from safetensors.torch import load_file

from qmri_bidsapp.artifacts.weights import load_weights, save_weights
from qmri_bidsapp.cli import tools
from qmri_bidsapp.core.acquisition import InversionRecovery, MultiEcho
from qmri_bidsapp.errors import WeightsError
from qmri_bidsapp.estimators.spatial import recipe
from qmri_bidsapp.estimators.spatial.error_head import split_head
from qmri_bidsapp.estimators.spatial.error_training import CHECKPOINT as HEAD_CHECKPOINT
from qmri_bidsapp.estimators.spatial.estimators import RecurrentInference, ResidualEstimation
from qmri_bidsapp.estimators.spatial.recipe import N_HELD_OUT
from qmri_bidsapp.estimators.spatial.virtual_heads import label_phantom
from qmri_bidsapp.models.relaxometry import InversionRecoveryT1, SpinEchoT2


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """Standard deviations that hardly learn."""
    sizes = {"n_iterations": 2, "n_calibration": 1, "n_validation": 1, "n_series": 1, "size": 16}
    monkeypatch.setattr(recipe, "HEAD_SIZES", sizes)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    for index in range(N_HELD_OUT + 1):
        nib.save(nib.Nifti1Image(label_phantom((60, 60, 60)), np.eye(4)), folder / f"seg_{index}.nii.gz")
    return folder


def test_training_goes_on_from_its_checkpoint(labels, tmp_path, capsys):
    arguments = ["train", "t2", str(tmp_path), "--estimator", "rim", "--labels", str(labels), "--every", "1"]
    assert tools.main([*arguments, "--iterations", "1"]) == 0
    assert tools.main([*arguments, "--iterations", "2"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row.get("iteration") for row in rows] == [1, None, None, 2, None, None]
    assert [row.get("head_iteration") for row in rows] == [None, 1, 2, None, 1, 2]
    assert {"loss", "error_snr10", "bias_snr50", "cv_snr50"} <= set(rows[0])
    assert "iteration=2" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "baseline.json").read_text())) == {"varpro_snr10", "varpro_snr50"}
    card = json.loads((tmp_path / "rim-t2" / "card.json").read_text())
    assert card["identity"]["protocol"] is None
    assert card["notes"]["planned"] == [[0, 1], [1, 2]]
    assert len({card["notes"]["label_maps_sha256"], card["notes"]["validation"]["label_maps_sha256"]}) == 2
    assert {"rim", "least_squares"} <= set(card["notes"]["validation"])
    assert set(card["notes"]["error_head"]["coverage_of_95"]["t2"]) == {"3", "5", "10", "20", "50", "100", "all"}
    protocol = MultiEcho((0.01, 0.03, 0.05, 0.1))
    maps = RecurrentInference(SpinEchoT2(), weights=tmp_path).fit(protocol).predict(np.array([[1.0, 0.8, 0.6, 0.3]]))
    assert maps.counts() == {"OK": 1}
    assert np.isfinite(maps.std).all()


@pytest.mark.parametrize("has_checkpoint", [True, False], ids=["resumed", "weights alone"])
def test_trained_networks_learn_their_standard_deviations_later(labels, tmp_path, capsys, has_checkpoint):
    """Those of before there were heads: the network stays what it is."""
    out, later = tmp_path / "out", tmp_path / ("out" if has_checkpoint else "later")
    arguments = ["--estimator", "rim", "--labels", str(labels)]
    assert tools.main(["train", "t2", str(out), *arguments, "--iterations", "1"]) == 0
    target = out / "rim-t2"
    identity = RecurrentInference.identity(SpinEchoT2(), None)
    tensors, notes = load_weights(target, identity)
    network, _ = split_head(tensors)
    save_weights(target, network, identity, {key: value for key, value in notes.items() if key != "error_head"})
    (out / HEAD_CHECKPOINT).unlink()
    how = ["--iterations", "1"] if has_checkpoint else ["--start-from", str(target), "--iterations", "0"]
    capsys.readouterr()
    assert tools.main(["train", "t2", str(later), *arguments, *how]) == 0
    assert "head_iteration=2" in capsys.readouterr().out
    again, notes = load_weights(later / "rim-t2", identity)
    assert set(again) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(again[name], value)
    assert notes["error_head"]["options"]["n_iterations"] == 2
    assert ("started_from" in notes) != has_checkpoint


def test_a_network_for_one_protocol_begins_as_the_general_one(labels, tmp_path, capsys):
    def run(name: str, *options: str) -> int:
        command = ["train", "t2", str(tmp_path / name), "--estimator", "rim", "--labels", str(labels)]
        return tools.main([*command, "--iterations", "1", *options])

    times = ("--times", "0.01", "0.03", "0.05", "0.1")
    assert run("general") == run("other", "--seed", "1") == 0
    assert run("specific", "--start-from", str(tmp_path / "general"), *times, "--seed", "2") == 0
    states = {
        name: load_file(tmp_path / name / "rim-t2" / "weights.safetensors")["first.weight"]
        for name in ("general", "other", "specific")
    }
    # One step of the optimiser changes each weight by no more than the learning rate.
    assert abs(states["specific"] - states["general"]).max() < 1.1e-3
    assert abs(states["other"] - states["general"]).max() > 0.05
    cards = {name: json.loads((tmp_path / name / "rim-t2" / "card.json").read_text()) for name in states}
    assert cards["specific"]["notes"]["options"]["start_from"] == cards["general"]["sha256"]
    assert cards["specific"]["notes"]["started_from"]["iterations"] == 1
    assert cards["specific"]["identity"]["protocol"]["echo_time"] == [0.01, 0.03, 0.05, 0.1]
    capsys.readouterr()
    start = ("--start-from", str(tmp_path / "other"))
    assert run("specific", *start, *times, "--seed", "2") == 64
    assert "belongs to another training" in capsys.readouterr().err
    assert run("fourth", "--start-from", str(tmp_path / "specific"), "--times", "0.01", "0.03", "0.05", "0.2") == 64
    assert "rim-t2 has protocol echo_time [0.01, 0.03, 0.05, 0.1]. Train" in capsys.readouterr().err
    assert not (tmp_path / "fourth").exists()


@pytest.mark.parametrize(
    ("options", "cause"),
    [([], "name their folder with --labels DIR"), (["--labels", "x", "--iterations", "0"], "at least 1")],
    ids=["no labels", "no iterations"],
)
def test_what_cannot_be_trained(tmp_path, capsys, options, cause):
    assert tools.main(["train", "t2", str(tmp_path), "--estimator", "rim", *options]) == 64
    assert cause in capsys.readouterr().err


@pytest.mark.parametrize("changed", [0, N_HELD_OUT], ids=["training", "held out"])
def test_a_training_does_not_go_on_with_other_label_maps(labels, tmp_path, capsys, changed):
    out, other = tmp_path / "out", tmp_path / "labels"
    arguments = ["train", "t2", str(out), "--estimator", "rim", "--every", "1", "--labels"]
    assert tools.main([*arguments, str(labels), "--iterations", "1"]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "baseline.json").unlink()
    shutil.copytree(labels, other)
    nib.save(nib.Nifti1Image(label_phantom((60, 64, 60)), np.eye(4)), other / f"seg_{changed}.nii.gz")
    capsys.readouterr()
    assert tools.main([*arguments, str(other), "--iterations", "2"]) == 64
    assert f"other label maps ({'held out' if changed else 'training'})" in capsys.readouterr().err
    assert {path for path in out.rglob("*") if path.is_file()} == set(before) - {out / "baseline.json"}
    assert all(path.read_bytes() == before[path] for path in before if path.exists())


def test_networks_for_signed_series(labels, tmp_path, capsys):
    times = (0.05, 0.3, 0.9, 2.0)
    arguments = ["train", "t1", str(tmp_path), "--labels", str(labels), "--iterations", "1", "--signed", "--estimator"]
    assert tools.main([*arguments, "resnet", "--times", *map(str, times)]) == 0
    estimator = ResidualEstimation(InversionRecoveryT1(), weights=tmp_path)
    maps = estimator.fit(InversionRecovery(times, signed=True)).predict(np.array([[-0.8, -0.2, 0.3, 0.7]]))
    assert maps.counts() == {"OK": 1}
    with pytest.raises(WeightsError, match="resnet-t1 has protocol signed true"):
        estimator.fit(InversionRecovery(times))


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["t2", "--estimator", "resnet"], "--signed is for inversion recoveries, which model t2 does not use"),
        (["t1", "--estimator", "rim"], "rim is trained for both signs unless --times names one protocol"),
    ],
    ids=["echoes", "any protocol"],
)
def test_signs_that_cannot_be_trained(tmp_path, capsys, options, cause):
    model, *rest = options
    assert tools.main(["train", model, str(tmp_path / "out"), *rest, "--labels", "x", "--signed"]) == 64
    assert cause in capsys.readouterr().err


def test_too_few_or_foreign_label_maps_are_refused(labels, tmp_path, capsys):
    arguments = ["train", "t2", str(tmp_path / "out"), "--estimator", "rim", "--labels"]
    assert tools.main([*arguments, str(tmp_path)]) == 1
    assert "more than 5 label maps" in capsys.readouterr().err
    for index in range(N_HELD_OUT + 1):
        nib.save(nib.Nifti1Image(np.full((4, 4, 4), 777, dtype=np.int16), np.eye(4)), tmp_path / f"{index}.nii.gz")
    assert tools.main([*arguments, str(tmp_path)]) == 1
    assert "777" in capsys.readouterr().err
