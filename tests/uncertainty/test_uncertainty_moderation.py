"""Coverage of intervals where residuals estimate the noise, constant or varying over voxels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest, t

from qmri_bidsapp.core.acquisition import MultiEcho
from qmri_bidsapp.core.maps import ParameterMaps
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.evaluation.standards import standard
from qmri_bidsapp.registry import get_estimator, get_model
from qmri_bidsapp.uncertainty import moderation, simulation
from qmri_bidsapp.uncertainty.moderation import COVERAGE, distribution_of, moderate, moderated

N = 20_000
ECHOES = MultiEcho((0.0125, 0.025, 0.05, 0.08, 0.12, 0.2))


def drawn(sigma: np.ndarray, freedom: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Errors of the stated size, and variances of that many residuals."""
    rng = np.random.default_rng(seed)
    return sigma * rng.standard_normal(len(sigma)), sigma**2 * rng.chisquare(freedom, len(sigma)) / freedom


def covered(error: np.ndarray, variance: np.ndarray) -> float:
    return float((np.abs(error) < 1.96 * np.sqrt(variance)).mean())


def inverse_chi_square(added: float, n: int = N) -> np.ndarray:
    """Standard deviations whose squares are scaled inverse chi-squared around 4."""
    return np.sqrt(4 * added / np.random.default_rng(7).chisquare(added, n))


@pytest.mark.parametrize("freedom", [1, 4, 28])
def test_distribution_over_the_series_is_found_again(freedom: int) -> None:
    added, centre = distribution_of(drawn(inverse_chi_square(10), freedom)[1], freedom)
    assert added == pytest.approx(10, rel=0.25)
    assert centre == pytest.approx(4, rel=0.05)
    added, centre = distribution_of(drawn(np.full(N, 2.0), freedom)[1], freedom)
    assert added > 20 * freedom
    assert centre == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("freedom", [1, 2, 4, 28])
@pytest.mark.parametrize("added", [5, 20, None], ids=lambda value: f"of {value}")
def test_errors_have_the_distribution_of_student(freedom: int, added: float | None) -> None:
    """Smyth 2004, section 4: t with both degrees of freedom together; here scaled to hold 95 % within 1.96."""
    sigma = np.full(N, 2.0) if added is None else inverse_chi_square(added)
    error, variance = drawn(sigma, freedom)
    ours = moderated(variance, freedom)
    assert covered(error, ours) == pytest.approx(COVERAGE, abs=0.01)
    degrees = 1e6 if added is None else freedom + added
    scaled = error / np.sqrt(ours) * t.ppf(0.975, degrees) / 1.96
    assert kstest(scaled, t(degrees).cdf).statistic < 0.02
    if freedom <= 4:
        assert covered(error, variance) < 0.9


def test_voxels_with_more_noise_keep_it() -> None:
    """Noise that rises to the threefold over space: no single level is forced on it."""
    sigma = np.linspace(1, 3, N)
    error, variance = drawn(sigma, 12)
    ours = np.sqrt(moderated(variance, 12))
    low, high = slice(0, N // 3), slice(2 * N // 3, N)
    one = np.full(N, np.square(sigma).mean())
    assert covered(error, ours**2) == pytest.approx(COVERAGE, abs=0.01)
    assert covered(error[high], ours[high] ** 2) > 0.92 > 0.89 > covered(error[high], one[high])
    assert covered(error[low], ours[low] ** 2) < 0.985 < 0.99 < covered(error[low], one[low])
    # Noise of 1.3 and 2.7 in the middle of each.
    assert np.median(ours[high]) / np.median(ours[low]) > 1.5


def test_voxels_that_the_model_cannot_follow_keep_their_variance() -> None:
    _, variance = drawn(np.ones(N), 4)
    variance[:200] *= 400
    ours = moderated(variance, 4)
    bad = variance[:200] > 50
    assert bad.mean() > 0.95
    assert (ours[:200][bad] > 0.9 * variance[:200][bad]).all()
    # The others are none the worse for them.
    np.testing.assert_allclose(np.median(ours[200:]), 1, rtol=0.1)
    assert (ours[200:] < 4).mean() > 0.99


def test_few_voxels_have_their_own() -> None:
    """Three degrees of freedom: the quantile of Student's t is 3.182 (tables)."""
    _, variance = drawn(np.ones(49), 3)
    np.testing.assert_allclose(moderated(variance, 3), variance * (3.182 / 1.96) ** 2, rtol=1e-3)
    _, variance = drawn(np.ones(50), 3)
    assert np.ptp(np.log(moderated(variance, 3))) < 0.5 * np.ptp(np.log(variance))


def measured(noise: np.ndarray, seed: int = 0) -> tuple[np.ndarray, ParameterMaps]:
    """Relaxation times, and maps of series of six echoes, of amplitude 100, without a noise level."""
    rng = np.random.default_rng(seed)
    time = rng.uniform(0.04, 0.12, len(noise))
    clean = 100 * np.exp(-np.array(ECHOES.echo_time) / time[:, None])
    signals = clean + noise[:, None] * rng.standard_normal(clean.shape)
    return time, get_estimator("varpro")(get_model("t2")).fit(ECHOES).predict(signals)


def test_maps_of_a_series() -> None:
    time, maps = measured(np.full(N, 2.0))
    ours = moderate(maps, get_model("t2"), ECHOES)
    assert np.array_equal(ours.estimate, maps.estimate)
    for column, truth in ((1, time), (2, 1 / time)):
        error = maps.estimate[:, column] - truth
        assert covered(error, maps.std[:, column] ** 2) < 0.9
        assert covered(error, ours.std[:, column] ** 2) == pytest.approx(COVERAGE, abs=0.01)
        beyond = np.abs(error) > 3 * ours.std[:, column]
        # Normal errors: 0.27 %; R2 is a little skewed.
        assert beyond.mean() < 0.006 < 0.03 < (np.abs(error) > 3 * maps.std[:, column]).mean()


def test_simulated_voxels_differ_in_noise_instead_of_amplitude() -> None:
    noise = np.exp(np.random.default_rng(1).uniform(-1, 1, N))
    _, maps = measured(noise)
    ours = moderate(maps, get_model("t2"), ECHOES, noise_std=noise)
    expected = np.sqrt(moderated(maps.variance.astype(float) / noise**2, 4)) * noise
    np.testing.assert_allclose(ours.std[:, 1] / maps.std[:, 1], expected / np.sqrt(maps.variance), rtol=1e-4)
    added, _ = distribution_of(maps.variance / noise**2, 4)
    assert added > 50 > 10 > distribution_of(maps.variance.astype(float), 4)[0]


def test_what_residuals_do_not_tell_stays() -> None:
    """Voxels without an estimate, voxels whose noise was given, and maps without any variance."""
    _, maps = measured(np.full(100, 2.0))
    maps.variance[:10] = np.nan
    ours = moderate(maps, get_model("t2"), ECHOES)
    np.testing.assert_array_equal(ours.std[:10], maps.std[:10])
    assert (ours.std[10:] != maps.std[10:]).all()
    without = replace(maps, variance=None)
    assert moderate(without, get_model("t2"), ECHOES) is without
    estimator = get_estimator("nlls")(get_model("t2")).fit(standard("t2"))
    given = estimator.predict(np.full((3, standard("t2").n_measurements), 100.0), noise_std=1.0)
    assert np.isnan(given.variance).all()


def test_voxels_of_certificates_are_moderated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, intervals from four degrees of freedom hold in 88 %: Student's t within 1.96."""
    time = np.random.default_rng(0).uniform(0.04, 0.12, (N, 1))
    estimator = get_estimator("varpro")(get_model("t2")).fit(ECHOES)

    def simulated() -> float:
        known = {"noise_is_known": False, "covariates_are_known": False}
        noise = Noise("gaussian", (50.0, 50.0))
        maps = simulation.simulate_voxels(estimator, ECHOES, time, noise, seed=0, **known).maps
        return covered(maps.estimate[:, 1] - time[:, 0], maps.std[:, 1] ** 2)

    assert simulated() == pytest.approx(COVERAGE, abs=0.01)
    monkeypatch.setattr(moderation, "moderate", lambda maps, *_, **__: maps)
    assert simulated() == pytest.approx(t(4).cdf(1.96) - t(4).cdf(-1.96), abs=0.01)
