"""Errors of parameters that the signal determines less and less along their range."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.estimators.likelihood import cramer_rao
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.estimators.likelihood.skewed_errors import error_along
from qmri_bidsapp.evaluation.standards import even_directions
from qmri_bidsapp.registry import get_model
from qmri_bidsapp.solvers.problem import Bounds

WIDE = Bounds(torch.tensor([-1e3, -1e3]), torch.tensor([1e3, 1e3]), torch.tensor([False, False]))


def errors(estimate, spread_at, bounds=WIDE) -> np.ndarray:
    """Of the second of two parameters that are not related."""
    theta = torch.tensor([[0.0, value] for value in estimate])
    size = spread_at(theta).double()
    root = [[torch.ones_like(size)], [torch.zeros_like(size), size]]
    return error_along(1, theta, root, bounds, spread_at).numpy()


def test_an_even_parameter_has_its_standard_deviation() -> None:
    found = errors([-3.0, 0.0, 5.0], lambda theta: torch.full((3,), 0.7))
    np.testing.assert_allclose(found, 0.7, rtol=1e-4)


@pytest.mark.parametrize("rise", [-0.1, 0.05, 0.1])
def test_agrees_with_the_integral(rise: float) -> None:
    """A standard deviation that rises or falls exponentially, of which the logarithm is linear between the nodes."""
    found = errors([0.0], lambda theta: torch.exp(rise * theta[:, 1]))

    def density(x: float) -> float:
        return float(np.exp(-(x**2) / 2 / np.exp(2 * rise * np.clip(x, -3, 6)) - rise * np.clip(x, -3, 6)))

    mass = quad(density, -8, 8, limit=200)[0]
    expected = np.sqrt(quad(lambda x: x**2 * density(x), -8, 8, limit=200)[0] / mass)
    assert expected > 1.005
    np.testing.assert_allclose(found, expected, rtol=0.01)


def test_truths_lie_within_the_bounds() -> None:
    """In the middle of the range of an undetermined parameter, the error is that of a uniform distribution."""
    bounds = Bounds(torch.tensor([-1e3, 0.0]), torch.tensor([1e3, 1.0]), WIDE.is_periodic)
    found = errors([0.5], lambda theta: torch.full((1,), 5.0), bounds)
    np.testing.assert_allclose(found, 1 / np.sqrt(12), rtol=0.05)


def test_where_nothing_is_told_beside_the_estimate() -> None:
    def spread_at(theta: torch.Tensor) -> torch.Tensor:
        return torch.where(theta[:, 1] > 1, torch.nan, 0.5)

    np.testing.assert_allclose(errors([0.0], spread_at), 0.5, rtol=1e-3)


def test_strong_dispersion(monkeypatch) -> None:
    """Its estimates came out too low by more than three standard deviations in several per cent of the voxels."""
    protocol = Diffusion(
        (0.0,) * 9 + (700.0,) * 32 + (2000.0,) * 64,
        ((0.0, 0.0, 0.0),) * 9 + even_directions(32) + even_directions(64),
    )
    model, rng, n = get_model("noddi"), np.random.default_rng(0), 3000
    columns = [(100, 100), (0.05, 0.4), (0.3, 0.7), (0.45, 0.75), (20, 70), (-150, 150)]
    theta = np.stack([rng.uniform(*limits, n) for limits in columns], axis=1)
    signals = model.signal(torch.tensor(theta), protocol).numpy() + 4 * rng.standard_normal((n, 105))
    estimator = NonLinearLeastSquares(model).fit(protocol)
    maps = estimator.predict(signals, noise_std=4.0)

    def linearised(column, problem, sensitivity, scaled, variance, index, root):
        return torch.stack([row[column].square() for row in root[column:]]).sum(0).sqrt()

    monkeypatch.setattr(cramer_rao, "_skewed_error", linearised)
    off, covered = [], []
    for part in (maps, estimator.predict(signals, noise_std=4.0)):
        z = (part.estimate[:, 3] - theta[:, 3]) / part.std[:, 3]
        off.append((np.abs(z) > 3).mean())
        covered.append((np.abs(z) < 1.96).mean())
    assert off[0] < 0.01 < 0.015 < off[1]
    assert 0.93 < covered[0] < 0.975
