"""Training of spatial networks on virtual heads: one loop, resumable, the same for the same seed."""

from __future__ import annotations

import copy
import json
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.errors import InputError, UsageError
from qmri_bidsapp.estimators.patches import PATCH_SIZE, Batch, draw_batch
from qmri_bidsapp.models.base import SignalModel

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
#: Shares of all iterations over which the learning rate rises at the beginning and falls to zero at the end.
WARM_UP_SHARE = 0.01
DECAY_SHARE = 0.3
#: Errors of a patch, in normalised parameters, that are not worth lowering.
ERROR_FLOOR = 0.01
#: Largest norm of the gradient.
MAX_GRADIENT = 1.0
#: Share of the average of weights that each iteration keeps.
MEMORY = 0.999


@dataclass(frozen=True)
class TrainingOptions:
    """How a spatial network is trained.

    Attributes
    ----------
    n_iterations : int
        Of all; a run that is resumed may be given another number, which moves the decay of the learning rate.
    learning_rate : float
        Of Adam, after the warm-up and before the decay.
    n_protocols, n_patches, size : int
        Protocols of a batch, patches of each, and voxels along a side.
    seed : int
        Of weights and batches.
    """

    n_iterations: int = 20_000
    learning_rate: float = 1e-3
    n_protocols: int = 4
    n_patches: int = 2
    size: int = PATCH_SIZE
    seed: int = 0


def train(
    build: Callable[[], nn.Module],
    model: SignalModel,
    heads: Sequence[npt.NDArray[np.uint8]],
    options: TrainingOptions,
    *,
    card: dict[str, Any],
    folder: Path | None = None,
    protocol: Acquisition | None = None,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    every: int = 250,
    report: Callable[[dict[str, float]], None] = lambda row: None,
) -> nn.Module:
    """Train a network and return the running average of its weights, ready for use.

    Parameters
    ----------
    build : callable
        Returns the network, which maps a list of series to the normalised parameters after each of its steps.
    model : SignalModel
    heads : sequence of ndarray
        Structures of the heads to train on.
    options : TrainingOptions
    card : dict
        What the network is: plain data that is kept beside the weights. It decides whether a run can be resumed.
    folder : Path, optional
        Where a checkpoint and a log are kept; training goes on from the checkpoint that is there.
    protocol : Acquisition, optional
        The only one; without it protocols are drawn.
    validate : callable, optional
        Takes the averaged network, ready for use, and returns what is to be logged.
    every : int
        Iterations between checkpoints.
    report : callable
        Is given each row of the log.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = build()
    optimiser = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
    run = _Run(network, copy.deepcopy(network).eval().requires_grad_(False), optimiser)
    start = 0 if folder is None else run.restore(folder, card)
    losses, began = [], time.process_time()
    for iteration in range(start, options.n_iterations):
        batch = draw_batch(
            model,
            heads,
            (options.seed, iteration),
            n_protocols=options.n_protocols,
            n_patches=options.n_patches,
            size=options.size,
            protocol=protocol,
        )
        losses.append(run.step(batch, learning_rate(iteration, options), iteration))
        if (iteration + 1) % every == 0 or iteration + 1 == options.n_iterations:
            row = {"iteration": iteration + 1, "loss": float(np.mean(losses)), "cpu_s": time.process_time() - began}
            losses, began = [], time.process_time()
            if validate is not None:
                row |= validate(run.average)
            if folder is not None:
                state = {"card": card, "options": asdict(options), "iteration": iteration + 1, **run.state()}
                _save(folder, state, row)
            report(row)
    return run.average


class _Run(NamedTuple):
    """A network in training, the running average of its weights, and its optimiser."""

    network: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer

    def step(self, batch: Batch, rate: float, iteration: int) -> float:
        """Make one step and return the loss before it."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss = loss_of(self.network(batch.series), batch)
        if not loss.isfinite():
            raise UsageError(f"Training failed at iteration {iteration + 1}: the loss is no number any more.")
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT)
        self.optimiser.step()
        # The average is short while the network is young.
        memory = min(MEMORY, (iteration + 1) / (iteration + 10))
        for mean, value in zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - memory)
            else:
                mean.copy_(value)
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs."""
        return {name: part.state_dict() for name, part in self._asdict().items()}

    def restore(self, folder: Path, card: dict[str, Any]) -> int:
        """Take up the state of a checkpoint, if there is one, and return the iterations that were done."""
        if not (folder / CHECKPOINT).exists():
            return 0
        state = read_checkpoint(folder)
        if state["card"] != card:
            raise UsageError(
                f"{folder} holds the training of another network ({state['card']}); choose another folder."
            )
        for name, part in self._asdict().items():
            part.load_state_dict(state[name])
        return int(state["iteration"])


def loss_of(steps: list[torch.Tensor], batch: Batch) -> torch.Tensor:
    """Return the error of the normalised parameters: root mean square of a patch, mean of patches, parameters, steps.

    The root keeps patches of much noise, whose errors are large whatever the network does, from deciding alone.
    """
    counts = batch.counts.unsqueeze(1)
    n_voxels = counts.sum((-1, -2)).clamp(min=1)
    errors = [
        (((step - batch.truth).square() * counts).sum((-1, -2)) / n_voxels + ERROR_FLOOR**2).sqrt().mean()
        for step in steps
    ]
    return torch.stack(errors).mean()


def learning_rate(iteration: int, options: TrainingOptions) -> float:
    """Return the learning rate: a linear rise, a plateau, and a linear fall to zero at the end."""
    risen = (iteration + 1) / (WARM_UP_SHARE * options.n_iterations)
    left = (options.n_iterations - iteration) / (DECAY_SHARE * options.n_iterations)
    return options.learning_rate * min(1.0, risen, left)


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Return what `train` keeps: card, options, iteration, and the states of network, average and optimiser.

    Raises
    ------
    InputError
        If there is none, or it cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(folder / CHECKPOINT, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{folder / CHECKPOINT} cannot be read ({error}); train the network anew.") from error
    return state


def _save(folder: Path, state: dict[str, Any], row: dict[str, float]) -> None:
    """Write the checkpoint, whole or not at all, then the row of the log."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{CHECKPOINT}.part"
    torch.save(state, temporary)
    temporary.replace(folder / CHECKPOINT)
    with (folder / LOG).open("a") as log:
        log.write(json.dumps(row) + "\n")
