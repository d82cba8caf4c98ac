"""Spatial networks: what they are shown against automatic derivatives, and what a short training gains."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from qmri_bidsapp.artifacts.weights import TENSORS, save_weights
from qmri_bidsapp.core.acquisition import InversionRecovery, MultiEcho
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.errors import ProtocolError, UsageError, WeightsError
from qmri_bidsapp.estimators.spatial.estimators import RecurrentInference, ResidualEstimation
from qmri_bidsapp.estimators.spatial.patches import draw_batch, draw_protocol
from qmri_bidsapp.estimators.spatial.recurrent import (
    MAX_STEP,
    SPREAD_SCALE,
    WINDOW,
    RecurrentInferenceMachine,
    first_guess,
    likelihood_features,
    peak,
    window_sum,
)
from qmri_bidsapp.estimators.spatial.residual import ResidualNetwork
from qmri_bidsapp.estimators.spatial.slices import Coordinates, Slices
from qmri_bidsapp.estimators.spatial.training import CHECKPOINT, TrainingOptions, learning_rate, loss_of, train_on_heads
from qmri_bidsapp.estimators.spatial.trials import PROTOCOLS, phantom_errors, phantom_std
from qmri_bidsapp.estimators.spatial.virtual_heads import label_phantom, structures_of
from qmri_bidsapp.models.relaxometry import GradientEchoT2star, InversionRecoveryT1, SpinEchoT2

T1, T2 = InversionRecoveryT1(), SpinEchoT2()
ECHOES = MultiEcho((0.01, 0.02, 0.04, 0.08, 0.16, 0.32))
HEAD = structures_of(label_phantom())
IDENTITY = RecurrentInference.identity(T2, None)
SMALL = TrainingOptions(n_iterations=100, n_protocols=2, n_patches=2, size=24, learning_rate=3e-3)


def small_machine() -> RecurrentInferenceMachine:
    return RecurrentInferenceMachine(T2, n_features=8, n_steps=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a machine of full size that has hardly been trained."""
    folder = tmp_path_factory.mktemp("rim")
    options = TrainingOptions(n_iterations=3, n_protocols=2, n_patches=1, size=16)
    trained = train_on_heads(lambda: RecurrentInferenceMachine(T2), T2, [HEAD], options, identity=IDENTITY)
    save_weights(folder / "weights", trained.network.state_dict(), IDENTITY, {})
    return folder / "weights"


@pytest.mark.parametrize("model", [T1, T2], ids=["t1", "t2"])
def test_normalised_parameters_invert(model: InversionRecoveryT1 | SpinEchoT2) -> None:
    coordinates = Coordinates(model)
    normal = torch.linspace(-2, 2, 5).unsqueeze(-1).expand(-1, len(model.parameters))
    torch.testing.assert_close(coordinates.normal(coordinates.physical(normal)), normal)


@pytest.mark.parametrize(
    ("signed", "is_rician"), [(False, False), (True, False), (False, True)], ids=["magnitude", "signed", "rician"]
)
def test_evidence_agrees_with_automatic_derivatives(signed: bool, is_rician: bool) -> None:
    acquisition = InversionRecovery((0.05, 0.3, 0.9, 2.0), signed)
    coordinates = Coordinates(T1)
    rng = torch.Generator().manual_seed(0)
    signals = torch.rand(1, 2, 3, 4, generator=rng)
    normal = torch.randn(1, 2, 3, 3, generator=rng).requires_grad_()
    series = Slices(acquisition, signals, torch.ones(1, 2, 3, dtype=torch.bool), torch.full((1, 1, 1), 0.1), is_rician)
    expected = T1.signal(coordinates.physical(normal), acquisition)
    log_likelihood = -(signals - expected).square() / (2 * 0.1**2)
    if is_rician:
        # p(m) = m / sigma^2 exp(-(m^2 + f^2) / (2 sigma^2)) I0(m f / sigma^2); I0(x) = exp(x) i0e(x).
        log_likelihood = log_likelihood + torch.special.i0e(signals * expected / 0.1**2).log()
    (score,) = torch.autograd.grad(log_likelihood.sum(), normal)
    found = likelihood_features(T1, coordinates, series, normal)
    jacobian = torch.autograd.functional.jacobian(
        lambda value: T1.signal(coordinates.physical(value), acquisition), normal[0, 1, 2]
    )
    covariance = torch.linalg.inv(jacobian.T @ jacobian / 0.1**2 + torch.eye(3))
    step = covariance @ (score - normal)[0, 1, 2]
    torch.testing.assert_close(found[0, 1, 2, :3], step.clamp(-MAX_STEP, MAX_STEP), rtol=1e-3, atol=1e-4)
    spread = covariance.diagonal().log() / 2 / SPREAD_SCALE
    torch.testing.assert_close(found[0, 1, 2, 3:], spread, rtol=1e-3, atol=1e-4)


def test_the_first_guess_is_the_posterior_mean() -> None:
    # Against numerical integration over both parameters.
    coordinates = Coordinates(T2)
    truth = torch.tensor([1.0, 0.09])
    signals = T2.signal(truth, ECHOES) + 0.1 * torch.tensor([0.3, -1.0, 0.5, 0.8, -0.2, 0.1])
    series = Slices(
        ECHOES, signals.view(1, 1, 1, -1), torch.ones(1, 1, 1, dtype=torch.bool), torch.full((1, 1, 1), 0.1), False
    )
    axis = torch.linspace(-6, 6, 401)
    normal = torch.cartesian_prod(axis, axis)
    theta = coordinates.centre + coordinates.width * normal
    theta = torch.where(coordinates.is_log, theta.exp(), theta)
    cost = (signals - T2.signal(theta, ECHOES)).square().sum(-1) / 0.1**2 + normal.square().sum(-1)
    expected = (-cost / 2).softmax(0) @ normal
    torch.testing.assert_close(first_guess(T2, coordinates, series)[0, 0, 0], expected, rtol=0.02, atol=0.02)


def slices_of(t1: torch.Tensor, factor: float, noise: float, is_rician: bool = False) -> Slices:
    """Slices of tissue, their last columns outside, at the 31 inversion times; one seed."""
    acquisition, rng = PROTOCOLS["t1"]["31"], torch.Generator().manual_seed(0)
    amplitude = 0.65 + 0.1 * torch.rand(t1.shape, generator=rng)
    signals = T1.signal(torch.stack([amplitude, torch.full_like(t1, factor), t1], dim=-1), acquisition)
    signals = signals + noise * torch.randn(signals.shape, generator=rng)
    if is_rician:
        signals = torch.hypot(signals, noise * torch.randn(signals.shape, generator=rng))
    inside = torch.ones(t1.shape, dtype=torch.bool)
    inside[:, :, 25:] = False
    # Voxels outside have another factor.
    signals[:, :, 25:] = T1.signal(torch.tensor([0.7, 1.84, 1.0]), acquisition)
    return Slices(acquisition, signals, inside, torch.full((1, 1, 1), noise), is_rician)


def guess_of(series: Slices) -> torch.Tensor:
    coordinates = Coordinates(T1)
    return coordinates.physical(first_guess(T1, coordinates, series))


@pytest.mark.parametrize(("snr", "within"), [(5, 0.2), (10, 0.06), (100, 0.01)])
@pytest.mark.parametrize("is_rician", [False, True], ids=["gaussian", "rician"])
@pytest.mark.parametrize("factor", [1.7, 1.95])
def test_the_first_guess_of_what_voxels_share_comes_from_all_of_them(factor, is_rician, snr, within):
    # At SNR 10 one voxel determines the inversion factor to 0.4, three times the prior's width; 750 do to 0.02.
    rng = torch.Generator().manual_seed(1)
    t1 = torch.where(torch.rand(1, 30, 30, generator=rng) < 0.6, 0.85, 1.4)
    t1 = t1 * (1 + 0.05 * torch.rand(t1.shape, generator=rng))
    series = slices_of(t1, factor, 0.65 / snr, is_rician)
    found = guess_of(series)[series.inside]
    assert found[:, 1].mean() == pytest.approx(factor, abs=within)
    assert abs((found[:, 2] - t1[series.inside]) / t1[series.inside]).median() < 0.01 + within
    # On its own a voxel has what the prior expects, as far as it does not know better.
    alone = series._replace(signals=series.signals[:, 9:10, 9:10], inside=series.inside[:, 9:10, 9:10])
    assert snr > 10 or guess_of(alone)[0, 0, 0, 1] == pytest.approx(1.84, abs=0.12)


@pytest.mark.parametrize(("t1", "factor"), [(1.2, 1.78), (1.2, 1.9), (0.8, 1.75), (1.4, 1.84)])
def test_errors_of_the_grid_do_not_add_up_where_all_voxels_are_alike(t1, factor):
    series = slices_of(torch.full((1, 24, 24), t1), factor, 0.65 / 100)
    assert guess_of(series)[series.inside][:, 2].median() == pytest.approx(t1, rel=0.03)


def test_sums_over_windows_and_peaks_of_parabolas() -> None:
    values = torch.randn(2, 60, 50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = uniform_filter(values.numpy(), (1, WINDOW, WINDOW, 1), mode="constant") * WINDOW**2
    np.testing.assert_allclose(window_sum(values), expected, atol=1e-8)
    place = torch.tensor([3.3, 1.2, -1.0, 8.4])
    found, height = peak(2.0 - 0.7 * (torch.arange(8) - place.unsqueeze(-1)).square())
    torch.testing.assert_close(found, torch.tensor([3.3, 1.2, 0.0, 7.0]))
    torch.testing.assert_close(height, torch.tensor([2.0, 2.0, 1.3, 2.0 - 0.7 * 1.4**2]))
    place, height = peak(torch.tensor([[10.0, 4.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
    assert (place.tolist(), height.tolist()) == ([0.0, 0.0], [10.0, 0.0])


def test_voxels_outside_tell_nothing() -> None:
    batch = draw_batch(T2, [HEAD], (0,), n_protocols=1, n_patches=2, size=20)
    machine = small_machine()
    torch.nn.init.normal_(machine.last.weight)
    (series,) = batch.series
    wild = torch.where(series.inside.unsqueeze(-1), series.signals, 1e3)
    for network in (machine, ResidualNetwork(T2, series.signals.shape[-1], (8, 6)).eval()):
        torch.testing.assert_close(network([series])[-1], network([series._replace(signals=wild)])[-1])


@pytest.mark.parametrize("model", [T1, T2], ids=["t1", "t2"])
def test_drawn_protocols_vary_and_are_valid(model: InversionRecoveryT1 | SpinEchoT2) -> None:
    rng = np.random.default_rng(0)
    protocols = [draw_protocol(model, rng) for _ in range(200)]
    for protocol in protocols:
        model.check(protocol)
    counts = [protocol.n_measurements for protocol in protocols]
    assert min(counts) == 4
    assert max(counts) > 30
    assert len(set(protocols)) == 200


@pytest.mark.parametrize(
    ("protocol", "is_refused"),
    [
        (MultiEcho((0.001, 0.002, 0.003, 0.004)), True),
        (MultiEcho((0.08, 0.1, 0.2, 0.4)), True),
        (MultiEcho((0.06, 0.1, 0.2, 0.8)), False),
        (MultiEcho((0.03, 0.001, 0.02, 0.01)), False),
        (MultiEcho(tuple(np.linspace(0.01, 0.32, 50))), False),
        (InversionRecovery((2.0, 2.2, 2.4, 2.6)), True),
        (InversionRecovery((0.05, 0.1, 0.2, 0.3)), True),
        (InversionRecovery((0.8, 1.0, 2.0, 4.0), signed=True), False),
        (InversionRecovery((0.02, 0.1, 0.2, 0.35)), False),
    ],
    ids=["short echoes", "late echoes", "just", "out of order", "many", "late", "early", "just late", "just early"],
)
def test_protocols_that_do_not_tell_relaxation_times_are_refused(
    protocol: InversionRecovery | MultiEcho, is_refused: bool
) -> None:
    model = T2 if isinstance(protocol, MultiEcho) else T1
    if is_refused:
        with pytest.raises(ProtocolError, match=r"times that begin by .* use estimator nlls"):
            RecurrentInference.check(model, protocol)
    else:
        RecurrentInference.check(model, protocol)
    # Another network is for the protocol that it was trained for.
    ResidualEstimation.check(model, protocol)


def test_batches_repeat_with_the_seed() -> None:
    first, same, other = (draw_batch(T1, [HEAD], seed, n_protocols=2, size=20) for seed in ((0, 1), (0, 1), (0, 2)))
    torch.testing.assert_close(first.truth, same.truth)
    torch.testing.assert_close(first.series[1].signals, same.series[1].signals)
    assert not torch.equal(first.truth, other.truth)


def test_learning_rate_rises_stays_and_falls() -> None:
    assert learning_rate(0, 10_000) == pytest.approx(0.01)
    assert learning_rate(5000, 10_000) == 1
    assert learning_rate(8500, 10_000) == pytest.approx(0.5)
    assert learning_rate(9999, 10_000) < 0.001


def test_training_lowers_the_error_on_fresh_patches() -> None:
    network = train_on_heads(small_machine, T2, [HEAD], SMALL, identity=IDENTITY).network
    batch = draw_batch(T2, [HEAD], (99,), n_protocols=4, n_patches=2, size=24)
    with torch.no_grad():
        before, after = (float(loss_of(machine(batch.series)[-1:], batch)) for machine in (small_machine(), network))
    assert after < 0.85 * before


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    options = TrainingOptions(n_iterations=4, n_protocols=1, n_patches=1, size=16)
    whole = train_on_heads(small_machine, T2, [HEAD], options, identity=IDENTITY)
    stop = RuntimeError("stop")

    def interrupt(row: dict[str, float]) -> None:
        if row["iteration"] == 2:
            raise stop

    with pytest.raises(RuntimeError, match="stop"):
        train_on_heads(
            small_machine, T2, [HEAD], options, identity=IDENTITY, folder=tmp_path, every=2, report=interrupt
        )
    resumed = train_on_heads(small_machine, T2, [HEAD], options, identity=IDENTITY, folder=tmp_path, every=2)
    assert whole.planned == resumed.planned == [[0, 4]]
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], value, rtol=0, atol=0)


def test_the_same_seed_gives_the_same_weights() -> None:
    options = TrainingOptions(n_iterations=2, n_protocols=1, n_patches=1, size=16)
    identity = ResidualEstimation.identity(T2, ECHOES)

    def weights(seed: int) -> torch.Tensor:
        chosen = replace(options, seed=seed)
        build = lambda: ResidualNetwork(T2, 6, (8, 6))  # noqa: E731
        network = train_on_heads(build, T2, [HEAD], chosen, identity=identity, protocol=ECHOES).network
        return torch.cat([value.flatten() for value in network.state_dict().values()])

    first, same, other = map(weights, (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_training_goes_on_longer_but_not_as_another(tmp_path: Path) -> None:
    options = TrainingOptions(n_iterations=1, n_protocols=1, n_patches=1, size=16)

    def go_on(
        identity: dict[str, object] = IDENTITY, label_maps: dict[str, str] | None = None, **changes: int
    ) -> list[list[int]]:
        chosen = replace(options, **changes)
        facts = {"identity": identity, "label_maps": label_maps}
        return train_on_heads(small_machine, T2, [HEAD], chosen, folder=tmp_path, **facts).planned

    assert go_on() == [[0, 1]]
    assert go_on(n_iterations=2) == [[0, 1], [1, 2]]
    with pytest.raises(WeightsError, match="another training"):
        go_on(seed=1)
    with pytest.raises(WeightsError, match="another training"):
        go_on(RecurrentInference.identity(T1, None))
    with pytest.raises(WeightsError, match=r"other label maps \(training\)"):
        go_on(label_maps={"training": "a"})
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="no readable checkpoint"):
        go_on()


def test_estimates_do_not_depend_on_scale_order_or_nan_neighbours(folder: Path) -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((9, 8, 3)) > 0.2
    signals = 0.5 + rng.random((int(mask.sum()), ECHOES.n_measurements))
    signals[5], signals[7] = np.nan, 0
    estimator = RecurrentInference(T2, weights=folder).fit(ECHOES)
    maps = estimator.predict_volume(signals, mask, noise_std=0.1)
    assert maps.counts() == {"OK": len(signals) - 2, "NO_SIGNAL": 1, "INVALID_INPUT": 1}
    assert np.isnan(maps.estimate[[5, 7]]).all()
    assert np.isfinite(np.delete(maps.estimate, [5, 7], axis=0)).all()
    assert np.isnan(maps.std).all()
    np.testing.assert_allclose(maps.estimate[:, 2], 1 / maps.estimate[:, 1], rtol=1e-5)
    larger = estimator.predict_volume(40 * signals, mask, noise_std=4.0)
    np.testing.assert_allclose(larger.estimate[:, :2], maps.estimate[:, :2] * [40, 1], rtol=1e-3)
    # Slices lie across the widest spacing: with the axes swapped, the same slices.
    volume = np.full((*mask.shape, ECHOES.n_measurements), np.nan)
    volume[mask] = signals
    turned = np.moveaxis(mask, 2, 0)
    other = estimator.predict_volume(np.moveaxis(volume, 2, 0)[turned], turned, spacing=(3, 1, 1), noise_std=0.1)
    back = np.full(mask.shape, np.nan)
    np.moveaxis(back, 2, 0)[turned] = other.estimate[:, 1]
    np.testing.assert_allclose(back[mask], maps.estimate[:, 1], rtol=1e-4)


def test_the_noise_is_found_from_residuals(folder: Path) -> None:
    rng = np.random.default_rng(0)
    theta = torch.tensor(np.stack([rng.uniform(50, 150, 3000), rng.uniform(0.05, 0.2, 3000)], axis=-1))
    signals = T2.signal(theta, ECHOES).numpy() + 3 * rng.standard_normal((3000, 6))
    estimator = RecurrentInference(T2, weights=folder).fit(ECHOES)
    assert estimator._noise(signals.astype(np.float32)) == pytest.approx(3, rel=0.05)


def test_voxels_without_neighbours_are_estimated_alone(folder: Path) -> None:
    signals = np.random.default_rng(0).random((7, 6)) + 0.2
    estimator = RecurrentInference(T2, weights=folder).fit(ECHOES)
    maps = estimator.predict(signals, noise_std=0.1)
    assert maps.counts() == {Status.OK.name: 7}


def test_what_cannot_be_used_is_refused() -> None:
    assert not RecurrentInference.supports(GradientEchoT2star())
    with pytest.raises(ProtocolError, match="at least 4"):
        RecurrentInference(T2).fit(MultiEcho((0.01, 0.02, 0.03)))
    with pytest.raises(UsageError, match="qmri train t2 FOLDER --estimator resnet --labels DIR"):
        ResidualEstimation(T2).fit(ECHOES)


def test_foreign_or_damaged_weights_are_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match="another estimator and protocol and version"):
        ResidualEstimation(T2, weights=folder).fit(ECHOES)
    with pytest.raises(WeightsError, match="another model"):
        RecurrentInference(T1, weights=folder).fit(PROTOCOLS["t1"]["23"])
    with monkeypatch.context() as patch:
        patch.setattr(RecurrentInference, "network_version", "rim-3")
        with pytest.raises(WeightsError, match='another version: version "rim-2", needed "rim-3"'):
            RecurrentInference(T2, weights=folder).fit(ECHOES)
    with pytest.raises(WeightsError, match="None of the 0 weights"):
        RecurrentInference(T2, weights=tmp_path).fit(ECHOES)
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    data = (damaged / TENSORS).read_bytes()
    (damaged / TENSORS).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(WeightsError, match="SHA-256"):
        RecurrentInference(T2, weights=damaged).fit(ECHOES)
    save_weights(tmp_path / "other", {"last.weight": torch.ones(2)}, IDENTITY, {})
    with pytest.raises(WeightsError, match="belong to another network"):
        RecurrentInference(T2, weights=tmp_path / "other").fit(ECHOES)


def test_a_network_for_one_protocol_is_for_no_other(tmp_path: Path) -> None:
    other = MultiEcho((0.01, 0.02, 0.04, 0.08, 0.16, 0.3))
    for kind in (ResidualEstimation, RecurrentInference):
        estimator = kind.brief(T2).fit(ECHOES)
        save_weights(tmp_path / kind.name, estimator._network.state_dict(), kind.identity(T2, ECHOES), {})
        assert kind(T2, weights=tmp_path).fit(ECHOES).predict(np.ones((3, 6))).counts() == {"OK": 3}
        with pytest.raises(WeightsError, match="protocol"):
            kind(T2, weights=tmp_path / kind.name).fit(other)


@pytest.mark.parametrize("model", [T1, T2], ids=["t1", "t2"])
def test_shipped_weights_do_what_their_card_says(model: InversionRecoveryT1 | SpinEchoT2) -> None:
    """Also when the network, what it is shown, or the first guess changes, without a new `network_version`."""
    folder = RecurrentInference.shipped(model)
    assert folder is not None
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2e6
    protocol = PROTOCOLS[model.name]["31" if model is T1 else "6"]
    estimator = RecurrentInference(model).fit(protocol)
    assert "15 label maps, SNR 3 to 100" in estimator.provenance()
    found = phantom_errors(estimator._network, model, protocol)
    assert found._asdict() == pytest.approx(estimator.notes_["phantom"], rel=0.02, abs=1e-3)
    told = estimator.notes_["error_head"]
    assert estimator._head is not None
    stds = phantom_std(estimator._network, estimator._head, model, protocol)
    assert stds == pytest.approx(told["phantom_std"], rel=0.02)
    covered = told["coverage_of_95"][model.parameters[-1].name]
    assert 0.93 < covered["all"] < 0.97
    assert all(0.9 < share < 0.98 for share in covered.values())


def test_voxels_without_neighbours_do_not_influence_each_other() -> None:
    signals = np.random.default_rng(0).random((9, 6)) + 0.2
    estimator = RecurrentInference(T2).fit(ECHOES)
    whole = estimator.predict(signals, noise_std=0.05).estimate
    part = estimator.predict(signals[:2], noise_std=0.05).estimate
    np.testing.assert_allclose(part, whole[:2], rtol=1e-4)
