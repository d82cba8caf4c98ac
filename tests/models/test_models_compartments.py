"""Each compartment against a closed form, an integral over directions, or another program."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import erf, erfi

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.models.compartments import (
    Ball,
    Compartment,
    Cylinder,
    Dot,
    Encoding,
    Stick,
    Watson,
    Zeppelin,
    concentration,
    restricted_diffusivity,
)
from qmri_bidsapp.models.compose import Composition
from qmri_bidsapp.models.legendre import TRUNCATION_ERROR, basis, even_legendre, n_terms, series, watson_moments

LIKE = torch.ones(1, dtype=torch.float64)
COSINE = torch.linspace(0, 1, 21, dtype=torch.float64)
B_VALUE = torch.tensor([[0.0], [700.0], [2000.0], [6000.0]], dtype=torch.float64)
D = 1.7e-3


def encoding(small_delta: float = 0.02, large_delta: float = 0.04) -> Encoding:
    small, large = (torch.full_like(B_VALUE, time) for time in (small_delta, large_delta))
    return Encoding(B_VALUE, small, large, series(n_terms(6000 * D), LIKE))


def attenuation(compartment: Compartment) -> np.ndarray:
    return compartment.attenuation(COSINE, {}, encoding()).expand(len(B_VALUE), len(COSINE)).numpy()


def watson(kappa: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions (n, 3) over the sphere and the weights (n,) of the Watson density about z, by brute force."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    azimuth = (np.arange(128) + 0.5) * 2 * np.pi / 128
    z, phi = np.meshgrid(nodes, azimuth, indexing="ij")
    sine = np.sqrt(1 - z**2)
    direction = np.stack([sine * np.cos(phi), sine * np.sin(phi), z], axis=-1).reshape(-1, 3)
    density = (weights[:, None] * np.exp(kappa * (z**2 - 1))).ravel()
    gradient = np.stack([np.sqrt(1 - COSINE.numpy() ** 2), 0 * COSINE.numpy(), COSINE.numpy()], axis=-1)
    return direction, density / density.sum(), gradient


def test_gaussian_compartments_are_tensors() -> None:
    b, x = B_VALUE.numpy(), COSINE.numpy()
    np.testing.assert_allclose(attenuation(Dot()), 1.0)
    np.testing.assert_allclose(attenuation(Ball(3e-3)), np.exp(-b * 3e-3) * np.ones_like(x))
    np.testing.assert_allclose(attenuation(Stick(D)), np.exp(-b * D * x**2))
    tensor = np.diag([4e-4, 4e-4, D])
    gradient = np.stack([np.sqrt(1 - x**2), 0 * x, x], axis=-1)
    expected = np.exp(-b * np.einsum("ni,ij,nj->n", gradient, tensor, gradient))
    np.testing.assert_allclose(attenuation(Zeppelin(D, 4e-4)), expected)


def test_powder_average_of_a_stick_is_its_first_coefficient() -> None:
    single = encoding()
    stick = Stick(D).attenuation(single.series.nodes, {}, single)
    average = (stick @ single.series.project)[1:, 0].numpy()
    y = (B_VALUE[1:, 0] * D).numpy()
    np.testing.assert_allclose(average, np.sqrt(np.pi) * erf(np.sqrt(y)) / (2 * np.sqrt(y)), rtol=1e-9)


@pytest.mark.parametrize("exponent", [0.5, 3.4, 10.2, 30.0, 60.0])
def test_series_is_as_exact_as_it_says(exponent: float) -> None:
    terms = n_terms(exponent)
    constants = series(terms, LIKE)
    x = torch.linspace(-1, 1, 801, dtype=torch.float64)
    coefficients = torch.exp(-exponent * constants.nodes**2) @ constants.project
    exact = torch.exp(-exponent * x**2)
    np.testing.assert_allclose(coefficients.numpy() @ even_legendre(x.numpy(), terms).T, exact, atol=2e-6)
    polynomials = basis(x.unsqueeze(0), terms).squeeze(0)
    assert polynomials.abs().max() <= 1 + 1e-12
    torch.testing.assert_close(coefficients @ constants.to_basis @ polynomials, exact, atol=2e-6, rtol=0)
    slope = x * (coefficients @ constants.differentiate @ constants.to_basis @ polynomials)
    torch.testing.assert_close(slope, -2 * exponent * x * exact, atol=2e-3, rtol=0)
    assert TRUNCATION_ERROR == 1e-6


@pytest.mark.parametrize("kappa", [0.05, 1.0, 4.0, 16.0, 64.0])
def test_watson_moments(kappa: float) -> None:
    """Against adaptive quadrature, and the second against its closed form (Zhang et al. 2012, tau_1)."""
    moments, slopes = watson_moments(torch.tensor(kappa, dtype=torch.float64), 15)
    norm = quad(lambda x: math.exp(kappa * (x * x - 1)), 0, 1, epsabs=1e-13)[0]
    for index in (0, 1, 3, 7, 14):
        polynomial = np.polynomial.legendre.Legendre.basis(2 * index)
        top = quad(lambda x, p=polynomial: p(x) * math.exp(kappa * (x * x - 1)), 0, 1, epsabs=1e-13, limit=200)[0]
        assert moments[index] == pytest.approx(top / norm, abs=1e-9)
    dawson = 0.5 * math.exp(-kappa) * math.sqrt(math.pi) * erfi(math.sqrt(kappa))
    tau = -1 / (2 * kappa) + 1 / (2 * dawson * math.sqrt(kappa))
    assert (1 + 2 * moments[1]) / 3 == pytest.approx(tau, rel=1e-9)
    step = 1e-4 * kappa
    above, below = (watson_moments(torch.tensor(kappa + s, dtype=torch.float64), 15)[0] for s in (step, -step))
    torch.testing.assert_close(slopes, (above - below) / (2 * step), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("kappa", [1e-6, 1.0, 4.0, 16.0, 64.0])
def test_dispersion_is_the_integral_over_the_watson_distribution(kappa: float) -> None:
    odi = 2 / math.pi * math.atan(1 / kappa)
    assert concentration(torch.tensor(odi, dtype=torch.float64)) == pytest.approx(kappa)
    direction, density, gradient = watson(kappa)
    cosine = gradient @ direction.T
    for compartment, perpendicular in ((Stick(D), 0.0), (Zeppelin(D, 4e-4), 4e-4)):
        expected = [
            np.exp(-b * (perpendicular + (D - perpendicular) * cosine**2)) @ density for b in B_VALUE[:, 0].numpy()
        ]
        np.testing.assert_allclose(attenuation(Watson(compartment, odi)), expected, atol=2e-6)


def across(diameter: float, small_delta: float, large_delta: float, diffusivity: float = D) -> float:
    values = (diffusivity, diameter / 2, small_delta, large_delta)
    return restricted_diffusivity(*(torch.tensor(value, dtype=torch.float64) for value in values)).item()


def test_cylinder_limits() -> None:
    radius, small, large = 0.5e-3, 0.02, 0.04
    # Long pulses (Neuman 1974): ln A = -7/48 gamma^2 G^2 delta R^4 / d, with b = gamma^2 G^2 delta^2 (Delta - delta/3).
    expected = 7 / 48 * radius**4 / (D * small * (large - small / 3))
    assert across(2 * radius, small, large) == pytest.approx(expected, rel=1e-2)
    # Short pulses, long times: two independent positions in a disc, mean squared displacement R^2 / 2 per axis.
    assert across(2e-3, 1e-7, 1.0) == pytest.approx(1e-3**2 / (4 * 1.0), rel=1e-3)
    # A wide cylinder hinders nothing, a thin one is a stick.
    assert across(2.0, small, large) == pytest.approx(D, rel=0.02)
    np.testing.assert_allclose(attenuation(Cylinder(D, 1e-4)), attenuation(Stick(D)), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("radius", "perpendicular", "oblique"),
    [
        (0.5e-3, 0.9999724169946831, 0.004494089706132102),
        (2e-3, 0.9931919076945976, 0.004491796703285308),
        (5e-3, 0.8050527089106212, 0.004421589890208901),
        (10e-3, 0.21935325418251359, 0.004010711658599145),
    ],
)
def test_cylinder_agrees_with_amico(radius: float, perpendicular: float, oblique: float, dtype: torch.dtype) -> None:
    """CylinderGPD of AMICO 2.1.1: d = 1.7e-3 mm2/s, G = 60 mT/m, delta = 20 ms, Delta = 40 ms.

    AMICO's first root, 1.841183079, differs from scipy's 1.841183781, the exponent therefore by 2e-6.
    """
    values = [torch.full((1, 1), value, dtype=dtype) for value in (3437.2350836011196, 0.02, 0.04)]
    single = Encoding(*values, series(5, LIKE.to(dtype)))
    cosine = torch.tensor([0.0, 0.9617636786063787], dtype=dtype)
    found = Cylinder(D, 2 * radius).attenuation(cosine, {}, single)
    np.testing.assert_allclose(found.numpy(), [[perpendicular, oblique]], rtol=5e-6)


def test_wide_cylinders_in_single_precision() -> None:
    """Between short pulses little is lost: differences of exponentials near one would be rounding."""
    for diffusivity in (1e-4, 6e-4):
        exact = across(18e-3, 1e-3, 15e-3, diffusivity)
        values = (torch.tensor(value) for value in (diffusivity, 9e-3, 1e-3, 15e-3))
        assert restricted_diffusivity(*values).item() == pytest.approx(exact, rel=5e-4)


def test_dispersed_cylinders_need_the_timing_of_the_pulses() -> None:
    class DispersedCylinders(Composition):
        name = "dispersed"
        title = "Dispersed cylinders"
        reference = "None"
        compartments = (Watson(Cylinder(D)), Ball(3e-3))

    table = np.random.default_rng(0).standard_normal((40, 3))
    axes = tuple(map(tuple, (table / np.linalg.norm(table, axis=1, keepdims=True)).tolist()))
    protocol = Diffusion((0.0, *(1000.0,) * 20, *(3000.0,) * 20), ((0.0, 0.0, 0.0), *axes))
    with pytest.raises(ProtocolError, match="SmallDelta and BigDelta"):
        DispersedCylinders().check(protocol)
    timed = replace(protocol, small_delta=0.02, large_delta=0.04)
    thin = torch.tensor([1.0, 0.6, 1e-4, 0.3, 30.0, 50.0], dtype=torch.float64)

    class DispersedSticks(DispersedCylinders):
        compartments = (Watson(Stick(D)), Ball(3e-3))

    expected = DispersedSticks().signal(thin[[0, 1, 3, 4, 5]], protocol)
    torch.testing.assert_close(DispersedCylinders().signal(thin, timed), expected, atol=1e-6, rtol=0)
