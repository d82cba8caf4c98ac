"""Training of voxelwise networks on simulated batches: options, optimisers, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from qmri_bidsapp.artifacts.checkpoints import read_facts, restore_checkpoint, save_checkpoint
from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.estimators.learned.optimisers import FTRL, ProximalAdagrad
from qmri_bidsapp.solvers.gradient_descent import cosine, descend

#: Optimisers by name, each with its default learning rate.
OPTIMISERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], float]] = {
    "adam": (torch.optim.Adam, 5e-3),
    "sgd": (partial(torch.optim.SGD, momentum=0.9), 2e-2),
    "ftrl": (FTRL, 4e-1),
    "proximal-adagrad": (ProximalAdagrad, 1e-1),
}
#: Optimisers with penalties.
PENALISED = ("ftrl", "proximal-adagrad")
#: Share of the steps in which the learning rate rises, before it falls along a cosine.
WARM_UP = 0.05
#: Steps between reports of progress, and between checkpoints.
REPORT_EVERY = 100
CHECKPOINT_EVERY = 1000
#: Largest norm of the gradient.
CLIP = 10.0


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Attributes
    ----------
    steps : int
        Number of batches.
    batch_size : int
        Number of examples in each batch.
    optimiser : str
        One of `OPTIMISERS`.
    learning_rate : float or None
        Largest learning rate; None for that of the optimiser in `OPTIMISERS`.
    l1, l2 : float
        Factors of the penalties |w| and w^2 / 2 on all weights, for the optimisers in `PENALISED`.
    """

    steps: int = 8000
    batch_size: int = 1024
    optimiser: str = "adam"
    learning_rate: float | None = None
    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise UsageError(f"There is no optimiser {self.optimiser!r}; known: {', '.join(OPTIMISERS)}.")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise UsageError(f"The learning rate must be positive, got {self.learning_rate}.")
        if self.steps < 1 or self.batch_size < 1:
            raise UsageError(f"Training needs at least one step and one example, got {self.steps}, {self.batch_size}.")
        if min(self.l1, self.l2) < 0 or (self.optimiser not in PENALISED and (self.l1, self.l2) != (0, 0)):
            raise UsageError(
                f"Penalties l1 and l2 must not be negative, and are for {' and '.join(PENALISED)}; got {self.l1} and "
                f"{self.l2} for {self.optimiser}."
            )

    def optimise(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return an optimiser of parameters, at the largest learning rate."""
        kind, usual = OPTIMISERS[self.optimiser]
        penalties = {"l1": self.l1, "l2": self.l2} if self.optimiser in PENALISED else {}
        return kind(parameters, lr=usual if self.learning_rate is None else self.learning_rate, **penalties)


def train_network(
    network: nn.Module,
    loss: Callable[[torch.Generator], torch.Tensor],
    training: Training,
    generator: torch.Generator,
    *,
    progress: Callable[[int, float], None] | None = None,
    checkpoint: Path | None = None,
    optimisers: Sequence[torch.optim.Optimizer] = (),
) -> None:
    """Train a network in place.

    Parameters
    ----------
    network : Module
    loss : callable
        Draws a batch from a generator and returns the network's loss on it.
    training : Training
    generator : torch.Generator
        The only source of random numbers: the same seed gives the same weights on one kind of device.
    progress : callable, optional
        Called every `REPORT_EVERY` steps with the number of steps done and the mean loss since the last call.
    checkpoint : Path, optional
        File for the state, written every `CHECKPOINT_EVERY` steps. Training continues from it if it exists; it is
        deleted at the end.
    optimisers : sequence of Optimizer
        Optimisers of the network's parts, at their largest learning rates. Default: that of `training` for all.

    Raises
    ------
    WeightsError
        If the checkpoint is unreadable or belongs to another network.
    UsageError
        If the loss is not finite.
    """
    optimisers = optimisers or (training.optimise(network.parameters()),)
    first = _resume(checkpoint, network, optimisers, generator) if checkpoint and checkpoint.exists() else 0
    network.train()
    total = 0.0
    steps = descend(
        lambda _: loss(generator),
        optimisers,
        lambda step: cosine(step, training.steps, rise_share=WARM_UP),
        steps=range(first, training.steps),
        max_norm=CLIP,
    )
    for step, value in steps:
        total += value
        if (step + 1) % REPORT_EVERY == 0:
            if progress is not None:
                progress(step + 1, total / REPORT_EVERY)
            total = 0.0
        if checkpoint is not None and (step + 1) % CHECKPOINT_EVERY == 0:
            _save(checkpoint, network, optimisers, generator, step + 1)
    network.eval()
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)


def _save(
    path: Path,
    network: nn.Module,
    optimisers: Sequence[torch.optim.Optimizer],
    generator: torch.Generator,
    step: int,
) -> None:
    facts = {"step": step, "generator": generator.get_state().tolist()}
    save_checkpoint(path, {"network": network}, _named(optimisers), facts)


def _resume(
    path: Path, network: nn.Module, optimisers: Sequence[torch.optim.Optimizer], generator: torch.Generator
) -> int:
    """Restore the state of a checkpoint and return the number of steps done."""
    facts = read_facts(path)
    restore_checkpoint(path, {"network": network}, _named(optimisers))
    generator.set_state(torch.tensor(facts["generator"], dtype=torch.uint8))
    return int(facts["step"])


def _named(optimisers: Sequence[torch.optim.Optimizer]) -> dict[str, torch.optim.Optimizer]:
    return {f"optimiser{number}": optimiser for number, optimiser in enumerate(optimisers)}
