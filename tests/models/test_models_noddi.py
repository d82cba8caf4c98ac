"""NODDI against brute-force integration over the Watson distribution, and against AMICO."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.models.compose import Composition
from qmri_bidsapp.models.noddi import Noddi

D = 1.7e-3
MODEL = Noddi()


def directions(n: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def protocol(*shells: float, n: int = 20) -> Diffusion:
    b_value = (0.0, *(b for b in shells for _ in range(n)))
    return Diffusion(b_value, ((0.0, 0.0, 0.0), *map(tuple, directions(n * len(shells)))))


def brute_force(fwf: float, ndi: float, kappa: float, mu: np.ndarray, acquisition: Diffusion) -> np.ndarray:
    """Zhang et al. 2012, eqs. 1 to 8, with every integral over the sphere as a sum."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    z, azimuth = np.meshgrid(nodes, (np.arange(128) + 0.5) * 2 * np.pi / 128, indexing="ij")
    sine = np.sqrt(1 - z**2)
    local = np.stack([sine * np.cos(azimuth), sine * np.sin(azimuth), z], axis=-1).reshape(-1, 3)
    density = (weights[:, None] * np.exp(kappa * (z**2 - 1))).ravel()
    density /= density.sum()
    frame = np.linalg.svd(mu[None])[2][::-1]  # rows: two perpendicular axes, then mu
    neurites = local @ frame
    b, g = np.array(acquisition.b_value), np.array(acquisition.direction)
    intra = np.exp(-b[:, None] * D * (g @ neurites.T) ** 2) @ density
    second = (neurites * density[:, None]).T @ neurites
    tensor = D * (1 - ndi) * np.eye(3) + D * ndi * second
    extra = np.exp(-b * np.einsum("ni,ij,nj->n", g, tensor, g))
    return fwf * np.exp(-b * 3e-3) + (1 - fwf) * (ndi * intra + (1 - ndi) * extra)


@pytest.mark.parametrize("kappa", [0.02, 1.0, 4.0, 16.0, 63.0])
@pytest.mark.parametrize("fwf", [0.0, 0.3])
def test_equals_the_integral_over_directions(fwf: float, kappa: float) -> None:
    acquisition = protocol(700.0, 2000.0, 5900.0)
    odi = 2 / math.pi * math.atan(1 / kappa)
    theta = torch.tensor([1.0, fwf, 0.6, odi, 50.0, -130.0], dtype=torch.float64)
    mu = MODEL.direction(theta)[0].numpy()
    expected = brute_force(fwf, 0.6, kappa, mu, acquisition)
    np.testing.assert_allclose(MODEL.signal(theta, acquisition), expected, atol=1e-6)
    np.testing.assert_allclose(MODEL.signal(theta.float(), acquisition), expected, atol=3e-6)


@pytest.mark.parametrize(
    ("kappa", "b_value", "cosine", "intra", "extra"),
    [
        (1.0, 700.0, 0.9617636786063787, 0.65028975, 0.37441767),
        (1.0, 2000.0, 0.06534004108649821, 0.52786654, 0.0691333),
        (4.0, 700.0, 0.4001712589507583, 0.78167364, 0.39949109),
        (4.0, 2000.0, 0.7229736129958929, 0.33855515, 0.05915643),
    ],
)
def test_kernels_agree_with_amico(kappa: float, b_value: float, cosine: float, intra: float, extra: float) -> None:
    """NODDIIntraCellular and NODDIExtraCellular (ndi = 0.3) of AMICO 2.1.1."""
    odi = 2 / math.pi * math.atan(1 / kappa)
    acquisition = Diffusion((b_value,), ((math.sqrt(1 - cosine**2), 0.0, cosine),))
    theta = torch.tensor([[1.0, 0.0, ndi, odi, 0.0, 0.0] for ndi in (1.0, 0.3)], dtype=torch.float64)
    sticks, mixture = MODEL.signal(theta, acquisition)[:, 0].tolist()
    assert sticks == pytest.approx(intra, abs=1e-6)
    assert (mixture - 0.3 * sticks) / 0.7 == pytest.approx(extra, abs=1e-6)


def test_closed_slopes_are_those_of_the_composition() -> None:
    acquisition = protocol(700.0, 2000.0)
    tissue = torch.rand((50, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.98 + 0.01
    layout = MODEL.layout(acquisition, tissue)
    automatic = Composition.series_and_slopes(MODEL, tissue, layout)
    closed = MODEL.series_and_slopes(tissue, layout)
    for found, expected in zip(closed, automatic, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    in_single = MODEL.series_and_slopes(tissue.float(), MODEL.layout(acquisition, tissue.float()))
    for found, expected in zip(in_single, automatic, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=3e-6)


def test_names_are_those_of_the_field() -> None:
    assert [p.label for p in MODEL.parameters] == ["s0", "fwf", "ndi", "odi", "theta", "phi"]
    assert MODEL.derived == ()
