"""Forests and boosted trees, against scikit-learn, the exact posterior, the paper and the simulated truth."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor

from qmri_bidsapp.core.acquisition import Diffusion, MultiEcho
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.core.prior import Uniform
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.errors import UsageError, WeightsError
from qmri_bidsapp.estimators.learned.base import LearnedEstimator
from qmri_bidsapp.estimators.learned.boosting import GradientBoosting
from qmri_bidsapp.estimators.learned.forest import RandomForest
from qmri_bidsapp.estimators.learned.trees import TreeEnsemble
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.estimators.posterior.grid import GridPosterior
from qmri_bidsapp.evaluation.standards import signals
from qmri_bidsapp.evaluation.table3 import table3
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.smt import SphericalMeanTechnique
from qmri_bidsapp.registry import get_model

FIXED = Noise("gaussian", (25.0, 25.0))
#: A small part of the training.
SHORT: dict[type[LearnedEstimator], dict[str, float]] = {
    RandomForest: {"n_trees": 25, "n_examples": 2**13, "n_combinations": 2**16},
    GradientBoosting: {"n_trees": 30, "learning_rate": 0.2, "n_examples": 2**14, "n_combinations": 2**16},
}
KINDS = pytest.mark.parametrize("kind", SHORT, ids=lambda kind: kind.name)


@pytest.fixture(scope="module", params=SHORT, ids=lambda kind: kind.name)
def trained(request) -> LearnedEstimator:
    return request.param(SphericalMeanTechnique(), noise=FIXED, **SHORT[request.param]).fit(table3.PROTOCOL)


def voxels(model: SignalModel, protocol, n: int, snr: float, seed: int = 1, **ranges):
    """True parameters of amplitude 100 from the prior, and signals with Gaussian noise relative to the largest."""
    rng = np.random.default_rng(seed)
    theta = np.insert(Uniform(model.parameters[1:], ranges).draw(n, rng), 0, 100.0, axis=1)
    clean = signals(model, theta, protocol)
    return theta, clean + clean.max(axis=1, keepdims=True) / snr * rng.standard_normal(clean.shape) / np.sqrt(
        protocol.n_averages
    )


def data(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    # Few distinct values, so that thresholds lie halfway between neighbours and some features on thresholds.
    features = (rng.integers(0, 50, (n, 4)) / 7).astype(np.float32)
    return features, np.column_stack([np.sin(features).sum(1), features[:, 0] * features[:, 1]]) + rng.normal(
        0, 0.1, (n, 2)
    )


def on_thresholds(trees) -> np.ndarray:
    """Features at the thresholds, rounded to the two neighbours in float32."""
    found = np.concatenate([tree.tree_.threshold[tree.tree_.feature >= 0] for tree in trees])[:400]
    nearest = found.astype(np.float32)
    values = np.concatenate([nearest, *(np.nextafter(nearest, np.float32(end)) for end in (-np.inf, np.inf))])
    return np.random.default_rng(1).choice(values, (3000, 4))


def test_a_forest_is_that_of_scikit_learn_on_both_sides_of_a_threshold():
    features, targets = data(3000)
    forest = RandomForestRegressor(15, max_depth=12, random_state=0).fit(features, targets)
    ensemble = TreeEnsemble.from_sklearn(forest.estimators_, 1 / 15)
    for seen in (data(500, seed=1)[0], on_thresholds(forest.estimators_)):
        np.testing.assert_allclose(ensemble(torch.tensor(seen)), forest.predict(seen), atol=1e-5)


def test_boosted_trees_are_those_of_scikit_learn():
    features, targets = data(3000)
    boosted = GradientBoostingRegressor(init="zero", n_estimators=50, random_state=0).fit(features, targets[:, 1])
    trees = boosted.estimators_[:, 0]
    halves = [TreeEnsemble.from_sklearn(part, boosted.learning_rate) for part in (trees[:20], trees[20:])]
    seen = on_thresholds(trees)
    np.testing.assert_allclose(TreeEnsemble.joined(halves)(torch.tensor(seen))[:, 0], boosted.predict(seen), atol=1e-4)


def test_means_of_leaves_and_of_all_where_a_leaf_is_empty():
    features, targets = data(2000)
    forest = RandomForestRegressor(1, max_depth=3, bootstrap=False).fit(features, targets)
    ensemble = TreeEnsemble.from_sklearn(forest.estimators_)
    batches = [(torch.tensor(features[part]), torch.tensor(targets[part])) for part in (slice(700), slice(700, None))]
    np.testing.assert_allclose(ensemble.means(batches), ensemble.value, atol=1e-5)
    first = (torch.tensor(features[:1]), torch.tensor(targets[:1]))
    np.testing.assert_allclose(ensemble.means([first]), np.repeat(targets[:1], len(ensemble.value), axis=0))


def test_a_tree_without_a_split():
    features, targets = data(10)
    forest = RandomForestRegressor(3, max_depth=1, min_samples_leaf=10, bootstrap=False).fit(features, targets)
    ensemble = TreeEnsemble.from_sklearn(forest.estimators_, 1 / 3)
    np.testing.assert_allclose(ensemble(torch.tensor(features)), np.repeat([targets.mean(0)], 10, axis=0), rtol=1e-5)


def test_errors_are_near_those_of_the_paper_after_little_training(trained):
    def fit(signal):
        return trained.predict(signal).estimate[:, 1:] / [1.0, 1e-3]

    found, _ = table3.measure(table3.estimate(fit, table3.simulate(40)))
    paper = table3.PUBLISHED["RF-uniform-SNR25"]
    # An error below the exact posterior mean's (0.0628, 0.1048) would be noise.
    assert 0.06 < found.rmse[0] < 1.1 * paper.rmse[0]
    assert 0.10 < found.rmse[1] < 1.1 * paper.rmse[1]


def test_estimates_and_spreads_are_near_those_of_the_exact_posterior(trained):
    _, signal = voxels(trained.model, table3.PROTOCOL, 400, 25.0)
    exact = GridPosterior(SphericalMeanTechnique()).fit(table3.PROTOCOL).predict(signal, noise_std=np.full(400, 4.0))
    maps = trained.predict(signal)
    assert (maps.status == Status.OK).mean() > 0.98
    difference = maps.estimate - exact.estimate
    relative = np.sqrt((difference[:, 1:] ** 2).mean(axis=0) / (exact.std[:, 1:] ** 2).mean(axis=0))
    assert (relative < 0.45).all()
    assert np.nanmedian(maps.std / exact.std, axis=0) == pytest.approx(1.1, abs=0.2)


def test_intervals_cover_the_truth(trained):
    theta, signal = voxels(trained.model, table3.PROTOCOL, 20_000, 25.0)
    maps = trained.predict(signal)
    covered = np.abs(maps.estimate - theta) <= 1.96 * maps.std
    assert np.all((covered.mean(axis=0) > 0.93) & (covered.mean(axis=0) < 0.97))
    # Estimates with small standard deviations cover as well as the others.
    for column in (1, 2):
        certain = maps.std[:, column] < np.nanmedian(maps.std[:, column])
        assert 0.92 < covered[certain, column].mean() < 0.99


@KINDS
def test_noise_that_is_told_sets_the_spread(kind):
    estimator = kind(SphericalMeanTechnique(), noise=Noise("gaussian", (10.0, 50.0)), **SHORT[kind]).fit(
        table3.PROTOCOL
    )
    for snr in (12.0, 45.0):
        theta, signal = voxels(estimator.model, table3.PROTOCOL, 5000, snr)
        maps = estimator.predict(signal, noise_std=np.full(5000, 100 / snr))
        covered = (np.abs(maps.estimate - theta) <= 1.96 * maps.std).mean(axis=0)
        assert np.all((covered > 0.91) & (covered < 0.99))
    untold = estimator.predict(signal)
    assert np.nanmedian(untold.std[:, 0]) > 1.3 * np.nanmedian(maps.std[:, 0])


@KINDS
def test_relaxometry_with_its_derived_rate_and_amplitude(kind):
    model, protocol = get_model("t2"), MultiEcho((0.0125, 0.025, 0.05, 0.08, 0.12, 0.2))
    prior = Uniform(model.parameters[1:], {"t2": (0.02, 0.3)})
    estimator = kind(model, prior=prior, noise=Noise("gaussian", (50.0, 50.0)), **SHORT[kind]).fit(protocol)
    theta, signal = voxels(model, protocol, 5000, 50.0, t2=(0.02, 0.3))
    maps = estimator.predict(signal)
    truth = np.column_stack([theta, 1 / theta[:, 1]])
    classical = NonLinearLeastSquares(model).fit(protocol).predict(signal)
    found, expected = (np.sqrt(((item.estimate / truth - 1) ** 2).mean(axis=0)) for item in (maps, classical))
    assert (found < 1.3 * expected).all()
    covered = (np.abs(maps.estimate - truth) < 1.96 * maps.std).mean(axis=0)
    assert np.all((covered > 0.92) & (covered < 0.98))


@KINDS
def test_same_seed_same_weights_whatever_the_threads_and_the_progress(kind):
    def weights(seed: int, n_threads: int, progress=None) -> dict[str, torch.Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        try:
            brief = kind.brief(SphericalMeanTechnique())
            return brief.fit(table3.PROTOCOL, seed=seed, progress=progress)._state()
        finally:
            torch.set_num_threads(before)

    steps: list[tuple[int, float]] = []
    first, second = weights(1, 1), weights(1, 2, lambda *step: steps.append(step))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [step for step, _ in steps] == [10, 20]
    assert all(0 < loss < 1 for _, loss in steps)
    third = weights(2, 1)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_saved_weights_give_the_same_maps(trained, tmp_path):
    trained.save(tmp_path / "w")
    again = type(trained)(SphericalMeanTechnique(), weights=tmp_path / "w").fit(table3.PROTOCOL)
    assert again.options() == trained.options()
    _, signal = voxels(trained.model, table3.PROTOCOL, 50, 25.0)
    first, second = trained.predict(signal), again.predict(signal)
    np.testing.assert_array_equal(first.estimate, second.estimate)
    np.testing.assert_array_equal(first.std, second.std)


def test_a_forest_that_was_stopped_ends_as_it_would_have(tmp_path):
    class StoppedError(Exception):
        pass

    def stop(step: int, _loss: float) -> None:
        if step == 20:
            raise StoppedError

    def forest() -> RandomForest:
        return RandomForest(SphericalMeanTechnique(), n_trees=25, n_examples=2**9, n_combinations=2**12)

    whole, path = forest().fit(table3.PROTOCOL), tmp_path / "checkpoint"
    with pytest.raises(StoppedError):
        forest().fit(table3.PROTOCOL, progress=stop, checkpoint=path)
    steps: list[int] = []
    resumed = forest().fit(table3.PROTOCOL, progress=lambda step, _: steps.append(step), checkpoint=path)
    assert steps == [20, 25]
    assert all(torch.equal(value, whole._state()[name]) for name, value in resumed._state().items())
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match="delete it to start again"):
        forest().fit(table3.PROTOCOL, checkpoint=path)


@KINDS
def test_options_are_checked_and_in_the_key(kind):
    with pytest.raises(UsageError, match="at least one"):
        kind(SphericalMeanTechnique(), n_trees=0)
    changes = ({}, {"n_trees": 7}, {"max_depth": 3}, {"min_samples_leaf": 9}, {"n_examples": 999})
    assert len({kind(SphericalMeanTechnique(), **change).cache_key(table3.PROTOCOL) for change in changes}) == 5


def test_boosting_that_overshoots_ends_on_the_bound_and_says_so():
    estimator = GradientBoosting.brief(SphericalMeanTechnique()).fit(table3.PROTOCOL)
    saturated = copy.deepcopy(estimator)
    saturated._outputs[1].value += 1.0
    maps = saturated.predict(table3.simulate(2).reshape(-1, 5)[500:520])
    assert (maps.status == Status.AT_BOUND).all()
    np.testing.assert_allclose(maps.estimate[:, 1], 1.0, rtol=1e-6)
    assert np.isnan(maps.std[:, 1]).all()
    assert np.isfinite(maps.std[:, [0, 2]]).all()


def test_nodes_that_lead_round_in_a_circle_are_refused():
    ensemble = GradientBoosting.brief(SphericalMeanTechnique()).fit(table3.PROTOCOL)._variance
    state = ensemble.state()
    first = int(state["child"][0])
    # Back to the root; and the same children twice, whose number would grow with every level.
    for place, child in ((first, 0), (0, int(state["child"][first]))):
        changed = state["child"].clone()
        changed[place] = child
        with pytest.raises(WeightsError, match="do not form a tree"):
            TreeEnsemble.from_state({**state, "child": changed})


@pytest.mark.parametrize("kind", [GradientBoosting, RandomForest], ids=lambda kind: kind.name)
def test_rounding_errors_of_the_signals_move_hardly_any_voxel(kind: type[LearnedEstimator]) -> None:
    """Trees are piecewise constant: rounding may take a voxel across a threshold, but seldom.

    The mean signal without diffusion weighting, over itself, is one but for rounding: no tree may split on it.
    """
    model = get_model("tensor")
    rng = np.random.default_rng(0)
    axes = rng.standard_normal((30, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    acquisition = Diffusion((0.0,) * 4 + (1000.0,) * 30, ((0.0, 0.0, 0.0),) * 4 + tuple(map(tuple, axes)))
    estimator = kind.brief(model).fit(acquisition)
    theta = np.insert(model.default_prior().draw(1000, rng), 0, 100.0, axis=1)
    clean = signals(model, theta, acquisition)
    noisy = clean + rng.standard_normal(clean.shape)
    first, second = (
        estimator.predict(noisy * (1 + size * rng.standard_normal(noisy.shape))) for size in (0.0, np.finfo("f4").eps)
    )
    moved = np.abs(second.estimate - first.estimate) > 0.01 * first.std
    assert moved.any(axis=1).mean() < 0.01
