"""Rice's distribution against scipy, and the estimator near the noise floor against what was simulated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import rice

from qmri_bidsapp.core.acquisition import (
    Acquisition,
    Diffusion,
    InversionRecovery,
    MultiEcho,
    SphericalMean,
    SpoiledGradientEcho,
)
from qmri_bidsapp.core.maps import ParameterMaps
from qmri_bidsapp.core.noise import add_rician
from qmri_bidsapp.core.rice import Columns, Magnitude, rice_moments
from qmri_bidsapp.errors import ProtocolError, UsageError
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.estimators.likelihood.rician import RicianLikelihood
from qmri_bidsapp.fitting import choice
from qmri_bidsapp.models.noddi import Noddi
from qmri_bidsapp.models.relaxometry import InversionRecoveryT1, SpinEchoT2
from qmri_bidsapp.models.smt import SphericalMeanTechnique

ECHOES = MultiEcho(tuple(0.01 * (i + 1) for i in range(32)))
SHELLS = SphericalMean((0.0, 1000.0, 2000.0, 3500.0, 5000.0), (12, 32, 32, 32, 32))
AUTO = ("auto",)


def sphere(n: int) -> tuple[tuple[float, float, float], ...]:
    z = 1 - (2 * np.arange(n) + 1) / n
    angle, radius = np.pi * (1 + 5**0.5) * np.arange(n), np.sqrt(1 - z**2)
    return tuple(zip((radius * np.cos(angle)).tolist(), (radius * np.sin(angle)).tolist(), z.tolist(), strict=True))


def test_mean_and_variance_agree_with_scipy() -> None:
    s = np.concatenate([np.linspace(0, 30, 301), [11.99, 12.01]])
    expected = rice(s).stats(moments="mv")
    mean, mean_slope, variance, variance_slope = (value.numpy() for value in rice_moments(torch.tensor(s)))
    np.testing.assert_allclose(mean, expected[0], atol=1e-6)
    np.testing.assert_allclose(variance, expected[1], atol=1e-6)
    step = 1e-4
    # Not across the seam of closed form and expansion.
    inner = (s > step) & (np.abs(s - 12) > step)
    ahead, behind = (rice_moments(torch.tensor(s[inner] + shift)) for shift in (step, -step))
    np.testing.assert_allclose((ahead[0] - behind[0]).numpy() / (2 * step), mean_slope[inner], atol=1e-5)
    np.testing.assert_allclose((ahead[2] - behind[2]).numpy() / (2 * step), variance_slope[inner], atol=1e-5)
    single = rice_moments(torch.tensor(s).float())
    np.testing.assert_allclose(single[2].numpy(), expected[1], atol=1e-4)


@pytest.mark.parametrize("s", [0.3, 1.0, 2.5, 8.0])
def test_fisher_information_agrees_with_integration_of_scipys_density(s: float) -> None:
    """Expected products of scores, which are differences of the log-density by signal and by sigma."""
    step = 1e-4

    def scores(x: float) -> tuple[float, float]:
        by_signal = rice.logpdf(x, s + step) - rice.logpdf(x, s - step)
        up, down = 1 + step, 1 - step
        by_sigma = rice.logpdf(x, s / up, scale=up) - rice.logpdf(x, s / down, scale=down)
        return by_signal / (2 * step), by_sigma / (2 * step)

    found = [value.item() for value in Magnitude("cpu").information(torch.tensor([[s]], dtype=torch.float64))]
    for value, (i, j) in zip(found, ((0, 0), (0, 1), (1, 1)), strict=True):
        expected = quad(lambda x, i=i, j=j: rice.pdf(x, s) * scores(x)[i] * scores(x)[j], 1e-6, s + 9, limit=200)[0]
        assert value == pytest.approx(expected, abs=2e-4)


def test_slopes_of_costs_and_order_of_columns() -> None:
    n_averages = torch.tensor([1.0, 6.0, 1.0, 30.0], dtype=torch.float64)
    noise, rng = Columns(n_averages), np.random.default_rng(0)
    x, s = (torch.tensor(rng.uniform(0, 15, (200, 4))) for _ in range(2))
    s.requires_grad_()
    cost, slope = noise.cost(x, s)
    (gradient,) = torch.autograd.grad(cost.sum(), s)
    torch.testing.assert_close(2 * slope, gradient)
    assert (cost >= 0).all()
    # Differences of the cost are those of scipy's log-likelihood.
    expected = -2 * rice.logpdf(x[:, 2].numpy(), s[:, 2].detach().numpy())
    reference = -2 * rice.logpdf(x[:, 2].numpy(), 1.0)
    ones = noise.cost(x, torch.ones_like(x))[0]
    np.testing.assert_allclose((cost - ones)[:, 2].detach().numpy(), expected - reference, atol=1e-8)


def test_reaches_the_maximum_that_scipy_finds() -> None:
    """For sigma that is known, at a signal-to-noise ratio of 8, on scipy's density."""
    times, sigma, rng = np.array([0.0125, 0.025, 0.05, 0.08, 0.12, 0.2]), 12.5, np.random.default_rng(2)
    signals = add_rician(100 * np.exp(-times / rng.uniform(0.05, 0.12, (12, 1))), sigma, rng)
    protocol = MultiEcho(tuple(times.tolist()))
    found = RicianLikelihood(SpinEchoT2()).fit(protocol).predict(signals, noise_std=sigma).estimate[:, :2]

    def cost(theta: np.ndarray, signal: np.ndarray) -> float:
        decay = 100 * theta[0] * np.exp(-times / (0.1 * theta[1]))
        return -rice.logpdf(signal, decay / sigma, scale=sigma).sum()

    for signal, theta in zip(signals, found.astype(float) / [100, 0.1], strict=True):
        best = minimize(cost, [1.0, 0.8], (signal,), method="Nelder-Mead", options={"fatol": 1e-10})
        assert cost(theta, signal) < best.fun + 1e-4
        np.testing.assert_allclose(theta, best.x, rtol=5e-3)


def fit(estimator, model, acquisition: Acquisition, theta: list[float], snr: float, n: int, *, known: bool):
    """Return truth, and the maps of n voxels of the same tissue."""
    rng, sigma = np.random.default_rng(1), theta[0] / snr
    clean = model.signal(torch.tensor([theta]).double(), acquisition).numpy()[0]
    signals = np.stack(
        [
            add_rician(np.full((n, count), value), sigma, rng).mean(axis=1)
            for value, count in zip(clean, acquisition.n_averages, strict=True)
        ],
        axis=1,
    )
    return estimator(model).fit(acquisition).predict(signals, noise_std=sigma if known else None)


CASES = {
    "t2": (SpinEchoT2(), ECHOES, [100.0, 0.06], 15.0, 8000),
    "smt": (SphericalMeanTechnique(), SHELLS, [100.0, 0.5, 1.5e-3], 15.0, 4000),
    "noddi": (
        Noddi(),
        Diffusion((0.0,) * 6 + (700.0,) * 32 + (2000.0,) * 64, ((0.0, 0.0, 0.0),) * 6 + sphere(32) + sphere(64)),
        [100.0, 0.25, 0.6, 0.2, 60.0, 40.0],
        15.0,
        1500,
    ),
}
#: Position of a parameter, its bias by least squares, at least, and by maximum likelihood, at most; relative.
BIAS = {"t2": (1, 0.2, 0.01), "smt": (1, 0.12, 0.01), "noddi": (2, 0.07, 0.02)}


@pytest.mark.parametrize("name", CASES)
def test_bias_near_the_noise_floor_vanishes_and_errors_have_the_stated_size(name: str) -> None:
    model, acquisition, theta, snr, n = CASES[name]
    index, of_least_squares, of_likelihood = BIAS[name]
    maps: dict[type, ParameterMaps] = {
        estimator: fit(estimator, model, acquisition, theta, snr, n, known=True)
        for estimator in (NonLinearLeastSquares, RicianLikelihood)
    }
    bias = {key: np.median(value.estimate[:, index]) / theta[index] - 1 for key, value in maps.items()}
    assert bias[NonLinearLeastSquares] > of_least_squares
    assert abs(bias[RicianLikelihood]) < of_likelihood
    found = maps[RicianLikelihood]
    p = len(theta)
    usable = np.isfinite(found.std[:, :p]).all(axis=1)
    assert usable.mean() > 0.99
    estimate, std = (values[usable, :p].astype(float) for values in (found.estimate, found.std))
    # Of skewed parameters it is the error over all truths that an estimate may stand for, above and below this one.
    most = np.array([1.35 if parameter.is_skewed else 1.1 for parameter in model.parameters])
    ratio = np.sqrt((std**2).mean(axis=0)) / estimate.std(axis=0)
    assert ((ratio > 0.9) & (ratio < most)).all()
    covered = (np.abs(estimate - theta) < 1.96 * std).mean(axis=0)
    assert ((covered > 0.93) & (covered < 0.97)).all()


def test_sigma_of_each_voxel_is_estimated_with_the_parameters() -> None:
    """With enough echoes as good as known: bias, standard deviation and coverage."""
    model, acquisition, theta, snr, n = CASES["t2"]
    maps = fit(RicianLikelihood, model, acquisition, theta, snr, n, known=False)
    estimate, std = (values[:, :2].astype(float) for values in (maps.estimate, maps.std))
    assert abs(np.median(estimate[:, 1]) / theta[1] - 1) < 0.01
    np.testing.assert_allclose(np.sqrt((std**2).mean(axis=0)), estimate.std(axis=0), rtol=0.1)
    covered = (np.abs(estimate - theta) < 1.96 * std).mean(axis=0)
    assert ((covered > 0.93) & (covered < 0.97)).all()
    known = fit(RicianLikelihood, model, acquisition, theta, snr, n, known=True)
    # What sigma takes of the information.
    assert 1.01 < np.median(std[:, 1]) / np.median(known.std[:, 1]) < 1.1


def test_sigma_is_estimated_only_where_it_is_not_given() -> None:
    rng = np.random.default_rng(0)
    signals = add_rician(100 * np.exp(-np.array(ECHOES.echo_time) / 0.06) * np.ones((4, 1)), 10.0, rng)
    estimator = RicianLikelihood(SpinEchoT2()).fit(ECHOES)
    mixed = estimator.predict(signals, noise_std=np.array([np.nan, 10.0, np.nan, 10.0]))
    np.testing.assert_allclose(mixed.estimate[::2], estimator.predict(signals).estimate[::2], rtol=1e-3)
    given = estimator.predict(signals, noise_std=10.0)
    np.testing.assert_allclose(mixed.estimate[1::2], given.estimate[1::2], rtol=1e-3)
    assert not np.allclose(mixed.estimate[::2], given.estimate[::2], rtol=1e-3)


def test_far_from_the_noise_it_is_least_squares() -> None:
    acquisition = InversionRecovery((0.05, 0.2, 0.4, 0.7, 1.1, 1.6, 2.3, 3.2, 5.0))
    theta = torch.tensor([[100.0, 1.9, t1] for t1 in (0.6, 1.0, 1.5, 2.2)]).double()
    signals = InversionRecoveryT1().signal(theta, acquisition).numpy()
    signals = add_rician(signals, 0.02, np.random.default_rng(0))
    first, second = (
        estimator(InversionRecoveryT1()).fit(acquisition).predict(signals)
        for estimator in (NonLinearLeastSquares, RicianLikelihood)
    )
    np.testing.assert_allclose(second.estimate, first.estimate, rtol=1e-4)
    np.testing.assert_allclose(second.std, first.std, rtol=0.02)


def test_values_below_zero_count_as_zero() -> None:
    """No magnitude is negative, but interpolation can make it so."""
    signals = 100 * np.exp(-np.array(ECHOES.echo_time) / 0.06)[None].repeat(2, axis=0)
    signals[0, -1], signals[1, -1] = -5.0, 0.0
    maps = RicianLikelihood(SpinEchoT2()).fit(ECHOES).predict(signals, noise_std=3.0)
    np.testing.assert_array_equal(maps.estimate[0], maps.estimate[1])


def test_signed_series_and_series_without_residuals_are_refused() -> None:
    with pytest.raises(ProtocolError, match="has signs"):
        RicianLikelihood(InversionRecoveryT1()).fit(InversionRecovery((0.1, 0.5, 1.0, 3.0), signed=True))
    with pytest.raises(ProtocolError, match="more measurements than"):
        RicianLikelihood(SpinEchoT2()).fit(MultiEcho((0.01, 0.05)))


def test_the_app_does_not_use_it_where_the_noise_floor_is_gone() -> None:
    axes = np.random.default_rng(0).standard_normal((60, 3))
    rows = tuple(map(tuple, (axes / np.linalg.norm(axes, axis=1, keepdims=True)).tolist()))
    diffusion = Diffusion((0.0,) + (1000.0,) * 30 + (2500.0,) * 30, ((0.0, 0.0, 0.0), *rows))
    pairs, notes = choice.choose("dwi", diffusion, models=("smt",), estimators=("rician",))
    assert pairs == (("smt", "nlls"),)
    assert "noise floor" in notes[0]
    with pytest.raises(UsageError, match="noise floor"):
        choice.check_choice(AUTO, ("smt:rician",))
    with pytest.raises(UsageError, match="noise floor"):
        choice.check_choice(("smt", "noddi"), ("rician",))
    choice.check_choice(AUTO, ("rician",))


def test_the_app_uses_it_for_magnitudes_alone() -> None:
    times = (0.1, 0.5, 1.0, 3.0)
    for estimators in (("rician",), ("t1:rician",)):
        pairs, _ = choice.choose("IRT1", InversionRecovery(times), models=AUTO, estimators=estimators)
        assert pairs == (("t1", "rician"),)
    signed = InversionRecovery(times, signed=True)
    pairs, notes = choice.choose("IRT1", signed, models=AUTO, estimators=("rician",))
    assert pairs == (("t1", "nlls"),)
    assert "has signs" in notes[0]
    with pytest.raises(ProtocolError, match="has signs"):
        choice.choose("IRT1", signed, models=AUTO, estimators=("t1:rician",))
    few = SpoiledGradientEcho((3.0, 15.0), (0.02, 0.02))
    with pytest.raises(ProtocolError, match="more measurements"):
        choice.choose("VFA", few, models=AUTO, estimators=("vfa:rician",))
