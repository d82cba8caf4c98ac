"""The posterior, its interval and its evidence against numerical integration, simulation and a published table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import dblquad
from scipy.special import erf

from qmri_bidsapp.core.acquisition import MultiEcho, SphericalMean, SpoiledGradientEcho
from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.estimators.posterior.amplitude import Amplitude
from qmri_bidsapp.estimators.posterior.grid import GridPosterior
from qmri_bidsapp.models.compose import Composition
from qmri_bidsapp.models.relaxometry import SpinEchoT2
from qmri_bidsapp.models.smt import SphericalMeanTechnique
from qmri_bidsapp.models.steady_state import VariableFlipAngleT1
from qmri_bidsapp.registry import get_model, load_models
from qmri_bidsapp.solvers.cubature import Box, korobov_lattice, points_in

ECHO_TIMES = np.array([0.0125, 0.025, 0.05, 0.08, 0.12, 0.2])
#: Protocol of Gyori et al. 2021.
SHELLS = SphericalMean((0.0, 1000.0, 2000.0, 3500.0, 5000.0), (12, 32, 32, 32, 32))
NOISE = 4.0


def legendre(low: float, high: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss and Legendre."""
    x, weight = np.polynomial.legendre.leggauss(n)
    return low + (x + 1) / 2 * (high - low), weight / 2 * (high - low)


def moments(axis: np.ndarray, density: np.ndarray) -> tuple[float, float, float]:
    """Integral, mean and standard deviation; the weights are part of the density."""
    total = density.sum()
    mean = (axis * density).sum() / total
    return total, mean, np.sqrt(((axis - mean) ** 2 * density).sum() / total)


@pytest.mark.parametrize("t2", [0.03, 0.09, 0.8])
def test_known_noise_agrees_with_adaptive_quadrature(t2: float) -> None:
    """The longest T2 is hardly determined: its posterior reaches the bound."""
    rng = np.random.default_rng(3)
    signal = 100 * np.exp(-ECHO_TIMES / t2) + NOISE * rng.standard_normal(6)
    maps = GridPosterior(SpinEchoT2()).fit(MultiEcho(tuple(ECHO_TIMES))).predict(signal[None], noise_std=NOISE)

    def density(amplitude: float, time: float) -> float:
        residual = signal - amplitude * np.exp(-ECHO_TIMES / time)
        return np.exp(-(residual**2).sum() / (2 * NOISE**2) + 20)

    def integral(power: int) -> float:
        last = 4.0 if t2 > 0.5 else 6 * t2
        return dblquad(lambda a, t: t**power * density(a, t), 0.2 * t2, last, 40, 180, epsrel=1e-5)[0]

    total, first, second = (integral(power) for power in range(3))
    mean, std = first / total, np.sqrt(second / total - (first / total) ** 2)
    np.testing.assert_allclose(maps.estimate[0, 1], mean, atol=0.03 * std)
    np.testing.assert_allclose(maps.std[0, 1], std, rtol=0.02)
    prior = (4.0 - 0.001) * 20 * signal.max()
    evidence = np.log(total) - 20 - 6 * np.log(np.sqrt(2 * np.pi) * NOISE) - np.log(prior)
    assert maps.log_evidence[0] == pytest.approx(evidence, abs=0.01)


def test_unknown_noise_agrees_with_quadrature_over_it() -> None:
    echo_times = 0.0125 * np.arange(1, 13)
    signal = 100 * np.exp(-echo_times / 0.08) + NOISE * np.random.default_rng(1).standard_normal(12)
    maps = GridPosterior(SpinEchoT2()).fit(MultiEcho(tuple(echo_times))).predict(signal[None])
    amplitude, wa = legendre(70, 140, 120)
    time, wt = legendre(0.03, 0.2, 120)
    log_noise, wn = legendre(-0.5, 4, 60)
    residual = signal - amplitude[:, None, None] * np.exp(-echo_times / time[:, None])
    squares = (residual**2).sum(-1)[..., None]
    density = np.exp(-squares / (2 * np.exp(2 * log_noise))) / (np.sqrt(2 * np.pi) * np.exp(log_noise)) ** 12
    density = density * wa[:, None, None] * wt[:, None] * wn
    total, mean, std = moments(time, density.sum((0, 2)))
    np.testing.assert_allclose(maps.estimate[0, 1], mean, atol=0.03 * std)
    np.testing.assert_allclose(maps.std[0, 1], std, rtol=0.03)
    _, mean, std = moments(amplitude, density.sum((1, 2)))
    np.testing.assert_allclose(maps.estimate[0, 0], mean, atol=0.1 * std)
    np.testing.assert_allclose(maps.std[0, 0], std, rtol=0.05)
    evidence = np.log(total) - np.log((4.0 - 0.001) * 20 * signal.max())
    assert maps.log_evidence[0] == pytest.approx(evidence, abs=0.02)


@pytest.mark.parametrize(("fraction", "diffusivity"), [(0.4, 1.2e-3), (0.75, 2.6e-3), (0.2, 0.3e-3)])
def test_two_parameters_agree_with_quadrature(fraction: float, diffusivity: float) -> None:
    def mean_signal(v: np.ndarray, d: np.ndarray) -> np.ndarray:
        x = np.maximum(np.array(SHELLS.b_value) * d[..., None], 1e-12)
        v = v[..., None]
        stick = np.sqrt(np.pi / x) / 2 * erf(np.sqrt(x))
        return v * stick + (1 - v) * np.sqrt(np.pi / (v * x)) / 2 * erf(np.sqrt(v * x)) * np.exp(-(1 - v) * x)

    averages = np.array(SHELLS.n_directions)
    clean = 100 * mean_signal(np.array(fraction), np.array(diffusivity))
    signal = clean + NOISE / np.sqrt(averages) * np.random.default_rng(0).standard_normal(5)
    maps = GridPosterior(SphericalMeanTechnique()).fit(SHELLS).predict(signal[None], noise_std=NOISE)
    v, wv = legendre(1e-9, 1, 150)
    d, wd = legendre(1e-9, 3e-3, 150)
    s0, ws = legendre(92, 108, 120)
    shape = mean_signal(*np.meshgrid(v, d, indexing="ij"))
    squares = (averages * (signal - s0[:, None, None, None] * shape) ** 2).sum(-1)
    density = np.exp(-squares / (2 * NOISE**2)) * ws[:, None, None] * wv[:, None] * wd
    for column, axis, others in ((0, s0, (1, 2)), (1, v, (0, 2)), (2, d, (0, 1))):
        total, mean, std = moments(axis, density.sum(others))
        np.testing.assert_allclose(maps.estimate[0, column], mean, atol=0.06 * std)
        np.testing.assert_allclose(maps.std[0, column], std, rtol=0.06)
        cumulative = density.sum(others).cumsum() / total
        low, high = np.interp([0.025, 0.975], cumulative, axis)
        np.testing.assert_allclose(maps.lower[0, column], low, atol=0.25 * std)
        np.testing.assert_allclose(maps.upper[0, column], high, atol=0.25 * std)
    scale = np.log(np.sqrt(averages / (2 * np.pi)) / NOISE).sum()
    evidence = np.log(total) + scale - np.log(3e-3 * 5 * signal.max())
    assert maps.log_evidence[0] == pytest.approx(evidence, abs=0.03)


def simulate_smt(theta: np.ndarray, noise: float, seed: int) -> np.ndarray:
    clean = SphericalMeanTechnique().signal(torch.tensor(theta), SHELLS).numpy()
    return clean + noise / np.sqrt(SHELLS.n_directions) * np.random.default_rng(seed).standard_normal(clean.shape)


def fit_smt(signals: np.ndarray, noise: float) -> ParameterMaps:
    return GridPosterior(SphericalMeanTechnique()).fit(SHELLS).predict(signals, noise_std=noise)


@pytest.mark.parametrize("snr", [10.0, 25.0, 100.0])
def test_intervals_cover_what_is_drawn_from_the_prior(snr: float) -> None:
    """Whatever the data, of 95 % intervals 95 % hold a truth that was drawn from the prior."""
    n, rng = 8000, np.random.default_rng(0)
    theta = np.stack([np.full(n, 100.0), rng.uniform(0, 1, n), rng.uniform(0, 3e-3, n)], axis=1)
    maps = fit_smt(simulate_smt(theta, 100 / snr, 1), 100 / snr)
    assert (maps.status == Status.OK).mean() > 0.995
    for column in (1, 2):
        truth = theta[:, column]
        covered = (maps.lower[:, column] <= truth) & (truth <= maps.upper[:, column])
        assert 0.94 < covered.mean() < 0.96
        # The posterior mean has the least squared error, which is the mean of the posterior variances.
        error = np.sqrt(np.mean((maps.estimate[:, column] - truth) ** 2))
        assert error == pytest.approx(np.sqrt(np.mean(maps.std[:, column].astype(float) ** 2)), rel=0.06)


def test_error_of_the_posterior_mean_is_the_known_one() -> None:
    """Posterior mean of a uniform prior on 21 x 21 tissues at SNR 25: RMSE, bias and std of fraction and diffusivity.

    The expected values come from sums over a grid of fixed spacing. Where nothing diffuses the fraction is arbitrary,
    and such sums still depend on the spacing (RMSE 0.069 with 80 points per axis, 0.066 with 150): here it is lower.
    """
    n_repeats = 60
    mesh = np.meshgrid(np.linspace(0, 1, 21), np.linspace(0, 3e-3, 21), indexing="ij")
    theta = np.stack([np.full(441, 100.0), *(axis.ravel() for axis in mesh)], axis=1).repeat(n_repeats, axis=0)
    maps = fit_smt(simulate_smt(theta, 100 / 25, 0), 100 / 25)
    error = ((maps.estimate - theta)[:, 1:] * [1, 1e3]).reshape(441, n_repeats, 2)
    found = [np.sqrt((error**2).mean(1)), np.abs(error.mean(1)), error.std(1)]
    rmse, bias, std = (values.mean(0) for values in found)
    np.testing.assert_allclose(rmse, [0.0669, 0.1055], rtol=0.08)
    np.testing.assert_allclose([bias[1], *std], [0.0383, 0.0404, 0.0907], rtol=0.05)
    assert 0.03 < bias[0] < 0.0386


def test_evidence_prefers_the_model_that_made_the_data() -> None:
    """The log of the density is in nats: the odds that it states are kept."""
    n, rng = 4000, np.random.default_rng(5)

    class Slow(SpinEchoT2):
        """Of the same range of amplitudes, but T2 from 0.3 to 1 s only."""

        parameters = (SpinEchoT2.parameters[0], SpinEchoT2.parameters[1].__class__("t2", "s", (0.3, 1.0), 0.1, "T2"))

    class Fast(Slow):
        parameters = (Slow.parameters[0], Slow.parameters[1].__class__("t2", "s", (0.2, 0.3), 0.1, "T2"))

    is_slow = rng.random(n) < 0.5
    t2 = np.where(is_slow, rng.uniform(0.3, 1.0, n), rng.uniform(0.2, 0.3, n))
    signals = 100 * np.exp(-ECHO_TIMES / t2[:, None]) + NOISE * rng.standard_normal((n, 6))
    fits = [GridPosterior(model()).fit(MultiEcho(tuple(ECHO_TIMES))) for model in (Slow, Fast)]
    slow, fast = (fit.predict(signals, noise_std=NOISE).log_evidence.astype(float) for fit in fits)
    probability = 1 / (1 + np.exp(fast - slow))
    for low, high in ((0.2, 0.5), (0.5, 0.8), (0.8, 1.0)):
        chosen = (probability > low) & (probability < high)
        expected, spread = probability[chosen].mean(), 0.5 / np.sqrt(chosen.sum())
        assert abs(is_slow[chosen].mean() - expected) < 3 * spread


def test_transmit_field_far_from_one_is_taken_into_account() -> None:
    protocol = SpoiledGradientEcho((3, 6, 12, 18, 24), (0.02,) * 5)
    model, rng = VariableFlipAngleT1(), np.random.default_rng(2)
    n = 600
    b1 = rng.uniform(0.3, 1.8, n)
    theta = np.stack([np.full(n, 1000.0), rng.uniform(0.5, 3.0, n), b1], axis=1)
    clean = model.signal(torch.tensor(theta), protocol).numpy()
    noise = 0.01 * clean.max()
    signals = clean + noise * rng.standard_normal(clean.shape)
    maps = GridPosterior(model).fit(protocol).predict(signals, noise_std=noise, covariates=b1[:, None])
    assert (maps.status == Status.OK).all()
    for column, truth in ((1, theta[:, 1]), (2, 1 / theta[:, 1])):
        covered = (maps.lower[:, column] <= truth) & (truth <= maps.upper[:, column])
        assert 0.93 < covered.mean() < 0.97
    neutral = GridPosterior(model).fit(protocol).predict(signals, noise_std=noise)
    assert np.median(np.abs(neutral.estimate[:, 1] / theta[:, 1] - 1)) > 0.3


def test_noise_that_cannot_be_known_leaves_no_posterior() -> None:
    """Two echoes and two parameters: only the voxel whose noise is given has a posterior."""
    estimator = GridPosterior(SpinEchoT2()).fit(MultiEcho((0.02, 0.08)))
    maps = estimator.predict([[90.0, 40.0], [90.0, 40.0]], noise_std=np.array([1.0, np.nan]))
    assert maps.status.tolist() == [Status.OK, Status.FAILED]
    assert np.isnan(maps.estimate[1]).all()
    assert np.isnan(maps.log_evidence[1])


def test_supports_few_parameters_without_directions() -> None:
    supported = {name for name in load_models() if GridPosterior.supports(get_model(name))}
    assert {"t1", "t2", "t2star", "smt", "ivim", "vfa", "mtsat", "t2prep"} <= supported
    assert not any(isinstance(get_model(name), Composition) for name in supported)
    assert not {"tensor", "kurtosis", "noddi"} & supported


@pytest.mark.parametrize("n_axes", [1, 2, 3])
def test_lattice_integrates_a_truncated_gaussian(n_axes: int) -> None:
    """Sheared box that the unit cube cuts: mass of a Gaussian of independent axes, one of them at its bound."""
    unit = torch.tensor(korobov_lattice(1024, n_axes))
    assert all(len(np.unique(unit[:, axis])) == 1024 for axis in range(n_axes))
    std, centre = 0.02, torch.full((1, n_axes), 0.5, dtype=torch.float64)
    centre[0, 0] = 0.0
    root = 12 * std * (torch.eye(n_axes) + 0.3 * torch.ones(n_axes, n_axes).tril(-1)).double().unsqueeze(0)
    points = points_in(Box(centre, root), unit)
    density = torch.exp(-(((points.position - centre) / std) ** 2).sum(-1) / 2) / (np.sqrt(2 * np.pi) * std) ** n_axes
    assert float((density * points.log_volume.exp()).mean()) == pytest.approx(0.5, rel=0.01)


def test_amplitude_of_unknown_noise_is_students_t() -> None:
    from scipy.stats import t

    amplitude = Amplitude(torch.tensor([[2.0]]), torch.tensor([[1.5]]), 5.0)
    expected = t(5, 2.0, 1.5).cdf(4.0) - t(5, 2.0, 1.5).cdf(0.0)
    assert float(amplitude.log_mass(0.0, 4.0).exp()) == pytest.approx(expected, rel=2e-3)
    share = torch.linspace(0.01, 0.99, 9)
    quantile = amplitude.quantile(share, -1e9, 1e9)[0].numpy()
    np.testing.assert_allclose(quantile, t(5, 2.0, 1.5).ppf(share.numpy()), rtol=0.02, atol=0.02)
