"""Optimisers against closed forms and scikit-learn's solutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, Ridge
from torch import nn

from qmri_bidsapp.estimators.learned.optimisers import FTRL, ProximalAdagrad, dual_coordinate_ascent

N, N_FEATURES = 200, 8


@pytest.fixture(scope="module")
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """A regression in which half of the coefficients are zero."""
    rng = np.random.default_rng(0)
    design = rng.standard_normal((N, N_FEATURES)) @ (np.eye(N_FEATURES) + 0.2)
    truth = np.array([2.0, -1.0, 0.5, 0.25, 0, 0, 0, 0])
    return torch.tensor(design), torch.tensor(design @ truth + 0.5 * rng.standard_normal(N))


def minimise(kind, problem, steps: int, **options) -> np.ndarray:
    design, response = problem
    weight = nn.Parameter(torch.zeros(N_FEATURES, dtype=torch.float64))
    optimiser = kind([weight], **options)
    for _ in range(steps):
        optimiser.zero_grad()
        ((design @ weight - response).square().mean() / 2).backward()
        optimiser.step()
    return weight.detach().numpy()


@pytest.mark.parametrize("kind", [FTRL, ProximalAdagrad])
def test_lasso_is_that_of_scikit_learn(kind, problem):
    expected = Lasso(alpha=0.2, fit_intercept=False, tol=1e-10).fit(*problem).coef_
    found = minimise(kind, problem, 3000, lr=1.0, l1=0.2)
    assert 2 <= (expected == 0).sum() <= 6
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # Not only small: exactly zero.
    np.testing.assert_array_equal(found == 0, expected == 0)


@pytest.mark.parametrize("kind", [FTRL, ProximalAdagrad])
def test_quadratic_penalty_is_that_of_ridge_regression(kind, problem):
    expected = Ridge(alpha=0.3 * N, fit_intercept=False).fit(*problem).coef_
    np.testing.assert_allclose(minimise(kind, problem, 3000, lr=1.0, l2=0.3), expected, atol=1e-5)


def test_steps_of_ftrl_are_those_of_the_algorithm():
    """Algorithm 1 of McMahan et al. 2013 by hand, two steps of one coordinate; penalties count for each step."""
    alpha, beta, l1, l2 = 0.5, 1.0, 0.1, 0.2
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimiser = FTRL([weight], alpha, l1=l1, l2=l2, beta=beta)
    expected, z, n = 0.0, 0.0, 0.0
    for step, gradient in enumerate((-3.0, 4.0), start=1):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimiser.step()
        sigma = (np.sqrt(n + gradient**2) - np.sqrt(n)) / alpha
        z, n = z + gradient - sigma * expected, n + gradient**2
        expected = -(z - np.sign(z) * step * l1) / ((beta + np.sqrt(n)) / alpha + step * l2)
        assert weight.item() == pytest.approx(expected, rel=1e-12)


def test_without_penalties_ftrl_is_adagrad_from_any_start_at_any_rate():
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimiser, squares = FTRL([weight], 0.5), torch.zeros(2, dtype=torch.float64)
    expected = weight.detach().clone()
    for step in range(1, 5):
        gradient = torch.tensor([0.3 * step, -0.1], dtype=torch.float64)
        optimiser.param_groups[0]["lr"] = rate = 0.5 / step
        weight.grad = gradient
        optimiser.step()
        squares += gradient**2
        expected -= rate * gradient / (1 + squares.sqrt())
        torch.testing.assert_close(weight.detach(), expected)


def test_steps_of_proximal_adagrad_without_penalties_are_those_of_torch(problem):
    ours = minimise(ProximalAdagrad, problem, 50, lr=0.3, delta=1e-8)
    theirs = minimise(torch.optim.Adagrad, problem, 50, lr=0.3, eps=1e-8)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("block", [1, 16, 64])
def test_dual_coordinate_ascent_reaches_ridge_regression(problem, block):
    design, response = problem
    targets = torch.stack([response, -2 * response + design[:, 0]], dim=1)
    closed = torch.linalg.solve(
        design.T @ design / N + 0.1 * torch.eye(N_FEATURES, dtype=torch.float64), design.T @ targets / N
    )
    chance = torch.Generator().manual_seed(0)
    found = dual_coordinate_ascent(design, targets, 0.1, chance, epochs=60, block=block)
    torch.testing.assert_close(found, closed, atol=1e-6, rtol=0)
    early = dual_coordinate_ascent(design, targets, 0.1, chance, epochs=1, block=block)
    assert (early - closed).abs().max() > 1e-6
