"""Simulated noise, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest, rice

from qmri_bidsapp.core.acquisition import InversionRecovery, MultiEcho, SphericalMean
from qmri_bidsapp.core.simulation import Noise, Simulation, reference
from qmri_bidsapp.errors import PriorError
from qmri_bidsapp.registry import get_model

SHELLS = SphericalMean((0.0, 1000.0, 3000.0), (4, 16, 32))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_gaussian_noise_is_averaged_within_shells():
    signal = torch.tensor([1.0, 0.5, 0.2]).expand(40_000, 3)
    noisy = Noise("gaussian", (10, 10)).add(signal, torch.tensor(0.1), SHELLS, generator())
    np.testing.assert_allclose(noisy.std(0), 0.1 / np.sqrt([4, 16, 32]), rtol=0.02)
    np.testing.assert_allclose(noisy.mean(0), [1, 0.5, 0.2], atol=5 * 0.1 / np.sqrt(4 * 40_000))


def test_rician_noise_has_the_distribution_of_rice_before_averages_are_taken():
    noise, sigma = Noise("rician", (10, 10)), torch.tensor(0.1)
    single = noise.add(torch.full((20_000, 1), 0.1), sigma, MultiEcho((0.1,)), generator())
    assert kstest(single[:, 0].double(), rice(1.0, scale=0.1).cdf).pvalue > 0.01
    mean = noise.add(torch.full((20_000, 3), 0.1), sigma, SHELLS, generator())
    np.testing.assert_allclose(mean.mean(0), rice.mean(1.0, scale=0.1), rtol=0.01)
    np.testing.assert_allclose(mean.std(0), rice.std(1.0, scale=0.1) / np.sqrt([4, 16, 32]), rtol=0.02)


def test_rician_powder_averages_of_tissue_and_the_noise_of_b0():
    model, theta = get_model("smt"), torch.tensor([[1.0, 0.16, 1.14e-3]])
    simulation = Simulation(theta, lambda part: model.signal(part, SHELLS), SHELLS, Noise("rician", (5.0, 5.0)))
    _, signal, sigma = simulation.draw(40_000, generator())
    assert (sigma == 0.2).all()
    clean, n_averages = simulation.clean[0].double().numpy(), np.sqrt(SHELLS.n_directions)
    law = rice(clean / 0.2, scale=0.2)
    # At b = 3000 s/mm2 tissue lies below the floor: the mean is twice the signal.
    assert law.mean()[2] > 1.8 * clean[2]
    np.testing.assert_allclose(signal.mean(0), law.mean(), rtol=0.005)
    np.testing.assert_allclose(signal.std(0), law.std() / n_averages, rtol=0.02)
    # Network inputs are relative to the noisy b0: its noise is in all of them.
    relative = (signal / reference(signal, SHELLS))[:, 1]
    spread = np.hypot(law.std()[1] / law.mean()[1] / 4, law.std()[0] / law.mean()[0] / 2)
    np.testing.assert_allclose(relative.std() / relative.mean(), spread, rtol=0.05)


def test_noise_levels_are_those_of_the_range():
    level = Noise("gaussian", (5.0, 50.0)).levels(20_000, generator())[:, 0].double()
    assert kstest(-level.log10(), "uniform", (np.log10(5), 1.0)).pvalue > 0.01
    assert (Noise("gaussian", (25.0, 25.0)).levels(9, generator()) == 0.04).all()


def test_reference_is_b0_where_there_is_one():
    signal = torch.tensor([[0.9, 1.1, 0.7]])
    assert reference(signal, SHELLS).item() == pytest.approx(0.9)
    twice = SphericalMean((0.0, 4.0, 2000.0), (1, 3, 8))
    assert reference(signal, twice).item() == pytest.approx((0.9 + 3 * 1.1) / 4)
    assert reference(-signal, InversionRecovery((0.1, 1.0, 2.0))).item() == pytest.approx(1.1)


def test_noise_is_drawn_anew_and_repeats_with_the_seed():
    model, theta = get_model("smt"), torch.tensor([[1.0, 0.6, 2e-3]])
    simulation = Simulation(theta, lambda part: model.signal(part, SHELLS), SHELLS, Noise("gaussian", (25.0, 25.0)))
    chance = generator(3)
    _, first, sigma = simulation.draw(5, chance)
    _, second, _ = simulation.draw(5, chance)
    assert len(torch.unique(torch.cat([first, second])[:, 0])) == 10
    torch.testing.assert_close(simulation.draw(5, generator(3))[1], first, rtol=0, atol=0)
    assert (sigma == 0.04).all()


@pytest.mark.parametrize(
    ("kind", "snr"),
    [("poisson", (9, 9)), ("rician", (0, 9)), ("rician", (9, 5)), ("gaussian", (9, float("inf")))],
    ids=["kind", "zero", "reversed", "open range"],
)
def test_impossible_noise_is_refused(kind, snr):
    with pytest.raises(PriorError):
        Noise(kind, snr)
