"""Limits of the spherical mean technique, and its powder average against explicit directions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from qmri_bidsapp.core.acquisition import Diffusion, SphericalMean
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.models.smt import SphericalMeanTechnique, stick_mean, stick_mean_derivative

PROTOCOL = SphericalMean((0.0, 1000.0, 2000.0, 3500.0, 5000.0), (12, 32, 32, 32, 32))
MODEL = SphericalMeanTechnique()


def signal(*theta: float) -> np.ndarray:
    return MODEL.signal(torch.tensor(theta, dtype=torch.float64), PROTOCOL).numpy()


def powder(parallel: float, perpendicular: float) -> np.ndarray:
    """Average of exp(-b (perpendicular + (parallel - perpendicular) u^2)) over cosines u, by quadrature."""
    return np.array(
        [
            quad(lambda u, b=b: math.exp(-b * (perpendicular + (parallel - perpendicular) * u * u)), 0, 1)[0]
            for b in PROTOCOL.b_value
        ]
    )


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("diffusivity", [0.5e-3, 2.0e-3, 3.0e-3])
def test_equals_the_integral_over_directions(fraction: float, diffusivity: float) -> None:
    """Sticks (v = 1) and free diffusion (v = 0) are its ends."""
    expected = fraction * powder(diffusivity, 0.0)
    expected += (1 - fraction) * powder(diffusivity, (1 - fraction) * diffusivity)
    np.testing.assert_allclose(signal(1.0, fraction, diffusivity), expected, rtol=1e-7)


def test_no_fraction_is_free_diffusion() -> None:
    np.testing.assert_allclose(signal(1.0, 0.0, 1e-3), np.exp(-np.array(PROTOCOL.b_value) * 1e-3), rtol=1e-12)


def test_no_diffusion_is_no_attenuation() -> None:
    np.testing.assert_allclose(signal(50.0, 0.4, 0.0), 50.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_series_and_closed_form_meet(dtype: torch.dtype) -> None:
    x = torch.linspace(0.0, 0.2, 2001, dtype=dtype)
    exact = torch.linspace(0.0, 0.2, 2001, dtype=torch.float64).sqrt()
    reference = torch.where(exact > 0, math.sqrt(math.pi) * torch.erf(exact) / (2 * exact), 1.0)
    torch.testing.assert_close(stick_mean(x).double(), reference, rtol=1e-6, atol=0)
    slope = (stick_mean(x.double() + 1e-5) - stick_mean(x.double())) / 1e-5
    torch.testing.assert_close(stick_mean_derivative(x).double(), slope, rtol=1e-4, atol=0)


def test_gradient_is_finite_at_the_corners() -> None:
    corners = torch.tensor([[1.0, v, d] for v in (0.0, 1.0) for d in (0.0, 3e-3)])
    assert MODEL.jacobian(corners, PROTOCOL).isfinite().all()


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (SphericalMean((0.0, 1000.0), (4, 30)), "at least 2 shells"),
        (SphericalMean((500.0, 1000.0, 2000.0), (30, 30, 30)), "needs b = 0"),
        (SphericalMean((0.0, 1000.0, 2000.0), (4, 30, 3)), "at least 6 directions per shell"),
    ],
    ids=["one-shell", "no-b0", "three-directions"],
)
def test_unfit_protocols_are_refused(protocol: SphericalMean, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        MODEL.check(protocol)


def series(**shells: int) -> Diffusion:
    """b0 and shells given as b1000=6 (number of directions)."""
    counts = {0.0: 1} | {float(name[1:]): count for name, count in shells.items()}
    b_value = tuple(b for b, count in counts.items() for _ in range(count))
    rows = np.random.default_rng(0).standard_normal((len(b_value), 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Diffusion(b_value, tuple(map(tuple, rows.tolist())))


def test_a_shell_of_few_directions_is_left_out_and_named() -> None:
    protocol = series(b1000=20, b1500=3, b2500=30)
    used, matrix = MODEL.adapt(protocol)
    assert used.b_value == (0.0, 1000.0, 2500.0)
    MODEL.check(used)
    np.testing.assert_allclose(matrix[[0, *range(1, 21), *range(24, 54)]].sum(axis=0), 1)
    np.testing.assert_array_equal(matrix[21:24], 0)
    assert "b = 1500 s/mm2 (3)" in MODEL.caution(protocol)
    assert MODEL.caution(series(b1000=20, b2500=30)) is None


def test_a_shell_of_few_directions_that_is_needed_is_an_error() -> None:
    used, _ = MODEL.adapt(series(b1000=3, b2500=30))
    with pytest.raises(ProtocolError, match=r"at least 6 directions per shell.*got 3 at b = 1000"):
        MODEL.check(used)


def test_diffusion_series_are_averaged() -> None:
    series = Diffusion((0.0, 1000.0, 1000.0), ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
    protocol, matrix = MODEL.adapt(series)
    assert protocol == SphericalMean((0.0, 1000.0), (1, 2))
    np.testing.assert_allclose(matrix, [[1, 0], [0, 0.5], [0, 0.5]])
