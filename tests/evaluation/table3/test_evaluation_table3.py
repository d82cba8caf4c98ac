"""Table 3 of Gyori et al. 2021: its traditional fitting, from the text and the program that it names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.evaluation.table3 import table3
from qmri_bidsapp.solvers.nelder_mead import minimise


@pytest.fixture(scope="module")
def noisy():
    return table3.simulate(50)


def test_points_and_noise(noisy):
    points = table3.truth()
    assert points.shape == (441, 2)
    np.testing.assert_allclose(points[[0, 1, 21, -1]], [[0, 0], [0, 0.15], [0.05, 0], [1, 3]])
    # Closed forms: no signal is lost without diffusion, and the extra-neurite space alone is a Gaussian.
    np.testing.assert_allclose(noisy[points[:, 1] == 0].mean((0, 1)), 1, atol=5 * 0.04 / np.sqrt(12 * 21 * 50))
    expected = np.exp(-np.array([0, 1, 2, 3.5, 5]) * 0.15)
    np.testing.assert_allclose(noisy[1].mean(0), expected, atol=5 * 0.04 / np.sqrt(12 * 50))
    spread = noisy.std(1, ddof=1).mean(0)
    np.testing.assert_allclose(spread, 0.04 / np.sqrt([12, 32, 32, 32, 32]), rtol=0.03)


def test_traditional_fitting_has_the_errors_that_the_paper_prints(noisy):
    found, _ = table3.measure(table3.estimate(table3.fit_traditionally, noisy))
    paper = table3.PUBLISHED["Traditional fitting"]
    # A standard deviation of 50 values is uncertain by 10 %, its mean over 441 points by 0.5 %.
    np.testing.assert_allclose([found.rmse, found.std], [paper.rmse, paper.std], rtol=0.05)
    # Noise in the mean of n estimates adds between nothing and its own mean absolute value.
    noise = np.sqrt(2 / np.pi / 50) * np.array(paper.std)
    assert (0.95 * np.array(paper.bias) <= found.bias).all()
    assert (found.bias <= 1.05 * np.array(paper.bias) + noise).all()


def test_zero_diffusivity_is_left_out_of_the_second_result(noisy):
    def fit(_signal: np.ndarray) -> np.ndarray:
        return np.tile([0.5, 0.0], (441 * 50, 1))

    pooled, above = table3.measure(table3.estimate(fit, noisy))
    np.testing.assert_allclose([pooled.std, above.std], 0, atol=1e-12)
    # Every estimate is the same: its error is all bias, on average a quarter of the range and a bit.
    expected = (np.abs(np.arange(21) / 20 - 0.5).mean(), 1.5)
    np.testing.assert_allclose([pooled.rmse, pooled.bias], [expected, expected])
    np.testing.assert_allclose(above.bias, (expected[0], 1.5 * 21 / 20))


def test_simplex_method_against_scipy():
    target = torch.tensor([[0.3, -0.2], [1.5, 0.7], [-1.0, 2.0]], dtype=torch.float64)

    def cost(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        first, second = (x - target[index]).unbind(-1)
        return 100 * (second - first**2) ** 2 + first**2

    start = torch.zeros(3, 2, dtype=torch.float64)
    found = minimise(cost, start, 1.0, relative=1e-12, absolute=1e-14, max_steps=7)
    for row in range(3):
        one = torch.tensor([row])
        other = minimize(
            lambda x, one=one: float(cost(torch.tensor(x)[None], one)),
            np.zeros(2),
            method="Nelder-Mead",
            options={"initial_simplex": [[0, 0], [1, 0], [0, 1]], "maxiter": 7},
        )
        # Step by step the same: neither has converged.
        assert other.status == 2
        np.testing.assert_allclose(found[row], other.x, atol=1e-12)
    converged = minimise(cost, start, 1.0, relative=1e-12, absolute=1e-14, max_steps=1000)
    np.testing.assert_allclose(converged, target, atol=1e-6)


def test_unknown_row_and_too_few_samples():
    with pytest.raises(UsageError, match="no row named 'wls'; known: traditional, grid, interior-point, nlls"):
        table3.methods(["nlls", "wls"], list)
    with pytest.raises(UsageError, match="at least 2 samples per point, got 1"):
        table3.simulate(1)
