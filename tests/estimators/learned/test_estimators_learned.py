"""What all learned estimators refuse, and what they do not claim to know."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from qmri_bidsapp.artifacts.weights import CARD, TENSORS, load_weights, save_weights
from qmri_bidsapp.core.acquisition import InversionRecovery, MultiEcho, SphericalMean
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.errors import UsageError, WeightsError
from qmri_bidsapp.estimators.learned.examples import Examples
from qmri_bidsapp.estimators.learned.features import Features
from qmri_bidsapp.estimators.learned.mlp import MultilayerPerceptron
from qmri_bidsapp.estimators.learned.polynomial import PolynomialRegression
from qmri_bidsapp.estimators.learned.training import Training
from qmri_bidsapp.models.relaxometry import SpinEchoT2
from qmri_bidsapp.registry import get_model

ECHOES = MultiEcho((0.01, 0.02, 0.04, 0.06, 0.09, 0.13))
SNR = (20.0, 200.0)


class Slower(SpinEchoT2):
    """The model as another version of the program might have it."""

    def signal(self, theta: torch.Tensor, acquisition: MultiEcho) -> torch.Tensor:
        return super().signal(theta, acquisition) ** 1.01


@pytest.fixture(scope="module")
def trained() -> MultilayerPerceptron:
    training = Training(steps=600, batch_size=512)
    return MultilayerPerceptron(SpinEchoT2(), noise=Noise("rician", SNR), training=training).fit(ECHOES)


@pytest.fixture
def weights(trained, tmp_path):
    trained.save(tmp_path / "weights")
    return tmp_path / "weights"


def test_weights_of_a_version_with_other_signals_are_refused(weights):
    with pytest.raises(WeightsError, match=r"version of the program that computes other signals\. Train weights"):
        MultilayerPerceptron(Slower(), weights=weights).fit(ECHOES)


def test_weights_of_a_version_with_other_features_are_refused(weights, monkeypatch):
    def swapped(self, *arguments):
        return features(self, *arguments).roll(1, dims=1)

    features = Features.__call__
    monkeypatch.setattr(Features, "__call__", swapped)
    with pytest.raises(WeightsError, match="computes other features or estimates"):
        MultilayerPerceptron(SpinEchoT2(), weights=weights).fit(ECHOES)


@pytest.mark.parametrize("name", ["target_mean", "target_ranges"])
def test_weights_whose_targets_mean_something_else_are_refused(trained, weights, name):
    tensors, notes = load_weights(weights, trained.identity(ECHOES))
    tensors[name] = 0.7 * tensors[name]
    save_weights(weights, tensors, trained.identity(ECHOES), notes)
    with pytest.raises(WeightsError, match="computes other features or estimates"):
        MultilayerPerceptron(SpinEchoT2(), weights=weights).fit(ECHOES)


def test_rounding_of_another_machine_is_no_other_version(trained, weights):
    tensors, notes = load_weights(weights, trained.identity(ECHOES))
    generator = torch.Generator().manual_seed(0)
    for name in ("probe.estimate", "probe.std", "probe.clean"):
        tensors[name] *= 1 + 1e-5 * torch.randn(tensors[name].shape, generator=generator)
    # A tree may take another branch in a voxel or two.
    tensors["probe.estimate"][:3] *= 2
    save_weights(weights, tensors, trained.identity(ECHOES), notes)
    assert MultilayerPerceptron(SpinEchoT2(), weights=weights).fit(ECHOES).notes_ == notes


def test_a_card_with_other_notes_is_refused(weights):
    card = json.loads((weights / CARD).read_text())
    card["notes"]["noise"]["snr"] = [1, 1000]
    (weights / CARD).write_text(json.dumps(card))
    with pytest.raises(WeightsError, match="belongs to other weights"):
        MultilayerPerceptron(SpinEchoT2(), weights=weights).fit(ECHOES)


@pytest.mark.parametrize("lost", ["2.weight", "input_mean", "probe.theta", "noise", "options"])
def test_weights_that_lack_a_part_are_refused(trained, weights, lost):
    identity = trained.identity(ECHOES)
    tensors, notes = ({k: v for k, v in part.items() if k != lost} for part in load_weights(weights, identity))
    save_weights(weights, tensors, identity, notes)
    with pytest.raises(WeightsError, match="does not hold complete weights of estimator mlp"):
        MultilayerPerceptron(SpinEchoT2(), weights=weights).fit(ECHOES)


def test_no_standard_deviation_where_the_noise_is_larger_than_in_the_training(trained):
    t2 = np.full(4, 0.05)
    signal = 100 * np.exp(-np.array(ECHOES.echo_time) / t2[:, None])
    # The reference is the signal of the first echo, from which noise may have taken two standard deviations.
    noise = signal[:, 0] / (SNR[0] - 2) * [0.5, 0.99, 1.01, np.nan]
    maps = trained.predict(signal, noise_std=noise)
    assert (maps.status == Status.OK).all()
    np.testing.assert_allclose(maps.estimate[:, 1], t2, rtol=0.1)
    assert np.isfinite(maps.std).all(1).tolist() == [True, True, False, True]
    assert np.isnan(maps.std[2]).all()


def test_hardly_any_voxel_like_those_of_the_training_loses_its_standard_deviation():
    low = Noise("gaussian", (3.0, 3.0))
    estimator = PolynomialRegression(SpinEchoT2(), noise=low, n_combinations=2**12).fit(ECHOES)
    t2 = np.exp(np.random.default_rng(0).uniform(np.log(0.02), np.log(0.3), 4000))
    clean = np.exp(-np.array(ECHOES.echo_time) / t2[:, None])
    sigma = clean[:, :1] / 3
    maps = estimator.predict(
        clean + sigma * np.random.default_rng(1).standard_normal(clean.shape), noise_std=sigma[:, 0]
    )
    assert np.isnan(maps.std[:, 0]).mean() < 0.02


def test_weights_from_hardly_any_signal_can_be_used(tmp_path):
    # Some voxels have no reference at this noise.
    noise = Noise("gaussian", (1.0, 1.0))
    model, protocol = get_model("smt"), SphericalMean((0.0, 1000.0, 2000.0), (1, 30, 30))
    PolynomialRegression(model, noise=noise, n_combinations=2**12).fit(protocol).save(tmp_path / "w")
    assert PolynomialRegression(model, weights=tmp_path / "w").fit(protocol).sha256_


def test_the_errors_in_the_card_are_those_of_voxels_that_were_not_learned(monkeypatch):
    seen = []
    call = Examples.__call__
    monkeypatch.setattr(Examples, "__call__", lambda self, n, g: seen.append(self) or call(self, n, g))
    PolynomialRegression(SpinEchoT2(), n_combinations=2**10).fit(ECHOES)
    first, last = seen[0].truth, seen[-1].truth
    assert len(first) == len(last) == 2**10
    assert not set(first[:, 0].tolist()) & set(last[:, 0].tolist())


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(UsageError, match="must not be negative, got -1"):
        MultilayerPerceptron.brief(SpinEchoT2()).fit(ECHOES, seed=-1)
    with pytest.raises(UsageError, match="at least one parameter combination, got 0"):
        MultilayerPerceptron(SpinEchoT2(), n_combinations=0)
    signed = InversionRecovery((0.05, 0.2, 0.6, 1.5, 3.0), signed=True)
    with pytest.raises(UsageError, match="series has signs"):
        MultilayerPerceptron(get_model("t1"), noise=Noise("rician", (20, 20))).fit(signed)


def test_training_without_noise(tmp_path):
    estimator = PolynomialRegression(SpinEchoT2(), noise=Noise("gaussian", (np.inf, np.inf)), n_combinations=2**13)
    estimator.fit(ECHOES).save(tmp_path / "w")

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    json.loads((tmp_path / "w" / CARD).read_text(), parse_constant=refuse)
    assert (tmp_path / "w" / TENSORS).exists()
    again = PolynomialRegression(SpinEchoT2(), weights=tmp_path / "w").fit(ECHOES)
    assert again.provenance().endswith("SNR inf to inf.")
    t2 = np.array([0.03, 0.06, 0.1])
    maps = again.predict(100 * np.exp(-np.array(ECHOES.echo_time) / t2[:, None]))
    np.testing.assert_allclose(maps.estimate[:, 1], t2, rtol=0.02)
