"""Do the stated standard deviations hold over the range of tissue, and what bias does a fit have?"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qmri_bidsapp.core.acquisition import (
    Acquisition,
    Diffusion,
    InversionRecovery,
    MultiEcho,
    SphericalMean,
    SpoiledGradientEcho,
    T2Preparation,
)
from qmri_bidsapp.core.maps import ParameterMaps
from qmri_bidsapp.core.noise import add_gaussian, add_rician
from qmri_bidsapp.registry import get_estimator, get_model

N_VOXELS = 12_000


def directions(n: int) -> tuple[tuple[float, float, float], ...]:
    """Points of a Fibonacci sphere."""
    z = 1 - (2 * np.arange(n) + 1) / n
    angle = np.pi * (1 + 5**0.5) * np.arange(n)
    radius = np.sqrt(1 - z**2)
    return tuple(zip((radius * np.cos(angle)).tolist(), (radius * np.sin(angle)).tolist(), z.tolist(), strict=True))


#: Protocol, ranges of the parameters after the amplitude, and the signal-to-noise ratio of one measurement.
CASES: dict[str, tuple[Acquisition, list[tuple[float, float]], float]] = {
    "t1": (
        InversionRecovery((0.05, 0.15, 0.3, 0.5, 0.8, 1.2, 1.8, 2.7, 4.2)),
        [(1.8, 2.0), (0.5, 1.8)],
        200.0,
    ),
    "t2": (MultiEcho((0.0125, 0.025, 0.05, 0.08, 0.12, 0.2)), [(0.04, 0.12)], 60.0),
    "t2prep": (T2Preparation((0.0, 0.02, 0.04, 0.08, 0.16, 0.32)), [(0.04, 0.1), (0.05, 0.15)], 200.0),
    "t2star": (MultiEcho((0.005, 0.01, 0.02, 0.03, 0.04, 0.06)), [(0.02, 0.06)], 60.0),
    # Steady-state signals are a small part of the amplitude.
    "vfa": (SpoiledGradientEcho((3, 6, 12, 18, 24), (0.02,) * 5), [(0.6, 2.0)], 5000.0),
    "mtsat": (
        SpoiledGradientEcho((6, 20, 6), (0.028, 0.018, 0.028), (False, False, True)),
        [(0.6, 2.0), (1.0, 4.0)],
        8000.0,
    ),
    "smt": (
        SphericalMean((0.0, 1000.0, 2000.0, 3500.0, 5000.0), (12, 32, 32, 32, 32)),
        [(0.3, 0.7), (1.0e-3, 2.2e-3)],
        50.0,
    ),
    "ivim": (
        SphericalMean((0.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 150.0, 200.0, 300.0, 500.0, 800.0), (12,) * 12),
        [(0.12, 0.3), (0.02, 0.05), (0.6e-3, 1.2e-3)],
        100.0,
    ),
    "tensor": (
        Diffusion((0.0,) * 6 + (1000.0,) * 32, ((0.0, 0.0, 0.0),) * 6 + directions(32)),
        [
            (0.6e-3, 1.4e-3),
            (-0.1e-3, 0.1e-3),
            (0.6e-3, 1.4e-3),
            (-0.1e-3, 0.1e-3),
            (-0.1e-3, 0.1e-3),
            (0.6e-3, 1.4e-3),
        ],
        50.0,
    ),
}
ESTIMATOR = {"tensor": "wls"}


def fit(name: str, noise, seed: int = 1) -> tuple[np.ndarray, ParameterMaps]:
    """Return truth, derived parameters included, and the maps of noisy signals of amplitude 100."""
    acquisition, ranges, snr = CASES[name]
    model, rng = get_model(name), np.random.default_rng(seed)
    theta = np.stack([np.full(N_VOXELS, 100.0), *(rng.uniform(low, high, N_VOXELS) for low, high in ranges)], axis=1)
    columns = model.with_covariates(torch.tensor(theta))
    clean = model.signal(columns, acquisition).numpy()
    sigma = 100.0 / snr
    signals = noise(clean, sigma / np.sqrt(acquisition.n_averages), rng)
    estimator = get_estimator(ESTIMATOR.get(name, "nlls"))(model).fit(acquisition)
    truth = np.concatenate([theta, model.derive(columns).numpy()], axis=1)
    return truth, estimator.predict(signals, noise_std=sigma)


def columns(maps: ParameterMaps) -> list[int]:
    """Parameters that are nearly linear in the noise; anisotropy and sorted eigenvalues are biased by it."""
    return [i for i, p in enumerate(maps.parameters) if p.name not in ("fa", "ad", "rd")]


@pytest.mark.parametrize("name", CASES)
def test_intervals_cover_and_errors_have_the_stated_size(name: str) -> None:
    truth, maps = fit(name, add_gaussian)
    for i in columns(maps):
        z = (maps.estimate[:, i] - truth[:, i]) / maps.std[:, i]
        assert np.isfinite(z).mean() > 0.99, maps.parameters[i].name
        z = z[np.isfinite(z)]
        assert 0.93 < (np.abs(z) < 1.96).mean() < 0.97, maps.parameters[i].name
        assert 0.9 < z.std() < 1.1, maps.parameters[i].name
        if name != "tensor":
            assert abs(np.median(z)) < 0.1, maps.parameters[i].name


def test_bias_of_the_tensor_is_that_of_the_logarithm() -> None:
    """E[ln(S + noise)] = ln S - sigma^2 / (2 S^2) to second order; the fit hands it on to the tensor."""
    acquisition, _, snr = CASES["tensor"]
    truth, maps = fit("tensor", add_gaussian)
    signal = get_model("tensor").signal(torch.tensor(truth[:, :7]), acquisition).numpy()
    design = get_model("tensor").design_matrix(acquisition).numpy()
    weighted = design.T * signal[:, None, :] ** 2
    offset = -((100.0 / snr) ** 2) / (2 * signal**2)
    bias = np.linalg.solve(weighted @ design, weighted @ offset[..., None])[..., 0]
    expected = bias[:, [1, 3, 6]].mean()
    index = [p.name for p in maps.parameters].index("md")
    error = maps.estimate[:, index] - truth[:, index]
    assert abs(error.mean() - expected) < 3 * error.std() / np.sqrt(N_VOXELS)
    assert 0 < expected < 3e-6


@pytest.mark.parametrize("name", CASES)
def test_noise_seed_changes_the_estimates_but_not_their_quality(name: str) -> None:
    truth, first = fit(name, add_gaussian, seed=1)
    _, second = fit(name, add_gaussian, seed=2)
    assert not np.array_equal(first.estimate, second.estimate)
    assert np.median(np.abs(first.estimate[:, 0] - truth[:, 0])) < 5


@pytest.mark.parametrize("name", ["t2", "tensor"])
def test_rician_noise_hardly_matters_at_high_ratio(name: str) -> None:
    truth, maps = fit(name, add_rician)
    index = [p.name for p in maps.parameters].index({"t2": "t2", "tensor": "md"}[name])
    bias = np.median(maps.estimate[:, index] / truth[:, index]) - 1
    assert abs(bias) < 0.01
