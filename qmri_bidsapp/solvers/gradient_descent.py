"""Stochastic gradient descent: one training loop for all networks, learning-rate schedules, averaged weights.

The loop draws no random numbers itself. Its caller draws each batch from a generator or from the number of the step, so
that the same seed gives the same weights and an interrupted training can continue where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from qmri_bidsapp.errors import UsageError


def descend(
    loss: Callable[[int], torch.Tensor],
    optimisers: Sequence[torch.optim.Optimizer],
    schedule: Callable[[int], float],
    *,
    steps: Iterable[int],
    max_norm: float,
) -> Iterator[tuple[int, float]]:
    """Make one gradient step after the other; yield after each, so that the caller can average, report and save.

    Parameters
    ----------
    loss : callable
        Takes the number of the step and returns the loss, a scalar with a gradient, of a new batch.
    optimisers : sequence of Optimizer
        One for each part of the network. The learning rate that each was constructed with is its largest.
    schedule : callable
        Takes the number of the step and returns the factor of the learning rates.
    steps : iterable of int
        Numbers of the steps, from zero; a resumed training begins with a later one.
    max_norm : float
        Largest norm of the gradient of all parameters together; longer ones are scaled down to it.

    Yields
    ------
    step : int
    loss : float
        Before the step.

    Raises
    ------
    UsageError
        If the loss is not finite.
    """
    parameters = [
        parameter for optimiser in optimisers for group in optimiser.param_groups for parameter in group["params"]
    ]
    for step in steps:
        factor = schedule(step)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                # Not the rate in the group: a restored state brings that of its last step.
                group["lr"] = optimiser.defaults["lr"] * factor
            optimiser.zero_grad(set_to_none=True)
        value = loss(step)
        if not value.isfinite():
            raise UsageError(
                f"Training diverged: the loss of step {step + 1} is {float(value.detach())}. Lower the learning rate."
            )
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, max_norm)
        for optimiser in optimisers:
            optimiser.step()
        yield step, float(value.detach())


def plateau(step: int, n_steps: int, *, rise: float, fall: float) -> float:
    """Return the factor of the learning rate: a linear rise, a plateau at one, and a linear fall to zero at the end.

    Parameters
    ----------
    step, n_steps : int
        Number of the step, from zero, and of all steps.
    rise, fall : float
        Lengths of the rise and of the fall, in steps.
    """
    return min(1.0, (step + 1) / rise, (n_steps - step) / fall)


def cosine(step: int, n_steps: int, *, rise_share: float) -> float:
    """Return the factor of the learning rate: a linear rise, then a fall to zero along half a cosine.

    Loshchilov and Hutter 2017 (ICLR), with one cycle.

    Parameters
    ----------
    step, n_steps : int
        Number of the step, from zero, and of all steps.
    rise_share : float
        Length of the rise as a share of all steps.
    """
    share = (step + 1) / n_steps
    if share < rise_share:
        return share / rise_share
    return 0.5 * (1 + math.cos(math.pi * (share - rise_share) / (1 - rise_share)))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, memory: float) -> None:
    """Update the exponential moving average of a network's weights in place.

    Parameters
    ----------
    average : Module
        Of the same architecture as `network`. Integers in its state, such as counts of batches, become those of
        `network`.
    network : Module
    memory : float
        Weight of the average so far, 0 to 1.
    """
    for mean, value in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - memory)
        else:
            mean.copy_(value)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread of the processor: rounding, and so trained weights, depends on the number of threads."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's default generator of the processor, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
