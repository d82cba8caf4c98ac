"""Learned estimators of models that turn with the tissue, against least squares and the simulated truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from qmri_bidsapp.core.prior import Empirical
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.errors import WeightsError
from qmri_bidsapp.estimators.learned.examples import simulate_voxels
from qmri_bidsapp.estimators.learned.mlp import MultilayerPerceptron
from qmri_bidsapp.estimators.learned.training import Training
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.estimators.likelihood.log_linear import WeightedLinearLeastSquares
from qmri_bidsapp.evaluation.standards import signals, standard
from qmri_bidsapp.models.directions import unit_vector
from qmri_bidsapp.models.noddi import Noddi
from qmri_bidsapp.models.rotation import turn
from qmri_bidsapp.registry import get_model

SNR = 30.0


def trained(name: str, snr: float = SNR) -> MultilayerPerceptron:
    noise, short = Noise("gaussian", (snr, snr)), Training(steps=800, batch_size=512)
    estimator = MultilayerPerceptron(get_model(name), noise=noise, training=short, n_combinations=2**15)
    return estimator.fit(standard(name))


@pytest.fixture(scope="module")
def noddi() -> MultilayerPerceptron:
    return trained("noddi")


def voxels(model, n: int, seed: int = 1, snr: float = SNR) -> tuple[np.ndarray, np.ndarray]:
    """Parameters and derived parameters, amplitude 1, in any orientation, and noisy signals."""
    rng = np.random.default_rng(seed)
    theta = torch.tensor(np.insert(model.default_prior().draw(n, rng), 0, 1.0, axis=1))
    theta = turn(model, theta, torch.tensor(Rotation.random(n, random_state=rng).as_matrix()))
    clean = signals(model, theta.numpy(), standard(model.name))
    return torch.cat([theta, model.derive(theta)], dim=1).numpy(), clean + rng.standard_normal(clean.shape) / snr


def angle(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Degrees between two axes given by polar angle and azimuth."""
    vectors = [unit_vector(torch.tensor(item, dtype=torch.float64)) for item in (first, second)]
    return np.rad2deg(np.arccos((vectors[0] * vectors[1]).sum(1).abs().clamp(max=1).numpy()))


def test_noddi_has_less_error_than_least_squares_and_as_good_directions(noddi):
    truth, signal = voxels(noddi.model, 2000)
    classical = NonLinearLeastSquares(noddi.model).fit(standard("noddi")).predict(signal)
    maps = noddi.predict(signal)
    found, expected = (np.sqrt(((item.estimate - truth) ** 2).mean(axis=0)) for item in (maps, classical))
    ndi, odi = 2, 3
    assert found[ndi] < 0.8 * expected[ndi]
    assert found[odi] < 0.9 * expected[odi]
    coherent = truth[:, odi] < 0.5
    error, usual = (np.median(angle(item.estimate[:, 4:], truth[:, 4:])[coherent]) for item in (maps, classical))
    assert error < 1.2 * usual


def test_intervals_of_scalars_cover_the_truth_and_those_of_angles_where_fibres_are_coherent(noddi):
    truth, signal = voxels(noddi.model, 20_000, seed=2)
    maps = noddi.predict(signal)
    covered = np.abs(maps.estimate - truth) <= 1.96 * maps.std
    assert np.all((covered.mean(axis=0)[:4] > 0.93) & (covered.mean(axis=0)[:4] < 0.97))
    # Away from the pole, where the azimuth has no meaning, and from where it is cut.
    coherent = (maps.std[:, 4] < 5) & (np.abs(truth[:, 4] - 45) < 30) & (np.abs(truth[:, 5]) < 150)
    assert coherent.mean() > 0.1
    assert np.all((covered[coherent].mean(axis=0)[4:] > 0.91) & (covered[coherent].mean(axis=0)[4:] < 0.98))


def test_scalars_do_not_depend_on_the_orientation(noddi):
    rng = np.random.default_rng(3)
    theta = torch.tensor([[1.0, 0.1, 0.6, 0.2, 40.0, 20.0]] * 200, dtype=torch.float64)
    turned = turn(noddi.model, theta, torch.tensor(Rotation.random(200, random_state=rng).as_matrix()))
    maps = noddi.predict(signals(noddi.model, turned.numpy(), standard("noddi")))
    assert (maps.estimate[:, 1:4].std(axis=0) < 0.25 * maps.std[:, 1:4].mean(axis=0)).all()
    assert np.median(angle(maps.estimate[:, 4:], turned[:, 4:].numpy())) < 1.5


def test_tensors_have_less_error_than_by_weighted_least_squares():
    # The less the data say, the more a posterior mean is worth: at this ratio little training is enough for all.
    estimator = trained("tensor", snr=10.0)
    truth, signal = voxels(estimator.model, 10_000, snr=10.0)
    maps = estimator.predict(signal)
    classical = WeightedLinearLeastSquares(estimator.model).fit(standard("tensor")).predict(signal)
    found, expected = (np.sqrt(((item.estimate - truth) ** 2).mean(axis=0)) for item in (maps, classical))
    assert (found[1:] < expected[1:]).all()
    covered = (np.abs(maps.estimate - truth) <= 1.96 * maps.std).mean(axis=0)
    assert np.all((covered[7:] > 0.93) & (covered[7:] < 0.97))
    assert np.all((covered[:7] > 0.92) & (covered[:7] < 0.975))


def test_saved_weights_give_the_same_maps(tmp_path):
    model = get_model("kurtosis")
    protocol = standard("noddi")
    estimator = MultilayerPerceptron.brief(model).fit(protocol)
    estimator.save(tmp_path / "w")
    again = MultilayerPerceptron(model, weights=tmp_path / "w").fit(protocol)
    signal = signals(model, np.insert(model.default_prior().draw(20, np.random.default_rng(0)), 0, 1.0, 1), protocol)
    np.testing.assert_array_equal(estimator.predict(signal).estimate, again.predict(signal).estimate)
    assert {"mk", "dxx", "vxxxx"} <= set(again.notes_["validation"])


def test_every_prior_is_turned_at_random():
    model = get_model("noddi")
    rng = np.random.default_rng(0)
    subjects = [rng.uniform([0.1, 0.4, 0.1, 10, -20], [0.2, 0.6, 0.3, 20, 20], (1000, 5)) for _ in range(3)]
    prior, noise = Empirical(model.parameters[1:], subjects), Noise("gaussian", (SNR, SNR))
    theta = simulate_voxels(model, standard("noddi"), prior, noise, 2**13, np.random.default_rng(1), "cpu").theta
    axis = unit_vector(theta[:, 4:])
    torch.testing.assert_close(axis.T @ axis / len(axis), torch.eye(3).double() / 3, atol=0.02, rtol=0)
    assert 0.39 < theta[:, 2].min() < theta[:, 2].max() < 0.61


def test_one_axis_at_most():
    supported = [MultilayerPerceptron.supports(Noddi.with_bundles(n)()) for n in range(4)]
    assert supported == [True, True, False, False]


def test_weights_serve_directions_turned_by_motion_and_no_others(noddi, tmp_path):
    noddi.save(tmp_path / "weights")
    protocol = standard("noddi")
    rotation = Rotation.from_euler("xyz", [5, -4, 3], degrees=True).as_matrix()

    def measured_with(direction: np.ndarray):
        return replace(protocol, direction=tuple(map(tuple, np.asarray(direction).tolist())))

    turned = measured_with(np.array(protocol.direction) @ rotation.T)
    again = MultilayerPerceptron(noddi.model, weights=tmp_path / "weights").fit(turned)
    signal = voxels(noddi.model, 500)[1]
    # The head has turned with the directions: scalars stay, as far as a short training has learned that the signs of a
    # voxel's axes mean nothing, and the fibres have turned.
    maps = noddi.predict(signal)
    before, after = maps.estimate, again.predict(signal).estimate
    difference = np.sqrt(((after - before)[:, :4] ** 2).mean(0) / (maps.std[:, :4] ** 2).mean(0))
    assert (difference < 0.4).all()
    expected = unit_vector(torch.tensor(before[:, 4:], dtype=torch.float64)).numpy() @ rotation.T
    found = unit_vector(torch.tensor(after[:, 4:], dtype=torch.float64)).numpy()
    coherent = before[:, 3] < 0.4
    assert np.median(np.rad2deg(np.arccos(np.abs((expected * found).sum(1)[coherent]).clip(max=1)))) < 3
    other = np.array(protocol.direction) @ Rotation.from_euler("x", 60, degrees=True).as_matrix()
    with pytest.raises(WeightsError, match=r"for other gradient directions: one differs by (59|60) degree"):
        MultilayerPerceptron(noddi.model, weights=tmp_path / "weights").fit(measured_with(other))
