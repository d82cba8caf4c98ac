"""Likelihood of magnitudes over that of Gaussian noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm, rice

from qmri_bidsapp.uncertainty.ood_floor import _log_ratio, _of_means, floor_score

SIGNAL = np.array([0.0, 0.3, 1.0, 2.0, 4.0])


def test_ratio_of_the_densities():
    """Against SciPy's distributions; means below the least one of magnitudes are those of no signal."""
    mean = np.array([0.2, 1.3, 1.8, 3.0, 5.5])
    expected = [0.0, *(brentq(lambda s, m=m: rice.mean(s) - m, 0, 8) for m in mean[1:])]
    s = _of_means(mean)[0]
    np.testing.assert_allclose(s, expected, atol=2e-3)
    x = np.array([0.1, 0.7, 1.5, 3.1, 7.0])
    np.testing.assert_allclose(_log_ratio(x, mean, s), rice.logpdf(x, s) - norm.logpdf(x, mean), atol=1e-9)


@pytest.mark.parametrize("noise", [1.0, 250.0])
def test_gaussian_noise_has_mean_zero_and_variance_one(noise):
    rng = np.random.default_rng(0)
    mean = np.tile(SIGNAL, (20_000, 4))
    values = mean + rng.standard_normal(mean.shape)
    score = floor_score(noise * values, noise * mean, np.full(len(mean), noise))
    assert score.mean() == pytest.approx(0, abs=0.02)
    assert score.std() == pytest.approx(1, abs=0.02)


def test_magnitudes_score_higher_and_bright_ones_alike():
    rng = np.random.default_rng(1)
    signal = np.tile(SIGNAL, (1000, 12))
    values = rice.rvs(signal, random_state=rng)
    gaussian = signal + rng.standard_normal(signal.shape)
    score, other = (
        floor_score(v, mean, np.ones(1000)) for v, mean in ((values, rice.mean(signal)), (gaussian, signal))
    )
    assert np.quantile(score, 0.2) > np.quantile(other, 0.95)
    assert not floor_score(values + 20, rice.mean(signal) + 20, np.ones(1000)).any()


def test_without_noise_nothing_is_said():
    assert floor_score(np.ones((1, 3)), np.ones((1, 3)), np.zeros(1)).tolist() == [0.0]
