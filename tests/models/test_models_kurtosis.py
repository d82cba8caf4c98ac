"""Kurtosis of mixtures with known answers, whatever their orientation; the protocols it takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.models.kurtosis import AXES, DiffusionKurtosis, _quadrature

MODEL = DiffusionKurtosis()


def mixture(tensors: list[np.ndarray]) -> torch.Tensor:
    """Parameters of equal shares of Gaussian compartments: V(g) = 3 Var(g^T D_i g)."""
    mean = np.mean(tensors, axis=0)
    outer = np.mean([np.multiply.outer(tensor - mean, tensor - mean) for tensor in tensors], axis=0)
    full = outer + outer.transpose(0, 2, 1, 3) + outer.transpose(0, 3, 1, 2)
    elements = [mean[i, j] for i, j in ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2))]
    return torch.tensor([1.0, *elements, *(full[axes] for axes in AXES)], dtype=torch.float64)


def derived(theta: torch.Tensor) -> dict[str, float]:
    return dict(zip([p.name for p in MODEL.derived], MODEL.derive(theta).tolist(), strict=True))


def sphere(n: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def series(*shells: tuple[float, int]) -> Diffusion:
    """Shells that share their directions."""
    rows = [(b, tuple(g)) for b, n in shells for g in sphere(n).tolist()]
    return Diffusion((0.0, *(b for b, _ in rows)), ((0.0, 0.0, 0.0), *(g for _, g in rows)))


FIBRE = [np.diag(values) * 1e-3 for values in ((2.0, 0.3, 0.2), (1.2, 0.9, 0.4))]


def test_signal_is_the_expansion_of_a_mixture() -> None:
    """The logarithm of a mixture, to second order in b; of two equal shares, the third-order term vanishes."""
    remainder = []
    for b in (100.0, 200.0):
        protocol = series((b, 20))
        g = np.array(protocol.direction)[1:]
        exact = np.mean([np.exp(-b * np.einsum("ni,ij,nj->n", g, tensor, g)) for tensor in FIBRE], axis=0)
        found = MODEL.signal(mixture(FIBRE), protocol).numpy()[1:]
        remainder.append(np.abs(np.log(found / exact)).max())
    assert remainder[0] < 1e-4
    assert 15 < remainder[1] / remainder[0] < 17


def test_isotropic_mixture_has_one_kurtosis() -> None:
    """Two equal pools of D (1 +- x): K = 3 x^2 along every direction."""
    theta = mixture([1e-3 * (1 + sign * 0.5) * np.eye(3) for sign in (-1, 1)])
    found = derived(theta)
    assert [found[name] for name in ("mk", "ak", "rk")] == pytest.approx([0.75] * 3, rel=1e-9)
    assert found["fa"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_dipy_in_any_orientation(dtype: torch.dtype) -> None:
    """Dipy's mean and radial kurtosis are the closed forms of Tabesh et al. 2011."""
    from dipy.reconst import dki

    order = ((0,) * 4, (1,) * 4, (2,) * 4, (0, 0, 0, 1), (0, 0, 0, 2), (0, 1, 1, 1), (1, 1, 1, 2), (0, 2, 2, 2))
    order += ((1, 2, 2, 2), (0, 0, 1, 1), (0, 0, 2, 2), (1, 1, 2, 2), (0, 0, 1, 2), (0, 1, 1, 2), (0, 1, 2, 2))
    for seed in range(5):
        rotation = Rotation.random(random_state=seed).as_matrix()
        theta = mixture([rotation @ tensor @ rotation.T for tensor in FIBRE])
        xx, xy, yy, xz, yz, zz = theta[1:7].tolist()
        values, vectors = np.linalg.eigh([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        values, vectors = values[::-1], vectors[:, ::-1]
        kurtosis = [theta[7 + AXES.index(axes)].item() / values.mean() ** 2 for axes in order]
        row = np.concatenate([values, vectors.ravel(), kurtosis])[None]
        found = derived(theta.to(dtype))
        for name, peer in (("mk", dki.mean_kurtosis), ("ak", dki.axial_kurtosis), ("rk", dki.radial_kurtosis)):
            assert found[name] == pytest.approx(peer(row)[0], rel=2e-3), name
        assert [found[name] for name in ("ad", "md")] == pytest.approx([values[0], values.mean()], rel=1e-4)


@pytest.mark.parametrize("tensors", [FIBRE, [np.diag([1.5e-3, 5e-4, 5e-4]), np.diag([1.2e-3, 4e-4, 4e-4])]])
def test_gradient_holds_also_where_eigenvalues_meet(tensors: list[np.ndarray]) -> None:
    theta = mixture(tensors)
    slope = torch.func.jacrev(MODEL.derive)(theta)
    step = 1e-5 * torch.diag(torch.tensor([p.scale for p in MODEL.parameters], dtype=torch.float64))
    numeric = torch.stack([(MODEL.derive(theta + h) - MODEL.derive(theta - h)) / (2 * h.max()) for h in step], dim=-1)
    scale = torch.tensor([p.scale for p in MODEL.parameters])
    torch.testing.assert_close(slope * scale, numeric * scale, rtol=1e-4, atol=1e-6)


def test_gradient_is_finite_without_any_principal_direction() -> None:
    theta = mixture([1e-3 * np.eye(3), 2e-3 * np.eye(3)])
    assert torch.func.jacrev(MODEL.derive)(theta).isfinite().all()


def test_high_shells_are_left_out_where_low_ones_suffice() -> None:
    protocol, matrix = MODEL.adapt(series((1000.0, 20), (2995.0, 20), (5000.0, 20)))
    assert max(protocol.b_value) == 2995.0
    assert matrix is not None
    assert matrix.shape == (61, 41)
    needed = series((1000.0, 20), (5000.0, 20))
    assert MODEL.adapt(needed) == (needed, None)


@pytest.mark.parametrize(
    "protocol",
    [series((1000.0, 60)), series((1000.0, 60), (1050.0, 60)), series((1000.0, 12), (2000.0, 12))],
    ids=["one-shell", "nearly-one-shell", "12-directions"],
)
def test_tables_that_leave_kurtosis_open_are_refused(protocol: Diffusion) -> None:
    with pytest.raises(ProtocolError, match="kurtosis needs at least two shells beside b = 0 and 15 directions"):
        MODEL.check(protocol)


def test_what_a_derivative_computes_first_is_kept_for_all_threads() -> None:
    """Tensors made inside a transform belong to it; what is kept must not."""
    _quadrature.cache_clear()
    torch.func.vjp(MODEL.derive, mixture(FIBRE))
    assert all(isinstance(table, np.ndarray) for table in _quadrature())
