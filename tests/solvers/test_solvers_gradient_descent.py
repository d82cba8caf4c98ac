"""The training loop: steps, schedules, averages, and what it leaves behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.solvers.gradient_descent import cosine, descend, one_thread, plateau, seeded, update_average


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))


def test_steps_follow_the_clipped_gradient_at_the_scheduled_rate() -> None:
    weight = parameter()
    optimiser = torch.optim.SGD([weight], lr=1.0)
    # The gradient of half the square is the weight itself, of norm 5; it is clipped to norm 1.
    steps = descend(lambda _: weight.square().sum() / 2, [optimiser], lambda _: 0.5, steps=[0], max_norm=1.0)
    assert list(steps) == [(0, 12.5)]
    torch.testing.assert_close(weight.detach(), torch.tensor([2.7, 3.6], dtype=torch.float64))


def test_a_restored_optimiser_keeps_its_largest_rate() -> None:
    def trained(split: bool) -> torch.Tensor:
        weight = parameter()
        optimiser = torch.optim.Adam([weight], lr=0.1)
        for part in (range(3), range(3, 6)) if split else (range(6),):
            if part.start:
                state = optimiser.state_dict()
                optimiser = torch.optim.Adam([weight], lr=0.1)
                optimiser.load_state_dict(state)
            for _ in descend(
                lambda _: weight.square().sum(), [optimiser], lambda step: 1 / (step + 1), steps=part, max_norm=9.0
            ):
                pass
        return weight.detach()

    assert torch.equal(trained(split=True), trained(split=False))


def test_a_loss_that_is_not_finite_is_an_error_and_moves_nothing() -> None:
    weight = parameter()
    steps = descend(
        lambda _: weight.sum() * torch.inf, [torch.optim.SGD([weight], lr=1.0)], lambda _: 1.0, steps=[7], max_norm=1.0
    )
    with pytest.raises(UsageError, match="the loss of step 8 is inf"):
        list(steps)
    assert torch.equal(weight, parameter())


def test_schedules() -> None:
    assert [plateau(step, 10, rise=2, fall=4) for step in (0, 1, 5, 6, 8, 9)] == [0.5, 1.0, 1.0, 1.0, 0.5, 0.25]
    assert [cosine(step, 10, rise_share=0.2) for step in (0, 1, 5, 9)] == pytest.approx([0.5, 1.0, 0.5, 0.0])


def test_an_average_remembers_weights_and_copies_counts() -> None:
    average, network = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    network.weight.data.fill_(2.0)
    network.num_batches_tracked.fill_(5)
    update_average(average, network, 0.75)
    assert float(average.weight.detach()) == 1.25
    assert int(average.num_batches_tracked) == 5


def test_threads_and_seed_are_restored() -> None:
    n_threads, state = torch.get_num_threads(), torch.get_rng_state()
    with one_thread(), seeded(1):
        assert torch.get_num_threads() == 1
        first = torch.rand(1)
    with seeded(1):
        assert torch.equal(torch.rand(1), first)
    assert torch.get_num_threads() == n_threads
    assert torch.equal(torch.get_rng_state(), state)
