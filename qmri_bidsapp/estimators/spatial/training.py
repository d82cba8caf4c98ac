"""Training of spatial networks on virtual heads: resumable, and reproducible by its seed."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qmri_bidsapp.artifacts.checkpoints import read_facts, restore_checkpoint, save_checkpoint
from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.errors import WeightsError
from qmri_bidsapp.estimators.spatial.error_head import SliceNetwork
from qmri_bidsapp.estimators.spatial.patches import PATCH_SIZE, Batch, draw_batch
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.solvers.gradient_descent import descend, one_thread, plateau, seeded, update_average

CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"
#: Shares of the iterations during which the learning rate rises at the beginning and falls to zero at the end.
WARM_UP_SHARE = 0.01
DECAY_SHARE = 0.3
#: Error of a patch, in normalised parameters, below which the loss hardly falls.
ERROR_FLOOR = 0.01
#: Largest norm of the gradient.
MAX_GRADIENT = 1.0
#: Weight of the average so far in the moving average of the network's weights.
MEMORY = 0.999


@dataclass(frozen=True)
class TrainingOptions:
    """How a spatial network is trained.

    Attributes
    ----------
    n_iterations : int
        In all. A resumed run may have another number, which moves the decay of the learning rate.
    learning_rate : float
        Of Adam, after the warm-up and before the decay.
    n_protocols, n_patches, size : int
        Protocols of a batch, patches of each, and voxels along a side.
    seed : int
        Of weights and batches.
    start_from : str or None
        SHA-256 of the initial weights; None for random ones.
    """

    n_iterations: int = 5_000
    learning_rate: float = 1e-3
    n_protocols: int = 4
    n_patches: int = 2
    size: int = PATCH_SIZE
    seed: int = 0
    start_from: str | None = None


class Trained(NamedTuple):
    """A trained network, with weights averaged over the iterations.

    Attributes
    ----------
    network : SliceNetwork
        Ready for use.
    iterations : int
        Done in all.
    planned : list of [int, int]
        Iteration at which a run began, and iterations planned from there in all, which determine the learning rate.
    """

    network: SliceNetwork
    iterations: int
    planned: list[list[int]]


def train_on_heads(
    build: Callable[[], SliceNetwork],
    model: SignalModel,
    heads: Sequence[npt.NDArray[np.uint8]],
    options: TrainingOptions,
    *,
    identity: dict[str, Any],
    label_maps: dict[str, str] | None = None,
    folder: Path | None = None,
    protocol: Acquisition | None = None,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    every: int = 250,
    report: Callable[[dict[str, float]], None] = lambda row: None,
) -> Trained:
    """Train a network, or continue from the checkpoint in a folder.

    Parameters
    ----------
    build : callable
        Returns the untrained network.
    model : SignalModel
    heads : sequence of ndarray
        Structures of the heads to train on.
    options : TrainingOptions
    identity : dict
        Identity of the network, as plain data. A checkpoint with another identity is refused.
    label_maps : dict, optional
        SHA-256 of the label maps of the training and of the validation set. A checkpoint with others is refused.
    folder : Path, optional
        Receives a checkpoint and a log; training continues from a checkpoint in it.
    protocol : Acquisition, optional
        The only protocol; drawn for each batch if not given.
    validate : callable, optional
        Takes the averaged network, ready for use, and returns entries for the log.
    every : int
        Iterations between checkpoints.
    report : callable
        Receives each row of the log.

    Raises
    ------
    WeightsError
        As `check_checkpoint`.
    UsageError
        If the loss is not finite.
    """
    with one_thread():
        with seeded(options.seed):
            network = build()
        optimiser = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
        run = _Run(network, copy.deepcopy(network).eval().requires_grad_(False), optimiser)
        start, planned = (0, []) if folder is None else run.restore(folder, identity, options, label_maps)
        if start < options.n_iterations and (not planned or planned[-1][1] != options.n_iterations):
            planned.append([start, options.n_iterations])

        def loss(iteration: int) -> torch.Tensor:
            batch = draw_batch(
                model,
                heads,
                (options.seed, iteration),
                n_protocols=options.n_protocols,
                n_patches=options.n_patches,
                size=options.size,
                protocol=protocol,
            )
            return loss_of(network(batch.series), batch)

        losses, began = [], time.process_time()
        steps = range(start, options.n_iterations)
        rate = partial(learning_rate, n_iterations=options.n_iterations)
        for iteration, value in descend(loss, [optimiser], rate, steps=steps, max_norm=MAX_GRADIENT):
            losses.append(value)
            # The average is short while the network is young.
            update_average(run.average, network, min(MEMORY, (iteration + 1) / (iteration + 10)))
            if (iteration + 1) % every == 0 or iteration + 1 == options.n_iterations:
                row = {"iteration": iteration + 1, "loss": float(np.mean(losses)), "cpu_s": time.process_time() - began}
                losses, began = [], time.process_time()
                if validate is not None:
                    row |= validate(run.average)
                if folder is not None:
                    facts = {"identity": identity, "options": asdict(options), "label_maps": label_maps}
                    _save(folder, run, {**facts, "planned": planned, "iteration": iteration + 1}, row)
                report(row)
    return Trained(run.average, max(start, options.n_iterations), planned)


def check_checkpoint(
    folder: Path, identity: dict[str, Any], options: TrainingOptions, label_maps: dict[str, str] | None = None
) -> dict[str, Any] | None:
    """Return the plain data of the checkpoint from which `train_on_heads` would continue; None if there is none.

    Parameters
    ----------
    folder, identity, options, label_maps
        As for `train_on_heads`.

    Raises
    ------
    WeightsError
        If it cannot be read, or belongs to another network, other label maps, or options that differ in more than the
        number of iterations.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    facts = read_facts(path)
    same = asdict(replace(options, n_iterations=facts["options"]["n_iterations"]))
    if (facts["identity"], facts["options"]) != (json.loads(json.dumps(identity)), same):
        raise WeightsError(
            f"{path} belongs to another training ({facts['identity']['estimator']} for "
            f"{facts['identity']['model']['name']}, {facts['options']}): choose another folder."
        )
    known, given = (maps or {} for maps in (facts.get("label_maps"), label_maps))
    if differing := sorted(name for name in {*known, *given} if known.get(name) != given.get(name)):
        raise WeightsError(
            f"{path} belongs to a training with other label maps ({', '.join(differing)}): continue with the original "
            "ones, in the same order, or choose another folder."
        )
    return facts


class _Run(NamedTuple):
    """A network in training, the running average of its weights, and its optimiser."""

    network: SliceNetwork
    average: SliceNetwork
    optimiser: torch.optim.Optimizer

    def modules(self) -> dict[str, nn.Module]:
        """Return the modules of a checkpoint."""
        return {"network": self.network, "average": self.average}

    def restore(
        self, folder: Path, identity: dict[str, Any], options: TrainingOptions, label_maps: dict[str, str] | None
    ) -> tuple[int, list[list[int]]]:
        """Restore the state of a checkpoint, if there is one; return the iterations done and `Trained.planned`."""
        facts = check_checkpoint(folder, identity, options, label_maps)
        if facts is None:
            return 0, []
        restore_checkpoint(folder / CHECKPOINT, self.modules(), {"optimiser": self.optimiser})
        return int(facts["iteration"]), facts["planned"]


def loss_of(steps: list[torch.Tensor], batch: Batch) -> torch.Tensor:
    """Return the root mean square error of normalised parameters in a patch, averaged over patches, parameters, steps.

    The root keeps noisy patches, whose errors are large in any case, from dominating the loss.
    """
    counts = batch.counts.unsqueeze(1)
    n_voxels = counts.sum((-1, -2)).clamp(min=1)
    errors = [
        (((step - batch.truth).square() * counts).sum((-1, -2)) / n_voxels + ERROR_FLOOR**2).sqrt().mean()
        for step in steps
    ]
    return torch.stack(errors).mean()


def learning_rate(iteration: int, n_iterations: int) -> float:
    """Return the learning rate relative to its largest; see `gradient_descent.plateau`."""
    return plateau(iteration, n_iterations, rise=WARM_UP_SHARE * n_iterations, fall=DECAY_SHARE * n_iterations)


def _save(folder: Path, run: _Run, facts: dict[str, Any], row: dict[str, float]) -> None:
    """Write the checkpoint, then the row of the log."""
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / CHECKPOINT, run.modules(), {"optimiser": run.optimiser}, facts)
    with (folder / LOG).open("a") as log:
        log.write(json.dumps(row) + "\n")
