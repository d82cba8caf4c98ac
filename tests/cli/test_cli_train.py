"""``qmri train``: the optimiser that was asked for is used, or refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from qmri_bidsapp.bids import fits
from qmri_bidsapp.cli import tools
from qmri_bidsapp.core.acquisition import MultiEcho
from qmri_bidsapp.estimators.mlp import MultilayerPerceptron
from qmri_bidsapp.estimators.polynomial import PolynomialRegression
from qmri_bidsapp.estimators.training import Training


@pytest.fixture
def found(monkeypatch):
    """One fit of t2; little training."""
    protocol = MultiEcho((0.0125, 0.025, 0.05, 0.08, 0.12, 0.2))
    monkeypatch.setattr(fits, "find_fits", lambda folder, model: [SimpleNamespace(acquisition=protocol)])
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
