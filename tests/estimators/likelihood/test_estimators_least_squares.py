"""The optimiser, its standard deviations and its statuses on problems with known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from qmri_bidsapp.core.acquisition import InversionRecovery, MultiEcho, SphericalMean
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.models.relaxometry import InversionRecoveryT1, SpinEchoT2
from qmri_bidsapp.models.smt import SphericalMeanTechnique
from qmri_bidsapp.solvers.levenberg_marquardt import minimise
from qmri_bidsapp.solvers.problem import Bounds, sum_of_squares

INVERSION = InversionRecovery((0.05, 0.15, 0.3, 0.5, 0.8, 1.2, 1.8, 2.7, 4.2))
ECHOES = MultiEcho((0.0125, 0.025, 0.05, 0.08, 0.12, 0.2))


def recovery(m0: float, factor: float, t1: float, acquisition: InversionRecovery = INVERSION) -> np.ndarray:
    return np.abs(m0 * (1 - factor * np.exp(-np.array(acquisition.inversion_time) / t1)))


def test_linear_problems_within_bounds_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    n, m, p = 40, 8, 4
    matrix, right = rng.standard_normal((n, m, p)), 3 * rng.standard_normal((n, m))
    design, target = torch.tensor(matrix), torch.tensor(right)

    def evaluate(theta: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (design[index] @ theta.unsqueeze(-1)).squeeze(-1) - target[index], design[index]

    low, high = torch.full((p,), -0.5).double(), torch.full((p,), 0.8).double()
    found, cost, converged = minimise(
        sum_of_squares(evaluate), torch.zeros((n, p)).double(), Bounds(low, high, torch.zeros(p, dtype=torch.bool))
    )
    assert converged.all()
    for i in range(n):
        expected = lsq_linear(matrix[i], right[i], bounds=(-0.5, 0.8), tol=1e-12)
        assert cost[i].item() == pytest.approx(2 * expected.cost, rel=1e-5)
        np.testing.assert_allclose(found[i].numpy(), expected.x, atol=2e-3)


def test_results_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    signals = np.stack([recovery(100, 1.9, t1) for t1 in rng.uniform(0.4, 3.0, 500)])
    signals += rng.standard_normal(signals.shape)
    whole = NonLinearLeastSquares(InversionRecoveryT1()).fit(INVERSION).predict(signals)
    monkeypatch.setattr(NonLinearLeastSquares, "chunk_size", 37)
    parts = NonLinearLeastSquares(InversionRecoveryT1()).fit(INVERSION).predict(signals)
    np.testing.assert_allclose(parts.estimate, whole.estimate, rtol=2e-3)
    np.testing.assert_array_equal(parts.status, whole.status)


def test_parameter_space_of_t1_is_recovered_without_noise() -> None:
    """Whatever the number of images before the null: no basin is missed."""
    t1, factor = (axis.ravel() for axis in np.meshgrid(np.geomspace(0.15, 4.0, 40), np.linspace(1.5, 2.0, 11)))
    signals = np.stack([recovery(250.0, b, t) for b, t in zip(factor, t1, strict=True)])
    maps = NonLinearLeastSquares(InversionRecoveryT1()).fit(INVERSION).predict(signals)
    np.testing.assert_allclose(maps.estimate[:, 2], t1, rtol=2e-3)
    np.testing.assert_allclose(maps.estimate[:, 1], factor, atol=5e-3)


def test_polarity_makes_t1_near_the_null_precise_and_a_voxel_before_its_null_is_no_empty_one() -> None:
    """Rician noise lifts small magnitudes, and the sign of the image next to the null is a guess; neither with sign."""
    times = (0.1, 0.8, 2.5, 4.0)
    t1, noise, rng = 1.2, 4.0, np.random.default_rng(3)
    clean = 100 * (1 - 1.95 * np.exp(-np.array(times) / t1))
    signed = clean + noise * rng.standard_normal((4000, 4))
    magnitude = np.hypot(signed, noise * rng.standard_normal(signed.shape))
    error, ratio = {}, {}
    for sign, data in ((True, signed), (False, magnitude)):
        estimator = NonLinearLeastSquares(InversionRecoveryT1()).fit(InversionRecovery(times, signed=sign))
        maps = estimator.predict(data, noise_std=noise)
        error[sign] = np.median(np.abs(maps.estimate[:, 2] - t1))
        ratio[sign] = np.std((maps.estimate[:, 2] - t1) / maps.std[:, 2])
        if sign:
            assert abs(np.median(maps.estimate[:, 2]) - t1) < 0.01
            assert (estimator.predict(-np.abs(data[:3]) - 1).status != Status.NO_SIGNAL).all()
    assert error[True] < 0.7 * error[False]
    assert 0.95 < ratio[True] < 1.05
    # The image next to the null is what the magnitude's standard deviation cannot know.
    assert ratio[False] > 1.3


def test_parameter_space_of_smt_is_recovered_without_noise() -> None:
    """Also where a fit on its way touches a fraction of one, at which the derivative by it vanishes."""
    protocol = SphericalMean((0.0, 1000.0, 2000.0, 3500.0, 5000.0), (12, 32, 32, 32, 32))
    fraction, diffusivity = (
        axis.ravel() for axis in np.meshgrid(np.linspace(0.02, 0.98, 49), np.linspace(0.3e-3, 2.8e-3, 26))
    )
    theta = torch.tensor(np.stack([np.full(fraction.size, 80.0), fraction, diffusivity], axis=1))
    signals = SphericalMeanTechnique().signal(theta, protocol).numpy()
    maps = NonLinearLeastSquares(SphericalMeanTechnique()).fit(protocol).predict(signals)
    np.testing.assert_allclose(maps.estimate[:, 1], fraction, atol=5e-3)
    np.testing.assert_allclose(maps.estimate[:, 2], diffusivity, atol=1e-5)


def test_a_parameter_on_its_bound_has_no_standard_deviation() -> None:
    """Signals that do not decay want an infinite T2; S0, which does not depend on it, keeps its own."""
    maps = NonLinearLeastSquares(SpinEchoT2()).fit(ECHOES).predict(np.full((1, 6), 10.0), noise_std=1.0)
    names = [p.name for p in maps.parameters]
    assert maps.status[0] == Status.AT_BOUND
    assert maps.estimate[0, names.index("t2")] == pytest.approx(4.0)
    assert np.isnan(maps.std[0, [names.index("t2"), names.index("r2")]]).all()
    assert maps.std[0, names.index("s0")] > 0


def test_without_a_free_residual_only_known_noise_gives_a_standard_deviation() -> None:
    acquisition = MultiEcho((0.02, 0.08))
    signals = 100 * np.exp(-np.array([[0.02, 0.08]]) / 0.06)
    estimator = NonLinearLeastSquares(SpinEchoT2()).fit(acquisition)
    assert np.isnan(estimator.predict(signals).std).all()
    assert np.isfinite(estimator.predict(signals, noise_std=1.0).std).all()


def test_standard_deviation_is_the_cramer_rao_bound() -> None:
    """T2 from two echoes: the variance of (TE2 - TE1) / ln(S1 / S2) in closed form."""
    times, t2, noise = np.array([0.02, 0.08]), 0.06, 0.5
    signal = 100 * np.exp(-times / t2)
    maps = NonLinearLeastSquares(SpinEchoT2()).fit(MultiEcho((0.02, 0.08))).predict(signal[None], noise_std=noise)
    expected = t2**2 / 0.06 * noise * np.sqrt((1 / signal**2).sum())
    assert maps.std[0, 1] == pytest.approx(expected, rel=1e-3)
    # R2 = 1 / T2, by the delta method.
    assert maps.std[0, 2] == pytest.approx(expected / t2**2, rel=1e-3)


def test_averages_count_as_repeated_measurements() -> None:
    """Four times the directions halve the standard deviation that one measurement's noise leads to."""
    shells = (0.0, 1000.0, 2000.0, 4000.0)
    theta = torch.tensor([[100.0, 0.5, 1.5e-3]]).double()
    stds = []
    for count in (8, 32):
        protocol = SphericalMean(shells, (count,) * 4)
        signals = SphericalMeanTechnique().signal(theta, protocol).numpy()
        stds.append(NonLinearLeastSquares(SphericalMeanTechnique()).fit(protocol).predict(signals, noise_std=2.0).std)
    np.testing.assert_allclose(stds[0], 2 * stds[1], rtol=1e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_answer() -> None:
    signals = np.stack([recovery(100, 1.9, t1) for t1 in np.linspace(0.4, 3.0, 50)])
    cpu, gpu = (
        NonLinearLeastSquares(InversionRecoveryT1(), device=device).fit(INVERSION).predict(signals)
        for device in ("cpu", "cuda:0")
    )
    np.testing.assert_allclose(gpu.estimate, cpu.estimate, rtol=2e-3)
