"""The tensor against known shapes, rotations and protocols."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.models.tensor import DiffusionTensor

MODEL = DiffusionTensor()


def theta(tensor: np.ndarray, s0: float = 1.0) -> torch.Tensor:
    elements = [tensor[i, j] for i, j in ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2))]
    return torch.tensor([s0, *elements], dtype=torch.float64)


def series(b_values: tuple[float, ...], n: int = 12) -> Diffusion:
    vectors = np.random.default_rng(0).standard_normal((n, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = tuple(map(tuple, vectors.tolist()))
    return Diffusion(
        (0.0, *(b for b in b_values for _ in rows)),
        ((0.0, 0.0, 0.0), *(row for _ in b_values for row in rows)),
    )


@pytest.mark.parametrize(
    ("eigenvalues", "fa"),
    [((1e-3, 1e-3, 1e-3), 0.0), ((2e-3, 0.0, 0.0), 1.0), ((1.7e-3, 0.3e-3, 0.3e-3), 0.7990)],
    ids=["isotropic", "stick", "corpus-callosum"],
)
def test_invariants_do_not_depend_on_orientation(eigenvalues: tuple[float, ...], fa: float) -> None:
    rotation = Rotation.random(random_state=3).as_matrix()
    found = MODEL.derive(theta(rotation @ np.diag(eigenvalues) @ rotation.T)).numpy()
    largest, *others = sorted(eigenvalues, reverse=True)
    expected = [fa, np.mean(eigenvalues), largest, np.mean(others)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_gradient_of_the_invariants_is_finite_where_eigenvalues_meet() -> None:
    start = theta(1e-3 * np.eye(3)).requires_grad_()
    MODEL.derive(start)[:2].sum().backward()
    assert start.grad is not None
    assert start.grad.isfinite().all()


def test_signal_is_the_quadratic_form() -> None:
    tensor = np.array([[1.5, 0.2, 0.1], [0.2, 0.8, 0.3], [0.1, 0.3, 0.6]]) * 1e-3
    protocol = series((1000.0, 2000.0))
    g, b = np.array(protocol.direction), np.array(protocol.b_value)
    expected = 7.0 * np.exp(-b * np.einsum("ni,ij,nj->n", g, tensor, g))
    np.testing.assert_allclose(MODEL.signal(theta(tensor, 7.0), protocol).numpy(), expected, rtol=1e-12)
    log_signal = MODEL.design_matrix(protocol).numpy() @ np.array([np.log(7.0), *theta(tensor)[1:]])
    np.testing.assert_allclose(np.exp(log_signal), expected, rtol=1e-12)


def test_high_shells_are_left_out_where_low_ones_suffice() -> None:
    protocol, matrix = MODEL.adapt(series((1000.0, 3000.0)))
    assert max(protocol.b_value) == 1000.0
    assert matrix is not None
    assert matrix.shape == (25, 13)
    only_high = series((3000.0,))
    assert MODEL.adapt(only_high) == (only_high, None)


def test_a_shell_at_the_limit_is_not_torn_apart() -> None:
    """b-values as a scanner writes them, around 1500."""
    protocol, matrix = MODEL.adapt(series((1495.0, 1505.0, 3000.0)))
    assert matrix is not None
    assert protocol.n_measurements == 25


@pytest.mark.parametrize("case", ["one-b-value", "one-plane"])
def test_tables_that_leave_the_tensor_open_are_refused(case: str) -> None:
    if case == "one-b-value":
        full = series((1000.0,))
        table = Diffusion(full.b_value[1:], full.direction[1:])
    else:
        angles = np.linspace(0, np.pi, 12, endpoint=False)
        plane = tuple((float(np.cos(a)), float(np.sin(a)), 0.0) for a in angles)
        table = Diffusion((0.0,) + (1000.0,) * 12, ((0.0, 0.0, 0.0), *plane))
    with pytest.raises(ProtocolError, match="does not determine"):
        MODEL.check(table)
