"""Features and targets of models with directions: they turn with the tissue, and come back from where they were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.estimators.learned.features import Features
from qmri_bidsapp.estimators.learned.targets import Targets
from qmri_bidsapp.evaluation.standards import even_directions, shells, signals
from qmri_bidsapp.models.directions import unit_vector
from qmri_bidsapp.models.noddi import Noddi
from qmri_bidsapp.models.rotation import turn
from qmri_bidsapp.registry import get_model

PROTOCOL = shells(2, (700.0, 32), (2000.0, 64))
CLEAN = Noise("gaussian", (25.0, 25.0))
NAMES = ["tensor", "kurtosis", "noddi"]


def tissue(model, n: int) -> torch.Tensor:
    theta = torch.tensor(np.insert(model.default_prior().draw(n, np.random.default_rng(0)), 0, 1.0, axis=1))
    return turn(model, theta, rotations(n))


def rotations(n: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor(Rotation.random(n, random_state=seed).as_matrix())


def seen(model, theta: torch.Tensor, protocol: Diffusion) -> tuple[torch.Tensor, torch.Tensor]:
    features = Features(model, protocol, CLEAN, "cpu")
    signal = torch.tensor(signals(model, theta.numpy(), protocol)).float()
    frames = features.frames(signal)
    return frames, features(signal, frames, torch.full((len(signal), 1), 0.04), torch.empty(len(signal), 0))


@pytest.mark.parametrize("name", NAMES)
def test_features_do_not_see_how_tissue_and_gradients_are_turned(name):
    model, theta, rotation = get_model(name), tissue(get_model(name), 20), rotations(1, seed=3)
    turned = replace(PROTOCOL, direction=tuple(map(tuple, np.asarray(PROTOCOL.direction) @ rotation[0].numpy().T)))
    _, before = seen(model, theta, PROTOCOL)
    _, after = seen(model, turn(model, theta, rotation.expand(20, 3, 3)), turned)
    # The sign of an eigenvector has no meaning.
    difference = (before.abs() - after.abs()).abs().amax(1)
    assert before.shape == (20, 1 + 2 * 15)
    assert difference.median() < 1e-5


def test_the_first_axis_is_that_of_the_fibres():
    theta = tissue(Noddi(), 50)
    theta[:, 1:4] = torch.tensor([0.0, 0.6, 0.05])
    frames, _ = seen(Noddi(), theta, PROTOCOL)
    assert ((frames[:, 0] * unit_vector(theta[:, 4:]).float()).sum(1).abs() > 0.999).all()


def test_a_shell_is_seen_as_far_as_its_directions_go():
    protocol = shells(1, (700.0, 3), (1500.0, 8), (2500.0, 40))
    theta = tissue(Noddi(), 4)
    assert seen(Noddi(), theta, protocol)[1].shape == (4, 1 + 1 + 6 + 15)
    # On a cone about z no form of z is known, however many directions there are.
    angle = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    cone = np.stack([0.6 * np.cos(angle), 0.6 * np.sin(angle), np.full(30, 0.8)], axis=1)
    flat = Diffusion((0.0,) + (1000.0,) * 38, ((0.0, 0.0, 0.0), *map(tuple, cone), *even_directions(8)))
    assert seen(get_model("tensor"), tissue(get_model("tensor"), 4), flat)[1].shape[1] in (7, 16)
    with pytest.raises(ProtocolError, match="a shell of at least 6 directions"):
        seen(Noddi(), theta, Diffusion((0.0,) + (1000.0,) * 30, ((0.0, 0.0, 0.0), *map(tuple, cone))))


@pytest.mark.parametrize("name", NAMES)
def test_positions_lead_back_to_the_parameters(name):
    model = get_model(name)
    theta = model.canonical(tissue(model, 2000))
    targets = Targets(model)
    truth = targets.truth(theta)
    targets.learn_ranges(truth)
    frames = rotations(2000, seed=1).float()
    position = targets.positions(truth, frames)
    assert ((position > 0) & (position < 1)).float().mean() > 0.999
    spread = torch.full_like(position, 0.01).double()
    estimate, std, _ = targets.estimates(position.double(), spread, frames)
    expected = torch.cat([theta, model.derive(theta)], dim=1)[:, 1:]
    scale = torch.tensor([p.scale for p in (*model.parameters, *model.derived)])[1:]
    assert ((estimate - expected).abs() / scale).quantile(0.99) < 2e-3
    assert (std > 0).float().mean() > 0.999


def test_the_spread_of_an_axis_is_that_of_its_angles():
    model, n = Noddi(), 40_000
    rng = torch.Generator().manual_seed(0)
    frame = rotations(1, seed=2)
    spread = torch.tensor([0.01, 0.03, 0.01, 0.05, 0.02, 0.01]).double()
    theta = torch.tensor([[1.0, 0.2, 0.5, 0.3, 50.0, 30.0]]).double()
    targets = Targets(model)
    targets.learn_ranges(targets.truth(theta))
    position = targets.positions(targets.truth(theta), frame.float()).double()
    noisy = position.expand(n, -1).clone()
    noisy[:, 3:] += spread * torch.randn(n, 6, generator=rng).double()
    sigma = torch.cat([torch.full((n, 3), 0.01).double(), spread.expand(n, 6)], dim=1)
    estimate, std, _ = targets.estimates(noisy, sigma, frame.expand(n, 3, 3).float())
    np.testing.assert_allclose(estimate[:, 3:].std(0), std[:, 3:].square().mean(0).sqrt(), rtol=0.05)
