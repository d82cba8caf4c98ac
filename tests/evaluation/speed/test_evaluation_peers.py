"""Peers solve the same problems: each finds the truth in data without noise."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.evaluation.speed import peers
from qmri_bidsapp.evaluation.standards import signals, standard, tissue
from qmri_bidsapp.registry import get_model

IMPORTED = {"ivim-mri": "ivim", "dmri-amico": "amico", "dmipy-fit": "dmipy_fit"}


def find(name: str, model: str) -> peers.Peer:
    peer = next(item for item in peers.PEERS if (item.name, item.model) == (name, model))
    module = IMPORTED.get(peer.package, peer.package)
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {peer.package}, which is not installed")
    return peer


@pytest.mark.parametrize("name", ["t1", "t2", "smt"])
def test_least_squares(name: str):
    theta = tissue(get_model(name), 20, np.random.default_rng(0))
    with peers.one_core():
        found = find("scipy least_squares", name).prepare(standard(name))(
            signals(get_model(name), theta, standard(name))
        )
    # One start: the sign of a magnitude, or an even trade of fraction and diffusivity, can hold a fit.
    close = np.isclose(found, theta, rtol=1e-2).all(axis=1)
    assert close.mean() >= 0.9


def test_dipy_tensor():
    model = get_model("tensor")
    theta = tissue(model, 20, np.random.default_rng(0))
    with peers.one_core():
        found = find("dipy WLS", "tensor").prepare(standard("tensor"))(signals(model, theta, standard("tensor")))
    np.testing.assert_allclose(found, model.derive(torch.tensor(theta))[:, :2].numpy(), rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "tolerance"), [("scipy least_squares", 0.01), ("dipy trr", 0.01), ("ivim-mri segmented", 0.2)]
)
def test_ivim(name: str, tolerance: float):
    s0, f, d_star, d = 1000.0, 0.15, 0.02, 1.0e-3
    b_value = np.asarray(standard("ivim").b_value)
    signal = s0 * (f * np.exp(-b_value * d_star) + (1 - f) * np.exp(-b_value * d))
    with peers.one_core():
        found = find(name, "ivim").prepare(standard("ivim"))(np.tile(signal, (3, 1)))
    np.testing.assert_allclose(found, np.tile([s0, f, d_star, d], (3, 1)), rtol=tolerance)


@pytest.mark.parametrize("name", ["AMICO", "dmipy"])
def test_noddi(name: str):
    """Signals by brute force: sticks and a tensor averaged over many directions drawn from Watson's distribution."""
    protocol = standard("noddi")
    assert isinstance(protocol, Diffusion)
    ndi, odi, fwf = 0.6, 0.2, 0.1
    signal = watson_signal(protocol, ndi, odi, fwf)
    with peers.one_core():
        found = find(name, "noddi").prepare(protocol)(np.tile(1000 * signal, (2, 1)))
    np.testing.assert_allclose(found, np.tile([ndi, odi, fwf], (2, 1)), atol=0.05)


def watson_signal(protocol: Diffusion, ndi: float, odi: float, fwf: float) -> np.ndarray:
    axis = np.array([0.6, 0.0, 0.8])
    points = np.random.default_rng(0).standard_normal((40_000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    weight = np.exp((points @ axis) ** 2 / np.tan(odi * np.pi / 2))
    weight /= weight.sum()
    b_value, direction = np.array(protocol.b_value), np.array(protocol.direction)
    parallel, free = 1.7e-3, 3.0e-3
    sticks = np.exp(-b_value[:, None] * parallel * (direction @ points.T) ** 2) @ weight
    across = parallel * (1 - ndi)
    tensor = across * np.eye(3) + (parallel - across) * np.einsum("n,ni,nj->ij", weight, points, points)
    hindered = np.exp(-b_value * np.einsum("mi,ij,mj->m", direction, tensor, direction))
    return (1 - fwf) * (ndi * sticks + (1 - ndi) * hindered) + fwf * np.exp(-b_value * free)
