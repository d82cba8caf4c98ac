"""Standard deviations of spatial networks: what a head learns, where it is silent, and that estimates stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qmri_bidsapp.artifacts.weights import load_weights, save_weights
from qmri_bidsapp.core.acquisition import InversionRecovery, MultiEcho
from qmri_bidsapp.core.noise import add_gaussian, add_rician
from qmri_bidsapp.estimators.spatial import error_training
from qmri_bidsapp.estimators.spatial.error_head import ErrorHead, SliceNetwork, brightest, join_head, split_head
from qmri_bidsapp.estimators.spatial.error_training import (
    CHECKPOINT,
    HeadOptions,
    alone,
    calibrate,
    error_ratios,
    train_head,
)
from qmri_bidsapp.estimators.spatial.estimators import RecurrentInference, ResidualEstimation
from qmri_bidsapp.estimators.spatial.patches import draw_batch
from qmri_bidsapp.estimators.spatial.recurrent import RecurrentInferenceMachine
from qmri_bidsapp.estimators.spatial.residual import ResidualNetwork
from qmri_bidsapp.estimators.spatial.slices import Coordinates, Slices
from qmri_bidsapp.estimators.spatial.trials import PROTOCOLS, draw_scene, measure
from qmri_bidsapp.estimators.spatial.virtual_heads import label_phantom, structures_of
from qmri_bidsapp.models.relaxometry import InversionRecoveryT1, SpinEchoT2

T1, T2 = InversionRecoveryT1(), SpinEchoT2()
ECHOES = MultiEcho((0.01, 0.02, 0.04, 0.08, 0.16, 0.32))
HEAD = structures_of(label_phantom())
OTHER_HEAD = structures_of(label_phantom((72, 60, 66)))
SMALL = HeadOptions(n_iterations=6, n_series=2, size=16, n_calibration=2)


def small_machine() -> RecurrentInferenceMachine:
    """A machine that never learned: its errors are those of the first guess."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RecurrentInferenceMachine(T2, n_features=8, n_steps=2).eval().requires_grad_(False)


def residual_network() -> ResidualNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResidualNetwork(T2, 6, (8, 8, 6)).eval().requires_grad_(False)


def test_intervals_cover_the_truth_on_another_head_at_low_and_high_noise() -> None:
    network = small_machine()
    options = HeadOptions(n_iterations=150, n_series=4, size=20, n_calibration=20, learning_rate=1e-2)
    head = train_head(network, T2, [HEAD], options)
    before = head.factor.clone()
    calibrate(network, head, T2, [HEAD], options)
    assert not torch.equal(head.factor, before)
    covered = []
    for noise in (0.02, 0.2):
        batches = [
            draw_batch(T2, [OTHER_HEAD], (9, i), n_protocols=8, n_patches=1, size=20, noise_std=noise)
            for i in range(12)
        ]
        ratios = torch.cat([error_ratios(network, head, T2, batch) for batch in batches])
        covered.append((ratios <= 1.96).double().mean(0).numpy())
    assert np.all((np.array(covered) > 0.88) & (np.array(covered) < 0.99))
    assert np.mean(covered, axis=0) == pytest.approx([0.95, 0.95], abs=0.03)


@pytest.mark.parametrize("model", [T1, T2], ids=["t1", "t2"])
def test_shipped_standard_deviations_are_those_of_the_errors(model: InversionRecoveryT1 | SpinEchoT2) -> None:
    protocol = PROTOCOLS[model.name]["31" if model is T1 else "6"]
    estimator = RecurrentInference(model).fit(protocol)
    ratios = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        scene = draw_scene(model, [HEAD], rng)
        for snr, is_rician in ((8, True), (40, False)):
            trial = measure(model, scene, protocol, snr, rng, is_rician=is_rician)
            mask = np.moveaxis(trial.brain, 0, -1)
            order = np.moveaxis(np.arange(trial.brain.size).reshape(trial.brain.shape), 0, -1)[mask].argsort()
            estimator.noise = "rician" if is_rician else "gaussian"
            maps = estimator.predict_volume(np.moveaxis(trial.signals[0], 0, 2)[mask], mask, noise_std=trial.noise_std)
            time = len(model.parameters) - 1
            error = maps.estimate[order, time] - scene.truth
            ratios.append(np.abs(error) / maps.std[order, time])
    assert np.isfinite(ratios[0]).mean() > 0.999
    assert 0.9 < np.mean([np.nanmean(part <= 1.96) for part in ratios]) < 0.99


@pytest.mark.parametrize("build", [small_machine, residual_network], ids=["rim", "resnet"])
def test_what_is_known_comes_with_the_estimates_of_the_network(build: type[SliceNetwork]) -> None:
    batch = draw_batch(T2, [HEAD], (0,), n_protocols=2, n_patches=2, size=16, protocol=ECHOES)
    network = build()
    normal, known = network.known(batch.series)
    torch.testing.assert_close(normal, network(batch.series)[-1], rtol=0, atol=0)
    assert known.shape == (4, network.n_known, 16, 16)
    noise = torch.cat([series.noise_std for series in batch.series]).log().expand(4, 16, 16)
    torch.testing.assert_close(known[:, -1], noise)


@pytest.mark.parametrize("build", [small_machine, residual_network], ids=["rim", "resnet"])
def test_the_network_stays_and_the_same_seed_gives_the_same_head(build: type[SliceNetwork]) -> None:
    network = build()
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def weights(seed: int) -> torch.Tensor:
        head = train_head(network, T2, [HEAD], replace(SMALL, seed=seed), protocol=ECHOES)
        calibrate(network, head, T2, [HEAD], SMALL, protocol=ECHOES)
        return torch.cat([value.flatten() for value in head.state_dict().values()])

    first, same, other = map(weights, (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert first.isfinite().all()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    network = small_machine()
    whole = train_head(network, T2, [HEAD], SMALL)
    stop = RuntimeError("stop")

    def interrupt(row: dict[str, float]) -> None:
        if row["head_iteration"] == 4:
            raise stop

    with pytest.raises(RuntimeError, match="stop"):
        train_head(network, T2, [HEAD], SMALL, folder=tmp_path, every=2, report=interrupt)
    rows: list[dict[str, float]] = []
    resumed = train_head(network, T2, [HEAD], SMALL, folder=tmp_path, every=2, report=rows.append)
    assert [row["head_iteration"] for row in rows] == [6]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    # Of a network that learned more since, a head is trained anew.
    torch.nn.init.normal_(network.last.weight)
    train_head(network, T2, [HEAD], SMALL, folder=tmp_path, every=6, report=rows.append)
    assert (tmp_path / CHECKPOINT).exists()
    assert [row["head_iteration"] for row in rows] == [6, 6]


@pytest.mark.parametrize("add_noise", [add_gaussian, add_rician], ids=["gaussian", "rician"])
def test_the_brightest_image_is_found_under_noise(add_noise) -> None:
    rng = np.random.default_rng(0)
    clean = np.broadcast_to(np.array([0.2, 0.7, 0.4]), (2, 60, 60, 3))
    signals = torch.as_tensor(add_noise(clean, 0.5, rng), dtype=torch.float32)
    inside = torch.ones(2, 60, 60, dtype=torch.bool)
    inside[:, :20] = False
    signals[:, :20] = 9
    series = Slices(ECHOES, signals, inside, torch.full((1, 1, 1), 0.5), add_noise is add_rician)
    assert float(brightest(series, per_slice=False)) == pytest.approx(0.7, rel=0.05)
    assert brightest(series, per_slice=True).shape == (2,)


def test_voxels_alone_are_what_they_were_in_their_patch() -> None:
    batch = draw_batch(T2, [HEAD], (0,), n_protocols=2, n_patches=1, size=16)
    voxels = alone(batch, T2, np.random.default_rng(0))
    coordinates = Coordinates(T2)
    for index, series in enumerate(voxels.series):
        n = error_training.N_ALONE
        torch.testing.assert_close(series.signals.abs().amax(-1), torch.ones(n, 1, 1))
        theta = coordinates.physical(voxels.truth[index * n : (index + 1) * n].movedim(1, -1))
        clean = T2.signal(theta, series.acquisition)
        if not series.is_rician:
            residual = (series.signals - clean) / series.noise_std.unsqueeze(-1)
            assert float(residual.square().mean().sqrt()) == pytest.approx(1, abs=0.2)


@pytest.fixture(scope="module")
def estimator() -> RecurrentInference:
    return RecurrentInference(T1).fit(InversionRecovery((0.05, 0.2, 0.5, 1.0, 1.8, 3.0)))


def volume(estimator: RecurrentInference, noise: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = rng.random((12, 14, 2)) > 0.2
    n = int(mask.sum())
    theta = torch.tensor(np.stack([rng.uniform(0.6, 1, n), np.full(n, 1.9), rng.uniform(0.7, 1.5, n)], axis=-1))
    signals = T1.signal(theta, estimator.acquisition_).numpy()
    return add_rician(signals, noise, rng), mask


def test_standard_deviations_have_the_units_of_their_parameters(estimator: RecurrentInference) -> None:
    signals, mask = volume(estimator, 0.03)
    maps = estimator.predict_volume(signals, mask, noise_std=0.03)
    assert np.isfinite(maps.std).all()
    assert (maps.std > 0).all()
    larger = estimator.predict_volume(40 * signals, mask, noise_std=1.2)
    np.testing.assert_allclose(larger.std, maps.std * [40, 1, 1, 1], rtol=1e-2)
    np.testing.assert_allclose(maps.std[:, 3], maps.std[:, 2] / maps.estimate[:, 2] ** 2, rtol=1e-4)


def test_beyond_the_noise_of_the_training_there_are_none(estimator: RecurrentInference) -> None:
    signals, mask = volume(estimator, 2.0)
    maps = estimator.predict_volume(signals, mask, noise_std=2.0)
    assert np.isnan(maps.std).all()
    assert np.isfinite(maps.estimate).all()
    # The noise of a voxel counts.
    signals, mask = volume(estimator, 0.03)
    noise = np.full(len(signals), 0.03)
    noise[:5] = 5
    missing = np.isnan(estimator.predict_volume(signals, mask, noise_std=noise).std)
    assert missing[:5].all()
    assert not missing[5:].any()
    assert np.isnan(estimator.predict(signals[:4], noise_std=5.0).std).all()
    assert np.isfinite(estimator.predict(signals[:4], noise_std=0.03).std).all()


def test_what_is_on_a_bound_has_none(estimator: RecurrentInference) -> None:
    signals, mask = volume(estimator, 0.03)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimator._coordinates, "_high", torch.tensor([20.0, 3.0, 1.0]))
        maps = estimator.predict_volume(signals, mask, noise_std=0.03)
    on_bound = maps.estimate[:, 2] == 1
    assert 0 < on_bound.sum() < len(on_bound)
    np.testing.assert_array_equal(np.isnan(maps.std), np.stack([0 * on_bound, 0 * on_bound, on_bound, on_bound], 1))


@pytest.mark.parametrize("model", [T1, T2], ids=["t1", "t2"])
def test_weights_without_a_head_give_the_same_estimates_and_no_standard_deviations(model, tmp_path: Path) -> None:
    identity = RecurrentInference.identity(model, None)
    shipped = RecurrentInference.shipped(model)
    assert shipped is not None
    tensors, notes = load_weights(shipped, identity)
    network, head = split_head(tensors)
    assert set(head) == set(ErrorHead(1, 1).state_dict())
    save_weights(tmp_path, network, identity, notes)
    protocol = PROTOCOLS[model.name]["23" if model is T1 else "6"]
    theta = torch.tensor([0.8, 1.9, 0.8] if model is T1 else [0.8, 0.1])
    signals = model.signal(theta, protocol).numpy() + 0.05 * np.random.default_rng(0).standard_normal((15 * 9, 1))
    mask = np.ones((15, 9, 1), dtype=bool)
    without, whole = (RecurrentInference(model, weights=path).fit(protocol) for path in (tmp_path, None))
    first, second = (part.predict_volume(signals, mask, noise_std=0.05) for part in (without, whole))
    np.testing.assert_array_equal(first.estimate, second.estimate)
    assert np.isnan(first.std).all()
    assert np.isfinite(second.std).mean() > 0.9
    assert without.provenance().endswith("These weights provide no standard deviations.")
    assert "no standard deviations" not in whole.provenance()
    assert first.std_kind == "none: the weights do not provide it"
    assert "learned" in second.std_kind
    assert "learned" in RecurrentInference.std_kind


def test_a_residual_network_has_them_as_well(tmp_path: Path) -> None:
    untrained = ResidualEstimation.brief(T2).fit(ECHOES)
    network = untrained.network().eval()
    head = train_head(network, T2, [HEAD], SMALL, protocol=ECHOES)
    identity = ResidualEstimation.identity(T2, ECHOES)
    save_weights(tmp_path, join_head(network, head), identity, {})
    maps = ResidualEstimation(T2, weights=tmp_path).fit(ECHOES).predict(np.ones((3, 6)), noise_std=0.1)
    expected = untrained.predict(np.ones((3, 6)), noise_std=0.1)
    np.testing.assert_array_equal(maps.estimate, expected.estimate)
    assert np.isfinite(maps.std).all()
