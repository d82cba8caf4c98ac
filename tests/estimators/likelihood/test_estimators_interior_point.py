"""The interior-point search on problems with known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares, lsq_linear

from qmri_bidsapp.core.acquisition import MultiEcho, SphericalMean
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.estimators.likelihood.interior_point import InteriorPoint
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.models.relaxometry import SpinEchoT2
from qmri_bidsapp.models.smt import SphericalMeanTechnique
from qmri_bidsapp.solvers.interior_point import follow_centre, minimise_inside
from qmri_bidsapp.solvers.problem import Bounds, sum_of_squares


def test_linear_problems_within_bounds_agree_with_scipy_and_no_bound_is_met() -> None:
    rng = np.random.default_rng(0)
    n, m, p = 40, 8, 4
    matrix, right = rng.standard_normal((n, m, p)), 3 * rng.standard_normal((n, m))
    design, target = torch.tensor(matrix), torch.tensor(right)
    visited = []

    def evaluate(theta: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        visited.append(theta)
        return (design[index] @ theta.unsqueeze(-1)).squeeze(-1) - target[index], design[index]

    low, high = torch.full((p,), -0.5).double(), torch.full((p,), 0.8).double()
    bounds = Bounds(low, high, torch.zeros(p, dtype=torch.bool))
    objective, start = sum_of_squares(evaluate), torch.zeros((n, p)).double()
    off_bounds = follow_centre(objective, start, bounds, iterations=100, batch=None)
    everything = torch.cat(visited)
    assert everything.min() > -0.5
    assert everything.max() < 0.8
    found, cost, converged = minimise_inside(objective, start, bounds)
    assert converged.all()
    torch.testing.assert_close(off_bounds, found, atol=0.02, rtol=0)
    for i in range(n):
        expected = lsq_linear(matrix[i], right[i], bounds=(-0.5, 0.8), tol=1e-12)
        assert cost[i].item() == pytest.approx(2 * expected.cost, rel=1e-4)
        np.testing.assert_allclose(found[i].numpy(), expected.x, atol=2e-3)


def test_a_periodic_parameter_has_no_barrier() -> None:
    """An angle may pass from one end of its bounds to the other."""
    angle = torch.tensor([[3.0], [-3.0]]).double()

    def evaluate(theta: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        residual = torch.cat([theta.cos() - np.cos(np.pi), theta.sin() - np.sin(np.pi)], dim=-1)
        return residual, torch.stack([-theta.sin(), theta.cos()], dim=-2)

    bound = torch.tensor([np.pi]).double()
    found, cost, _ = minimise_inside(sum_of_squares(evaluate), angle, Bounds(-bound, bound, torch.tensor([True])))
    assert cost.max() < 1e-8
    np.testing.assert_allclose(np.abs(found.numpy()), np.pi, atol=1e-3)


def test_agrees_with_scipy_and_with_another_method_on_smt() -> None:
    protocol = SphericalMean((0.0, 1000.0, 2000.0, 3500.0, 5000.0), (12, 32, 32, 32, 32))
    model = SphericalMeanTechnique()
    rng = np.random.default_rng(1)
    theta = torch.tensor(np.stack([np.ones(300), rng.uniform(0.1, 0.9, 300), rng.uniform(0.5e-3, 2.5e-3, 300)], axis=1))
    signal = model.signal(theta, protocol).numpy() + 0.01 * rng.standard_normal((300, 5))
    weight = np.sqrt(protocol.n_averages)

    def residual(values: np.ndarray, target: np.ndarray) -> np.ndarray:
        return (model.signal(torch.tensor(values, dtype=torch.float64), protocol).numpy() - target) * weight

    maps = InteriorPoint(model).fit(protocol).predict(signal)
    other = NonLinearLeastSquares(model).fit(protocol).predict(signal)
    inside = (maps.status == Status.OK) & (other.status == Status.OK)
    assert inside.mean() > 0.9
    np.testing.assert_allclose(maps.estimate[inside], other.estimate[inside], rtol=5e-3, atol=1e-6)
    low, high = np.array([p.bounds for p in model.parameters]).T
    for i in range(10):
        expected = least_squares(
            residual,
            theta[i].numpy(),
            bounds=(low, high),
            x_scale=[1, 1, 1e-3],
            args=(signal[i],),
            xtol=1e-12,
            ftol=1e-12,
        )
        found = (residual(maps.estimate[i, : len(low)], signal[i]) ** 2).sum()
        assert found <= 2 * expected.cost * (1 + 1e-4) + 1e-9


def test_what_wants_to_leave_its_bounds_is_put_onto_them() -> None:
    """Signals that do not decay want an infinite T2."""
    maps = InteriorPoint(SpinEchoT2()).fit(MultiEcho((0.0125, 0.05, 0.2))).predict(np.full((1, 3), 10.0), noise_std=1.0)
    assert maps.status[0] == Status.AT_BOUND
    assert maps.estimate[0, 1] == pytest.approx(4.0)
    assert np.isnan(maps.std[0, 1])
