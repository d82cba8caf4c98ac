"""Tissue that is turned, and tensors that are plausible."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.errors import PriorError
from qmri_bidsapp.evaluation.standards import shells, signals
from qmri_bidsapp.models.noddi import Noddi
from qmri_bidsapp.models.rotation import harmonics_of_elements, rotation_of_elements, turn
from qmri_bidsapp.models.tensor import full_tensor
from qmri_bidsapp.registry import get_model

PROTOCOL = shells(2, (1000.0, 20), (2500.0, 30))
MODELS = [get_model("tensor"), get_model("kurtosis"), Noddi(), Noddi.with_bundles(3)(), Noddi.with_bundles(0)()]


def rotations(n: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor(Rotation.random(n, random_state=seed).as_matrix())


def tissue(model, n: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor(np.insert(model.default_prior().draw(n, np.random.default_rng(seed)), 0, 1.0, axis=1))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.name}-{getattr(model, 'n_bundles', 1)}")
def test_tissue_that_turns_with_the_gradients_has_the_same_signal(model):
    theta, rotation = tissue(model, 5), rotations(5)
    turned = turn(model, theta, rotation)
    for n in range(5):
        direction = np.asarray(PROTOCOL.direction) @ rotation[n].numpy().T
        with_gradients = replace(PROTOCOL, direction=tuple(map(tuple, direction)))
        before, after = (
            signals(model, part[n : n + 1].numpy(), protocol)
            for part, protocol in ((theta, PROTOCOL), (turned, with_gradients))
        )
        np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-12)


def test_tensors_turn_as_matrices():
    elements, rotation = torch.rand(6, 6, dtype=torch.float64, generator=torch.manual_seed(0)), rotations(6)
    turned = (rotation_of_elements(rotation, 2) @ elements.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(full_tensor(turned), rotation @ full_tensor(elements) @ rotation.mT)


def test_harmonics_keep_the_power_of_each_degree():
    elements, one = torch.rand(1, 15, dtype=torch.float64, generator=torch.manual_seed(0)), torch.eye(3).double()[None]
    first, second = ((harmonics_of_elements(r, 4) @ elements.mT).squeeze() for r in (one, rotations(1)))
    assert not torch.allclose(first, second)
    for degree in (slice(0, 1), slice(1, 6), slice(6, 15)):
        torch.testing.assert_close(first[degree].norm(), second[degree].norm())
    # x^4 is (8 P_4 + 20 P_2 + 7) / 35, of the cosine to the first axis; P_l is sqrt(4 pi / (2 l + 1)) Y_l0.
    x4 = torch.zeros(15, 1, dtype=torch.float64)
    x4[0] = 1.0
    expected = torch.zeros(15, dtype=torch.float64)
    expected[[0, 3, 10]] = torch.tensor([7 / 35, 20 / 35 / 5**0.5, 8 / 35 / 3]).double() * (4 * torch.pi) ** 0.5
    torch.testing.assert_close((harmonics_of_elements(one, 4)[0] @ x4).squeeze(), expected)


def test_tensors_of_the_default_prior_are_those_of_tissue():
    model = get_model("tensor")
    eigenvalues = np.linalg.eigvalsh(full_tensor(tissue(model, 5000)[:, 1:]).numpy())
    assert 0 < eigenvalues.min() < 0.05e-3
    assert 2.9e-3 < eigenvalues.max() < 3e-3
    narrow = model.default_prior({"largest_eigenvalue": (1e-3, 2e-3)}).draw(2000, np.random.default_rng(1))
    largest = np.linalg.eigvalsh(full_tensor(torch.tensor(narrow)).numpy())[:, 2]
    assert 1e-3 <= largest.min() < 1.01e-3 < 1.99e-3 < largest.max() <= 2e-3
    # No direction is preferred.
    axis = np.linalg.eigh(full_tensor(tissue(model, 20_000)[:, 1:]).numpy())[1][:, :, 2]
    np.testing.assert_allclose(np.einsum("ni,nj->ij", axis, axis) / len(axis), np.eye(3) / 3, atol=0.01)


def test_kurtosis_of_the_default_prior_is_positive_and_the_signal_falls():
    model = get_model("kurtosis")
    theta = tissue(model, 1000)
    derived = model.derive(theta)
    assert (derived[:, 4:] >= -1e-9).all()
    lowest, middle, highest = np.percentile(derived[:, 4], [5, 50, 95])
    assert lowest < 0.1 < middle < 0.6 < highest < 2.0
    b_values = np.linspace(0, 3000, 16)
    for direction in np.eye(3):
        ray = Diffusion(tuple(b_values), ((0.0, 0.0, 0.0),) + (tuple(direction),) * 15)
        assert (np.diff(signals(model, theta.numpy(), ray), axis=1) <= 1e-9).all()


def test_no_range_of_a_direction_can_be_set():
    with pytest.raises(PriorError, match="no range can be set for theta"):
        Noddi().default_prior({"theta": (0.0, 10.0)})
    with pytest.raises(PriorError, match="range of dxx, but the parameters are largest_eigenvalue"):
        get_model("tensor").default_prior({"dxx": (0.0, 1e-3)})
