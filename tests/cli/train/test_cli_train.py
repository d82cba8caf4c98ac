"""``qmri train``: what was asked for is used, or refused; what cannot be trained does not stop the rest."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from qmri_bidsapp.bids import earlier_fits as fits
from qmri_bidsapp.cli import tools
from qmri_bidsapp.cli.train import voxelwise as command
from qmri_bidsapp.core.acquisition import MultiEcho
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.estimators.learned import base as learned
from qmri_bidsapp.estimators.learned.base import LearnedEstimator
from qmri_bidsapp.estimators.learned.examples import SNR
from qmri_bidsapp.estimators.learned.mlp import MultilayerPerceptron
from qmri_bidsapp.estimators.learned.polynomial import PolynomialRegression
from qmri_bidsapp.estimators.learned.training import Training
from qmri_bidsapp.estimators.spatial.base import SpatialNetwork
from qmri_bidsapp.evaluation.standards import standard
from qmri_bidsapp.registry import load_estimators


@pytest.fixture
def found(monkeypatch):
    """One fit of t2; little training."""
    protocol = MultiEcho((0.0125, 0.025, 0.05, 0.08, 0.12, 0.2))
    monkeypatch.setattr(fits, "find_fits", lambda folder, model: [SimpleNamespace(acquisition=protocol, subject="01")])
    for kind in (MultilayerPerceptron, PolynomialRegression):
        monkeypatch.setattr(kind, "default_combinations", 2**13)
    monkeypatch.setattr(MultilayerPerceptron, "optimised_by", lambda name: {"training": Training(20, 64, name)})


@pytest.mark.parametrize(
    ("estimator", "optimiser"), [("mlp", "proximal-adagrad"), ("polynomial", "sdca")], ids=["mlp", "polynomial"]
)
def test_the_card_tells_the_optimiser(found, tmp_path, capsys, estimator, optimiser):
    options = ["--bids-derivatives", str(tmp_path), "--estimator", estimator, "--optimiser", optimiser]
    assert tools.main(["train", "t2", str(tmp_path / "weights"), *options]) == 0
    [path] = (tmp_path / "weights").glob("*/card.json")
    noted = json.loads(path.read_text())["notes"]["options"]
    assert noted.get("optimiser", noted.get("training", {}).get("optimiser")) == optimiser


def test_one_training_is_in_one_folder(found, tmp_path, capsys, monkeypatch):
    def train(*options: str) -> list[str]:
        common = ["train", "t2", str(tmp_path / "weights"), "--bids-derivatives", str(tmp_path)]
        assert tools.main([*common, "--estimator", "polynomial", *options]) == 0
        return sorted(path.parent.name for path in (tmp_path / "weights").glob("*/card.json"))

    [name] = train()
    # Another version of the program that computes the same uses the same weights,
    monkeypatch.setattr(learned, "__version__", "99")
    assert train() == [name]
    assert "exists already" in capsys.readouterr().out
    # and one that does not trains them again, in their place; those of another training stay beside.
    (tmp_path / "weights" / name / "weights.safetensors").write_bytes(b"damaged")
    assert train() == [name]
    assert "exists already" not in capsys.readouterr().out
    assert len(train("--seed", "1")) == 2


@pytest.mark.parametrize(
    ("estimator", "optimiser", "cause"),
    [
        ("mlp", "sdca", "no optimiser 'sdca'; known: adam, sgd, ftrl, proximal-adagrad"),
        ("wide-deep", "sdca", "no optimiser 'sdca'; known: adam, sgd, ftrl, proximal-adagrad"),
        ("polynomial", "adam", "polynomial has no optimiser 'adam'; known: exact, sdca"),
    ],
    ids=["mlp", "wide-deep", "polynomial"],
)
def test_an_optimiser_that_does_not_apply_is_refused(tmp_path, capsys, estimator, optimiser, cause):
    options = ["--bids-derivatives", str(tmp_path), "--estimator", estimator, "--optimiser", optimiser]
    assert tools.main(["train", "t2", str(tmp_path / "weights"), *options]) == 64
    assert cause in capsys.readouterr().err


@pytest.mark.parametrize(
    ("estimator", "options", "cause"),
    [
        ("rim", ["--device", "cuda", "--labels", "x"], "--device is for voxelwise estimators, and rim is a spatial"),
        ("resnet", ["--snr", "10", "--prior", "uniform"], "--prior and --snr are for voxelwise estimators"),
        (
            "mlp",
            ["--labels", "x", "--bids-dir", "x"],
            "--labels is for spatial networks (rim, resnet), and mlp is none",
        ),
        ("forest", ["--signed", "--times", "1"], "--times and --signed are for spatial networks"),
        ("nlls", ["--labels", "x"], "nlls is not learned"),
    ],
    ids=["device of rim", "noise of resnet", "labels of mlp", "times of forest", "not learned"],
)
def test_options_of_the_other_kind_are_refused(tmp_path, capsys, estimator, options, cause):
    assert tools.main(["train", "t2", str(tmp_path / "out"), "--estimator", estimator, *options]) == 64
    assert cause in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", ["-1", "1.5", "x", "9223372036854775808"])
@pytest.mark.parametrize("command", ["train t2", "demo"])
def test_seeds_are_whole_numbers(tmp_path, capsys, command, seed):
    assert tools.main([*command.split(), str(tmp_path / "out"), "--seed", seed]) == 64
    assert f"a seed is a whole number from 0 to 2^63 - 1, got {seed}" in capsys.readouterr().err


def test_other_protocols_are_trained_when_some_are_not(monkeypatch, tmp_path, capsys):
    """One that the model refuses, and one whose training fails; the others come after them."""
    protocols = {"01": (0.01,), "02": (0.01,), "03": (0.01, 0.02, 0.04), "04": (0.01, 0.02, 0.05)}
    items = [SimpleNamespace(acquisition=MultiEcho(times), subject=label) for label, times in protocols.items()]
    trained = []

    def fit(self, acquisition, **_):
        if acquisition.echo_time[-1] == 0.04:
            raise ProtocolError("no features")
        trained.append(acquisition)
        self.notes_ = {"validation": {}}

    monkeypatch.setattr(fits, "find_fits", lambda folder, model: items)
    monkeypatch.setattr(MultilayerPerceptron, "fit", fit)
    monkeypatch.setattr(MultilayerPerceptron, "save", lambda self, folder: None)
    arguments = ["train", "t2", str(tmp_path / "weights"), "--bids-derivatives", "x"]
    assert tools.main(arguments) == 1
    assert [protocol.echo_time[-1] for protocol in trained] == [0.05]
    lines = capsys.readouterr().err.splitlines()
    assert "protocol of sub-01 and 1 more: Model t2 needs at least 2 measurements" in lines[0]
    assert "protocol of sub-03: no features" in lines[1]
    assert lines[2] == "qmri: error: 2 of 3 protocols were not trained."
    items[2:] = []
    assert tools.main(arguments) == 1
    assert capsys.readouterr().err.startswith("qmri: error: Model t2 needs at least 2")


def test_protocols_that_motion_tells_apart_share_their_weights(monkeypatch, tmp_path, capsys):
    protocol = standard("tensor")
    items = []
    for index, angle in enumerate((0, 5, 60), start=1):
        turn = Rotation.from_euler("x", angle, degrees=True).as_matrix()
        direction = tuple(map(tuple, (np.array(protocol.direction) @ turn).tolist()))
        items.append(SimpleNamespace(acquisition=replace(protocol, direction=direction), subject=f"0{index}"))
    trained = []

    def fit(self, acquisition, **_):
        trained.append(acquisition)
        self.notes_ = {"validation": {}}

    monkeypatch.setattr(fits, "find_fits", lambda folder, model: items)
    monkeypatch.setattr(MultilayerPerceptron, "fit", fit)
    monkeypatch.setattr(MultilayerPerceptron, "save", lambda self, folder: None)
    assert tools.main(["train", "tensor", str(tmp_path / "weights"), "--bids-derivatives", "x"]) == 1
    assert trained == [items[0].acquisition]
    lines = capsys.readouterr().err.splitlines()
    assert "protocol of sub-03: " in lines[0]
    assert "for other gradient directions" in lines[0]
    assert lines[1] == "qmri: error: 1 of 3 protocols were not trained."


def test_several_folders_may_follow_or_repeat_the_option(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(fits, "find_fits", lambda folder, model: seen.append(folder.name) or [])
    monkeypatch.setattr(command, "_for_each", lambda pairs, train: None)
    tools.main(["train", "t2", str(tmp_path), "--bids-derivatives", "a", "b", "--bids-derivatives", "c"])
    assert seen == ["a", "b", "c"]


def test_help_names_estimators_and_defaults(capsys):
    with pytest.raises(SystemExit):
        tools.main(["train", "t2", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    kinds = load_estimators()
    assert set(command.VOXELWISE) == {name for name, kind in kinds.items() if issubclass(kind, LearnedEstimator)}
    assert set(command.SPATIAL) == {name for name, kind in kinds.items() if issubclass(kind, SpatialNetwork)}
    assert f"voxelwise: {', '.join(command.VOXELWISE)}; spatial, for T1 and T2: {', '.join(command.SPATIAL)}" in text
    assert f"(default: {SNR[0]:g} {SNR[1]:g})" in text
    assert "usage: qmri train t2 folder [options]" in text
    assert "Separate several values by spaces, and put such options after the folder." in text
