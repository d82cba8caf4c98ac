"""The multilayer perceptron, against the exact posterior and the simulated truth."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from qmri_bidsapp.core.acquisition import MultiEcho, SphericalMean
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.core.prior import Uniform
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.errors import PriorError, UsageError, WeightsError
from qmri_bidsapp.estimators.learned.mlp import MultilayerPerceptron
from qmri_bidsapp.estimators.learned.training import Training
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.estimators.posterior.grid import GridPosterior
from qmri_bidsapp.evaluation.standards import signals
from qmri_bidsapp.evaluation.table3 import table3
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.smt import SphericalMeanTechnique
from qmri_bidsapp.registry import get_model

SHORT = Training(steps=1500, batch_size=512)
FIXED = Noise("gaussian", (25.0, 25.0))


@pytest.fixture(scope="module")
def trained() -> MultilayerPerceptron:
    return MultilayerPerceptron(SphericalMeanTechnique(), noise=FIXED, training=SHORT).fit(table3.PROTOCOL)


def voxels(model: SignalModel, protocol, n: int, snr: float, seed: int = 1, **ranges):
    """True parameters of amplitude 100 from the prior, and signals with Gaussian noise relative to the largest."""
    rng = np.random.default_rng(seed)
    theta = np.insert(Uniform(model.parameters[1:], ranges).draw(n, rng), 0, 100.0, axis=1)
    clean = signals(model, theta, protocol)
    return theta, clean + clean.max(axis=1, keepdims=True) / snr * rng.standard_normal(clean.shape) / np.sqrt(
        protocol.n_averages
    )


def test_errors_are_those_of_the_paper_after_little_training(trained):
    def fit(signal):
        return trained.predict(signal).estimate[:, 1:] / [1.0, 1e-3]

    found, _ = table3.measure(table3.estimate(fit, table3.simulate(40)))
    paper = table3.PUBLISHED["Net-uniform-SNR25"]
    # Within 3 % of the paper's; an error below the exact posterior mean's (0.0628, 0.1048) would be noise.
    assert 0.06 < found.rmse[0] < 1.03 * paper.rmse[0]
    assert 0.10 < found.rmse[1] < 1.03 * paper.rmse[1]


def test_estimates_and_spreads_are_those_of_the_exact_posterior(trained):
    _, signal = voxels(trained.model, table3.PROTOCOL, 400, 25.0)
    exact = GridPosterior(SphericalMeanTechnique()).fit(table3.PROTOCOL).predict(signal, noise_std=np.full(400, 4.0))
    maps = trained.predict(signal)
    assert (maps.status == Status.OK).all()
    difference = maps.estimate - exact.estimate
    relative = np.sqrt((difference[:, 1:] ** 2).mean(axis=0) / (exact.std[:, 1:] ** 2).mean(axis=0))
    assert (relative < 0.3).all()
    assert np.nanmedian(maps.std / exact.std, axis=0) == pytest.approx(1.0, abs=0.12)


def test_intervals_cover_the_truth(trained):
    theta, signal = voxels(trained.model, table3.PROTOCOL, 20_000, 25.0)
    maps = trained.predict(signal)
    covered = (np.abs(maps.estimate - theta) <= 1.96 * maps.std).mean(axis=0)
    assert np.all((covered > 0.93) & (covered < 0.97))
    assert maps.std[0, 1:] != pytest.approx(maps.std[1, 1:])


def test_noise_that_is_told_sets_the_spread():
    model = SphericalMeanTechnique()
    estimator = MultilayerPerceptron(model, noise=Noise("gaussian", (10.0, 50.0)), training=SHORT).fit(table3.PROTOCOL)
    for snr in (12.0, 45.0):
        theta, signal = voxels(model, table3.PROTOCOL, 20_000, snr)
        maps = estimator.predict(signal, noise_std=np.full(20_000, 100 / snr))
        covered = (np.abs(maps.estimate - theta)[:, 1:] <= 1.96 * maps.std[:, 1:]).mean(axis=0)
        assert np.all((covered > 0.92) & (covered < 0.98))
    untold = estimator.predict(signal)
    assert (untold.std[:, 1:] > maps.std[:, 1:]).mean() > 0.8


def test_relaxometry_with_its_derived_rate_and_amplitude():
    model, protocol = get_model("t2"), MultiEcho((0.0125, 0.025, 0.05, 0.08, 0.12, 0.2))
    prior = Uniform(model.parameters[1:], {"t2": (0.02, 0.3)})
    noise = Noise("gaussian", (50.0, 50.0))
    estimator = MultilayerPerceptron(model, prior=prior, noise=noise, training=SHORT).fit(protocol)
    theta, signal = voxels(model, protocol, 5000, 50.0, t2=(0.02, 0.3))
    maps = estimator.predict(signal)
    truth = np.column_stack([theta, 1 / theta[:, 1]])
    classical = NonLinearLeastSquares(model).fit(protocol).predict(signal)
    found, expected = (np.sqrt(((item.estimate / truth - 1) ** 2).mean(axis=0)) for item in (maps, classical))
    assert (found < 1.1 * expected).all()
    z = (maps.estimate - truth) / maps.std
    covered = (np.abs(z) < 1.96).mean(axis=0)
    assert np.all((covered > 0.92) & (covered < 0.98))


def test_voxels_without_a_reference_have_no_estimate(trained):
    signal = np.array([[-0.1, 0.5, 0.4, 0.3, 0.2], [1.0, 0.5, 0.4, 0.3, 0.2]])
    assert trained.predict(signal).status.tolist() == [Status.FAILED, Status.OK]


def test_same_seed_same_weights_whatever_the_threads():
    def weights(seed: int, n_threads: int) -> torch.Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        try:
            return (
                MultilayerPerceptron.brief(SphericalMeanTechnique())
                .fit(table3.PROTOCOL, seed=seed)
                ._state()["0.weight"]
            )
        finally:
            torch.set_num_threads(before)

    assert torch.equal(weights(1, 1), weights(1, 2))
    assert not torch.equal(weights(1, 1), weights(2, 1))


def test_saved_weights_give_the_same_maps(trained, tmp_path):
    trained.save(tmp_path / "w")
    again = MultilayerPerceptron(SphericalMeanTechnique(), weights=tmp_path / "w").fit(table3.PROTOCOL)
    _, signal = voxels(trained.model, table3.PROTOCOL, 50, 25.0)
    for first, second in zip(*(item.predict(signal).__dict__.values() for item in (trained, again)), strict=True):
        if isinstance(first, np.ndarray):
            np.testing.assert_array_equal(first, second)
    assert again.notes_["validation"]["diffusivity"]["coverage_of_95"] == pytest.approx(0.95, abs=0.02)


def test_weights_for_another_protocol_model_or_bounds_are_refused(trained, tmp_path):
    trained.save(tmp_path / "w")
    other = SphericalMean((0.0, 1000.0, 2000.0, 3500.0, 4900.0), table3.PROTOCOL.n_directions)
    with pytest.raises(WeightsError, match=r"for another protocol: protocol .*, needed"):
        MultilayerPerceptron(SphericalMeanTechnique(), weights=tmp_path / "w").fit(other)
    with pytest.raises(WeightsError, match="for another model"):
        MultilayerPerceptron(table3.BoundedAsPublished(), weights=tmp_path / "w").fit(table3.PROTOCOL)
    with pytest.raises(UsageError, match="either weights, or prior and noise"):
        MultilayerPerceptron(SphericalMeanTechnique(), weights=tmp_path / "w", noise=FIXED)


def test_a_foreign_prior_and_an_unknown_activation_are_refused():
    model = SphericalMeanTechnique()
    with pytest.raises(PriorError, match="other parameters than model smt"):
        MultilayerPerceptron(model, prior=Uniform(get_model("t2").parameters[1:])).fit(table3.PROTOCOL)
    with pytest.raises(UsageError, match="no activation 'tanh'; known: relu, silu"):
        MultilayerPerceptron(model, activation="tanh")


def test_all_that_the_weights_depend_on_is_in_the_key():
    model, protocol = SphericalMeanTechnique(), table3.PROTOCOL
    narrow = Uniform(model.parameters[1:], {"diffusivity": (1e-3, 3e-3)})
    keys = {
        MultilayerPerceptron(model).cache_key(protocol),
        MultilayerPerceptron(model).cache_key(protocol, seed=1),
        MultilayerPerceptron(model, noise=FIXED).cache_key(protocol),
        MultilayerPerceptron(model, prior=narrow).cache_key(protocol),
        MultilayerPerceptron(model, hidden=(8,)).cache_key(protocol),
        MultilayerPerceptron(model, training=SHORT).cache_key(protocol),
        MultilayerPerceptron(table3.BoundedAsPublished()).cache_key(protocol),
        MultilayerPerceptron(model).cache_key(SphericalMean((0.0, 1e3, 2e3), (6, 30, 30))),
    }
    assert len(keys) == 8
    assert MultilayerPerceptron(model).cache_key(protocol) in keys


def test_an_estimate_on_a_bound_says_so(trained):
    saturated = copy.deepcopy(trained)
    with torch.no_grad():
        saturated._network[-1].bias[1] += 100
    maps = saturated.predict(table3.simulate(2).reshape(-1, 5)[500:520])
    assert (maps.status == Status.AT_BOUND).all()
    np.testing.assert_allclose(maps.estimate[:, 1], 1.0, rtol=1e-6)
    assert np.isnan(maps.std[:, 1]).all()
    assert np.isfinite(maps.std[:, [0, 2]]).all()
