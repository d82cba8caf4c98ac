"""One training loop for all networks: batches drawn anew, repeatable, resumable."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from qmri_bidsapp.errors import UsageError, WeightsError

#: Optimisers by name, each with the learning rate that works for it here.
OPTIMISERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], float]] = {
    "adam": (torch.optim.Adam, 5e-3),
    "sgd": (lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9), 2e-2),
}
#: Share of the steps in which the learning rate rises; it falls along a cosine after that.
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
        Batches.
    batch_size : int
        Examples in each of them.
    optimiser : str
        One of `OPTIMISERS`.
    learning_rate : float or None
        Largest one; None for that of the optimiser in `OPTIMISERS`.
    """

    steps: int = 8000
    batch_size: int = 1024
    optimiser: str = "adam"
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise UsageError(f"There is no optimiser {self.optimiser!r}; known: {', '.join(OPTIMISERS)}.")
        if self.steps < 1 or self.batch_size < 1:
            raise UsageError(f"Training needs at least one step and one example, got {self.steps}, {self.batch_size}.")


def train(
    network: nn.Module,
    loss: Callable[[torch.Generator], torch.Tensor],
    training: Training,
    generator: torch.Generator,
    *,
    progress: Callable[[int, float], None] | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Train a network in place.

    Parameters
    ----------
    network : Module
    loss : callable
        Draws a batch from a generator and returns the network's loss on it.
    training : Training
    generator : torch.Generator
        The only source of chance: the same seed gives the same weights, on one kind of device.
    progress : callable, optional
        Called now and then with the number of steps done and the mean loss since the last call.
    checkpoint : Path, optional
        File to save the state to now and then, and to go on from where it exists; deleted at the end.

    Raises
    ------
    WeightsError
        If the checkpoint is not one of this network and training, or the loss is no number any more.
    """
    kind, default_rate = OPTIMISERS[training.optimiser]
    rate = default_rate if training.learning_rate is None else training.learning_rate
    optimiser = kind(network.parameters(), lr=rate)
    first = _resume(checkpoint, network, optimiser, generator) if checkpoint and checkpoint.exists() else 0
    network.train()
    total = 0.0
    for step in range(first, training.steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * _schedule((step + 1) / training.steps)
        optimiser.zero_grad()
        value = loss(generator)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimiser.step()
        total += float(value.detach())
        if (step + 1) % REPORT_EVERY == 0:
            if not math.isfinite(total):
                raise WeightsError(f"Training failed after {step + 1} steps: lower the learning rate.")
            if progress is not None:
                progress(step + 1, total / REPORT_EVERY)
            total = 0.0
        if checkpoint is not None and (step + 1) % CHECKPOINT_EVERY == 0:
            _save(checkpoint, network, optimiser, generator, step + 1)
    network.eval()
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)


def _schedule(share: float) -> float:
    """Return the factor of the learning rate after a share of the steps: up in a line, down along a cosine."""
    if share < WARM_UP:
        return share / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))


def _save(
    path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, generator: torch.Generator, step: int
) -> None:
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    tensors["generator"], tensors["step"] = generator.get_state(), torch.tensor(step)
    temporary = path.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
    temporary.replace(path)


def _resume(path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> int:
    """Restore the state of a checkpoint and return the number of steps that were done."""
    try:
        tensors = load_file(path)
        step = int(tensors.pop("step"))
        generator.set_state(tensors.pop("generator"))
        network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimiser."):
                _, index, name = key.split(".", 2)
                state.setdefault(int(index), {})[name] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{path} is no checkpoint of this training: delete it to start anew.") from error
    return step
