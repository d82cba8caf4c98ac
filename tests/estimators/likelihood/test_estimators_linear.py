"""Closed-form fits at the edges of what a model can explain, and the solver beneath them."""

from __future__ import annotations

import numpy as np
import torch

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.estimators.likelihood.covariance import propagate
from qmri_bidsapp.estimators.likelihood.log_linear import WeightedLinearLeastSquares
from qmri_bidsapp.models.kurtosis import DiffusionKurtosis
from qmri_bidsapp.models.tensor import DiffusionTensor
from qmri_bidsapp.solvers.cholesky import dense, factorise, inverse_factor, solve


def series(*b_values: float) -> Diffusion:
    g = np.random.default_rng(0).standard_normal((30, 3))
    rows = tuple(map(tuple, (g / np.linalg.norm(g, axis=1, keepdims=True)).tolist()))
    return Diffusion((0.0, *(b for b in b_values for _ in rows)), ((0.0, 0.0, 0.0), *(rows * len(b_values))))


def test_cholesky_agrees_with_numpy() -> None:
    rng = np.random.default_rng(0)
    root, right = rng.standard_normal((10, 5, 8)), rng.standard_normal((10, 5))
    matrix = root @ root.transpose(0, 2, 1)
    factor = factorise([[torch.tensor(matrix[:, i, j]) for j in range(i + 1)] for i in range(5)])
    found = solve(factor, list(torch.tensor(right).unbind(-1)))
    np.testing.assert_allclose(found.numpy(), np.linalg.solve(matrix, right[..., None])[..., 0], rtol=1e-8)
    inverse = dense(inverse_factor(factor)).numpy()
    np.testing.assert_allclose(inverse.transpose(0, 2, 1) @ inverse, np.linalg.inv(matrix), rtol=1e-8, atol=1e-12)


def test_values_outside_their_bounds_are_brought_back_and_flagged() -> None:
    """A signal that grows with b: every diffusivity is below its lowest value, anisotropy is not."""
    acquisition = series(1000.0)
    signals = 100 * np.exp(np.array([acquisition.b_value]) * 4e-3)
    maps = WeightedLinearLeastSquares(DiffusionTensor()).fit(acquisition).predict(signals, noise_std=1.0)
    names = [p.name for p in maps.parameters]
    assert maps.status.tolist() == [Status.AT_BOUND]
    for name in ("dxx", "dyy", "dzz", "md"):
        assert maps.estimate[0, names.index(name)] == np.float32(-3e-3)
        assert np.isnan(maps.std[0, names.index(name)])
    for name in ("s0", "dxy"):
        assert maps.std[0, names.index(name)] > 0


def test_negative_kurtosis_of_noise_is_flagged() -> None:
    """A signal that falls faster and faster with b: no tissue does that."""
    acquisition = series(1000.0, 2000.0)
    b = np.array([acquisition.b_value])
    maps = WeightedLinearLeastSquares(DiffusionKurtosis()).fit(acquisition).predict(np.exp(-b * 5e-4 - b**2 * 1e-7))
    index = [p.name for p in maps.parameters].index("mk")
    assert maps.status.tolist() == [Status.AT_BOUND]
    assert maps.estimate[0, index] == np.float32(-3 / 7)
    assert np.isnan(maps.std[0, index])


def test_results_do_not_depend_on_the_chunk(monkeypatch) -> None:
    acquisition = series(1000.0)
    signals = 100 + np.random.default_rng(0).standard_normal((50, 31))
    whole = WeightedLinearLeastSquares(DiffusionTensor()).fit(acquisition).predict(signals)
    monkeypatch.setattr(WeightedLinearLeastSquares, "chunk_size", 7)
    parts = WeightedLinearLeastSquares(DiffusionTensor()).fit(acquisition).predict(signals)
    np.testing.assert_allclose(parts.estimate, whole.estimate, rtol=1e-5, atol=1e-9)


def test_a_fractional_anisotropy_cut_off_at_one_has_no_std() -> None:
    """One eigenvalue is negative, as noise makes it: the formula gives more than one."""
    theta = torch.tensor([[1.0, 2e-3, 0.0, -2e-4, 0.0, 0.0, -2e-4]], dtype=torch.float64)
    root = [[torch.tensor([1e-5 * (i == j)], dtype=torch.float64) for j in range(i + 1)] for i in range(7)]
    free = torch.ones_like(theta, dtype=torch.bool)
    std = propagate(DiffusionTensor(), theta, root, free, free)[1].numpy()
    names = [p.name for p in (*DiffusionTensor.parameters, *DiffusionTensor.derived)]
    assert np.isnan(std[0, names.index("fa")])
    assert std[0, names.index("md")] > 0


def test_an_element_beyond_its_bound_is_held_there_and_has_no_std() -> None:
    """A signal that grows with b, as no tissue has: Dxx = -4e-3 mm2/s, the other diffusivities 1e-3."""
    directions = np.random.default_rng(0).standard_normal((40, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    protocol = Diffusion((0.0,) * 2 + (1000.0,) * 40, ((0.0,) * 3,) * 2 + tuple(map(tuple, directions)))
    diffusivity = (directions**2) @ [-4e-3, 1e-3, 1e-3]
    signals = 100 * np.exp(np.r_[0, 0, -1000 * diffusivity])
    maps = WeightedLinearLeastSquares(DiffusionTensor()).fit(protocol).predict(signals[None], noise_std=1.0)
    found = {p.name: (maps.estimate[0, i], maps.std[0, i]) for i, p in enumerate(maps.parameters)}
    assert maps.status[0] == Status.AT_BOUND
    np.testing.assert_allclose(found["dxx"][0], -3e-3, rtol=1e-6)
    np.testing.assert_allclose(found["dyy"][0], 1e-3, rtol=0.01)
    assert np.isnan([found[name][1] for name in ("dxx", "fa", "md")]).all()
    assert np.isfinite([found[name][1] for name in ("s0", "dyy", "dzz")]).all()
