from __future__ import annotations

import numpy as np
import pytest
import torch
from dipy.data import get_sphere

from qmri_bidsapp.core.acquisition import Diffusion, InversionRecovery, MultiEcho, SphericalMean
from qmri_bidsapp.demo import phantom, signals
from qmri_bidsapp.demo.neurites import neurite_parameters
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.models.noddi import Noddi
from qmri_bidsapp.models.relaxometry import InversionRecoveryT1, SpinEchoT2
from qmri_bidsapp.models.smt import SphericalMeanTechnique


@pytest.fixture(scope="module")
def head() -> phantom.PhantomHead:
    return phantom.make_head(2, 6.0, seed=0)


@pytest.fixture(scope="module")
def gradients() -> Diffusion:
    return signals.gradient_table(np.random.default_rng(0))


@pytest.fixture(scope="module")
def dwi(head: phantom.PhantomHead, gradients: Diffusion) -> np.ndarray:
    return signals.diffusion(head, gradients, np.random.default_rng(1))[0]


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.standard_normal((*shape, 3))
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("n_fibres", [1, 5])
def test_mean_over_directions_is_the_spherical_mean(n_fibres: int) -> None:
    """Checked on dipy's 724 spread directions, whichever way the fibres lie."""
    rng = np.random.default_rng(0)
    directions = get_sphere(name="repulsion724").vertices
    b_values = (1000.0, 3500.0)
    table = [(b, tuple(map(float, g))) for b in b_values for g in directions]
    acquisition = Diffusion(tuple(b for b, _ in table), tuple(g for _, g in table))
    fraction, diffusivity = rng.uniform(0.1, 0.9, 20), rng.uniform(0.5e-3, 2.5e-3, 20)
    attenuation = signals.fibre_attenuation(fraction, diffusivity, unit(rng, 20, n_fibres), acquisition)
    mean = attenuation.reshape(20, len(b_values), -1).mean(-1)
    theta = torch.tensor(np.stack([np.ones(20), fraction, diffusivity], axis=-1))
    shells = SphericalMean((0.0, *b_values), (1, 724, 724))
    expected = SphericalMeanTechnique().signal(theta, shells).numpy()[:, 1:]
    np.testing.assert_allclose(mean, expected, atol=2e-4)


def test_signal_is_lowest_along_a_fibre() -> None:
    axes = np.eye(3)
    acquisition = Diffusion((2000.0,) * 3, tuple(tuple(row) for row in axes))
    attenuation = signals.fibre_attenuation(np.array([0.7]), np.array([2e-3]), axes[None, :1], acquisition)[0]
    assert attenuation[0] < 0.1 < attenuation[1]
    np.testing.assert_allclose(attenuation[1], attenuation[2])


def test_protocol_is_that_of_gyori(gradients: Diffusion) -> None:
    b_value, direction = np.asarray(gradients.b_value), np.asarray(gradients.direction)
    shells, counts = np.unique(b_value, return_counts=True)
    np.testing.assert_array_equal(shells, [0, 1000, 2000, 3500, 5000])
    np.testing.assert_array_equal(counts, [12, 32, 32, 32, 32])
    assert b_value[0] == 0
    seen = []
    for shell in shells[1:]:
        vectors = direction[b_value == shell]
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        cosine = np.abs(vectors @ vectors.T) - 2 * np.eye(32)
        assert np.degrees(np.arccos(cosine.max())) > 20, "directions and their opposites keep their distance"
        seen.append(vectors)
    assert not np.allclose(seen[0], seen[1])


def test_noise_of_the_dwi_has_the_stated_level(
    head: phantom.PhantomHead, dwi: np.ndarray, gradients: Diffusion
) -> None:
    tissue = np.isin(head.dseg, (1, 2))
    b0 = dwi[tissue][:, np.asarray(gradients.b_value) == 0]
    ratio = b0.mean() / np.sqrt(b0.var(axis=1, ddof=1).mean())
    assert ratio == pytest.approx(signals.SNR["dwi"], rel=0.03)


@pytest.mark.parametrize("kind", ["T1w", "IRT1", "MESE", "dwi"])
def test_noise_in_air_is_rayleigh(head: phantom.PhantomHead, dwi: np.ndarray, kind: str) -> None:
    rng = np.random.default_rng(2)
    images = {
        "T1w": lambda: signals.t1w(head, rng)[..., None],
        "IRT1": lambda: signals.inversion_recovery(head, rng)[0],
        "MESE": lambda: signals.multi_echo(head, rng),
        "dwi": lambda: dwi,
    }
    air = np.sum(list(head.fractions.values()), axis=0) == 0
    values = images[kind]()[air]
    assert values.mean() / values.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.02)


def fitted(model: str, data: np.ndarray, gradients: Diffusion) -> tuple[np.ndarray, np.ndarray]:
    """Return the parameters and the root mean square residual relative to the largest signal."""
    if model == "smt":
        acquisition, matrix = SphericalMean.from_diffusion(gradients)
        data, physics = data @ matrix, SphericalMeanTechnique()
    elif model == "t1":
        acquisition, physics = InversionRecovery(signals.INVERSION_TIMES), InversionRecoveryT1()
    else:
        acquisition, physics = MultiEcho(signals.ECHO_TIMES), SpinEchoT2()
    estimate = NonLinearLeastSquares(physics).fit(acquisition).predict(data).estimate
    theta = torch.tensor(np.asarray(estimate, dtype=float)[:, : len(physics.parameters)])
    residual = physics.signal(theta, acquisition).numpy() - data
    return theta.numpy(), np.sqrt((residual**2).mean(axis=1)) / data.max(axis=1)


@pytest.mark.parametrize(("model", "column", "name"), [("t1", 2, "t1"), ("t2", 1, "t2")])
def test_truth_of_relaxometry_comes_back(
    head: phantom.PhantomHead, gradients: Diffusion, model: str, column: int, name: str
) -> None:
    rng = np.random.default_rng(3)
    series = signals.inversion_recovery(head, rng)[0] if model == "t1" else signals.multi_echo(head, rng)
    tissue = (head.dseg == 2) & ~head.unmodelled
    theta, residual = fitted(model, series[tissue], gradients)
    assert np.median(np.abs(theta[:, column] / head.parameters[name][tissue] - 1)) < 0.03
    _, wrong = fitted(model, series[head.unmodelled], gradients)
    assert np.median(wrong) > 1.5 * np.median(residual)


def test_truth_of_diffusion_comes_back(head: phantom.PhantomHead, gradients: Diffusion) -> None:
    """Without noise: at the SNR of the demo the noise floor biases a fit to magnitudes."""
    series = signals.diffusion(head, gradients, np.random.default_rng(1))[1]
    tissue = np.isin(head.dseg, (1, 2)) & ~head.unmodelled
    theta, residual = fitted("smt", series[tissue], gradients)
    assert np.median(np.abs(theta[:, 1] - head.parameters["fraction"][tissue])) < 0.002
    assert np.median(np.abs(theta[:, 2] / head.parameters["diffusivity"][tissue] - 1)) < 0.002
    _, wrong = fitted("smt", series[head.unmodelled], gradients)
    assert np.median(wrong) > 10 * np.median(residual)


def test_truth_of_neurites_comes_back(gradients: Diffusion) -> None:
    """The first subject's signal is that of NODDI, whose parameters and axis a fit without noise finds again."""
    head = phantom.make_head(1, 8.0, seed=0)
    truth = neurite_parameters(head, np.random.default_rng(2))
    series = signals.diffusion(head, gradients, np.random.default_rng(1), truth)[1]
    tissue = np.isin(head.dseg, (1, 2))
    maps = NonLinearLeastSquares(Noddi()).fit(gradients).predict(series[tissue])
    found = {p.name: maps.estimate[:, column] for column, p in enumerate(maps.parameters)}
    assert np.median(found["s0"] / signals.without_diffusion(head)[tissue]) == pytest.approx(1, abs=1e-3)
    for name in ("fwf", "ndi", "odi"):
        assert np.median(np.abs(found[name] - truth[name][tissue])) < 0.002
    axes = [
        np.stack([np.sin(a) * np.cos(b), np.sin(a) * np.sin(b), np.cos(a)])
        for a, b in (
            np.radians([values["theta"], values["phi"]])
            for values in (found, {name: volume[tissue] for name, volume in truth.items()})
        )
    ]
    assert np.median(np.abs((axes[0] * axes[1]).sum(axis=0))) > 0.9999
    assert truth["theta"].min() >= 0
    assert truth["theta"].max() <= 90
