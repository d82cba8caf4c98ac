"""Training of the network: one readable loop over freshly drawn samples."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.motion.accuracy import Case, agreement_by_domain, predict
from qmri_bidsapp.motion.network import SFCN, Architecture, soft_labels, summarise
from qmri_bidsapp.motion.samples import Head, draw_samples
from qmri_bidsapp.motion.score import GRIDS

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
#: Heads that the statistics of the embedding are found on, and the place of their seeds: no step has this number.
CALIBRATION_HEADS, CALIBRATION = 32, 2**31


@dataclass(frozen=True)
class Settings:
    """What training depends on; a run is resumed with the same ones only.

    Attributes
    ----------
    seed : int
    spacing : float
        Voxel size of the network's input, mm.
    architecture : Architecture
    heads_per_step, samples_per_head : int
        A batch holds several motions of each of a few heads: what differs between images of one head is motion.
    learning_rate : float
        Reached after `warm_up` steps; falls with the square root of the steps after `constant` steps.
    warm_up, constant : int
    weight_decay : float
    averaging : float
        Decay, per step, of the average of the weights that is evaluated and kept.
    bfloat16 : bool
        Whether convolutions compute in half precision.
    """

    seed: int = 0
    spacing: float = 1.5
    architecture: Architecture = field(default_factory=Architecture)
    heads_per_step: int = 4
    samples_per_head: int = 3
    learning_rate: float = 2e-3
    warm_up: int = 100
    constant: int = 3000
    weight_decay: float = 0.01
    averaging: float = 0.998
    bfloat16: bool = False

    def rate(self, step: int) -> float:
        """Return the learning rate at a step."""
        rise = min(1.0, (step + 1) / self.warm_up)
        return self.learning_rate * rise * min(1.0, math.sqrt(self.constant / (step + 1)))


class Trainer:
    """Network, average of its weights and optimiser, with the way to a file and back.

    Parameters
    ----------
    settings : Settings
    directory : Path
        Holds the checkpoint and the log; training goes on from a checkpoint that is there.
    device : str

    Raises
    ------
    InputError
        If the checkpoint was made with other settings.
    """

    def __init__(self, settings: Settings, directory: Path, device: str = "cpu") -> None:
        self.settings, self.directory, self.device = settings, directory, device
        torch.manual_seed(settings.seed)
        self.network = SFCN(settings.architecture).to(device)
        self.average = copy.deepcopy(self.network)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.step, self.seconds = 0, 0.0
        self._calibration: list[Tensor] = []
        if (directory / CHECKPOINT).exists():
            self._load()

    def train_step(self, heads: Sequence[Head]) -> dict[str, float]:
        """Draw a batch and follow its gradient; a step depends on the seed and its number alone."""
        settings, grid = self.settings, GRIDS[self.settings.spacing]
        parts = [
            draw_samples(heads, settings.samples_per_head, np.random.default_rng([settings.seed, self.step, i]), grid)
            for i in range(settings.heads_per_step)
        ]
        images, scores = (torch.cat(part) for part in zip(*parts, strict=True))
        torch.manual_seed(hash((settings.seed, self.step)) % 2**31)  # dropout
        for group in self.optimiser.param_groups:
            group["lr"] = settings.rate(self.step)
        self.network.train()
        device_type = torch.device(self.device).type
        with torch.autocast(device_type, torch.bfloat16, enabled=settings.bfloat16):
            log_probability = self.network(images)
        target = soft_labels(scores)
        loss = nn.functional.kl_div(log_probability, target, reduction="batchmean")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        self._average_weights()
        error = summarise(log_probability.detach())[0] - scores
        return {"loss": loss.item(), "mae_mm": error.abs().mean().item()}

    def calibrate(self, heads: Sequence[Head]) -> None:
        """Find the statistics of the averaged network's embedding, on samples that are drawn once."""
        if not self._calibration:
            for i in range(CALIBRATION_HEADS):
                rng = np.random.default_rng([self.settings.seed, CALIBRATION, i])
                images, _ = draw_samples(heads, self.settings.samples_per_head, rng, GRIDS[self.settings.spacing])
                self._calibration.append(images.half())
        self.average.eval()
        self.average.calibrate([images.float() for images in self._calibration])

    @torch.no_grad()
    def _average_weights(self) -> None:
        decay = min(self.settings.averaging, (1 + self.step) / (10 + self.step))
        for kept, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)

    def save(self) -> None:
        """Write the checkpoint; it appears whole or not at all."""
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        temporary = self.directory / f".{CHECKPOINT}-{os.getpid()}"
        torch.save(state, temporary)
        temporary.replace(self.directory / CHECKPOINT)

    def _load(self) -> None:
        path = self.directory / CHECKPOINT
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["settings"] != asdict(self.settings):
            raise InputError(f"{path} was made with other settings ({state['settings']}): name another folder.")
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]

    def log(self, entry: dict[str, Any]) -> None:
        """Add a line to the log."""
        line = {"step": self.step, "samples": self.step * self.samples_per_step, "hours": round(self.seconds / 3600, 3)}
        with (self.directory / LOG).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line | entry) + "\n")

    @property
    def samples_per_step(self) -> int:
        """Size of a batch."""
        return self.settings.heads_per_step * self.settings.samples_per_head


@dataclass(frozen=True)
class Intervals:
    """When to save, validate and report, s."""

    save: float = 300.0
    validate: float = 600.0
    report: float = 60.0


def train(
    trainer: Trainer,
    heads: Sequence[Head],
    validation: Sequence[Case],
    *,
    steps: int,
    intervals: Intervals | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Train until a number of steps is reached; save, validate and report on the way and at the end.

    Parameters
    ----------
    trainer : Trainer
    heads : sequence of Head
        For training, on the trainer's device.
    validation : sequence of Case
        Of other persons; may be empty.
    steps : int
        In all, those before a resume included.
    intervals : Intervals, optional
    report : callable
        Takes a line of progress.
    """
    every = intervals or Intervals()
    begin = time.monotonic() - trainer.seconds
    saved = validated = reported = time.monotonic()
    recent: list[dict[str, float]] = []
    while trainer.step < steps:
        recent.append(trainer.train_step(heads))
        now = time.monotonic()
        trainer.seconds = now - begin
        last = trainer.step == steps
        if last or now - reported > every.report:
            means = {name: float(np.mean([entry[name] for entry in recent])) for name in recent[0]}
            trainer.log({"train": means})
            report(_progress(trainer, steps, means))
            reported, recent = now, []
        checked = last or now - validated > every.validate
        if checked:
            trainer.calibrate(heads)
        if last or now - saved > every.save:
            trainer.save()
            saved = now
        if validation and checked:
            figures = validate(trainer, validation)
            report("  held out: " + ", ".join(f"{name} {value:.3f}" for name, value in figures["all"].items()))
        if checked:
            validated = time.monotonic()


def validate(trainer: Trainer, validation: Sequence[Case]) -> dict[str, dict[str, float]]:
    """Log and return the figures of the averaged weights on held-out heads, by domain."""
    figures = agreement_by_domain(
        validation, *predict(trainer.average, [case.image for case in validation], trainer.device)
    )
    trainer.log({"validation": figures})
    return figures


def _progress(trainer: Trainer, steps: int, means: dict[str, float]) -> str:
    rate = trainer.step / max(trainer.seconds, 1e-9)
    return (
        f"step {trainer.step}/{steps}  {trainer.step * trainer.samples_per_step} samples  "
        f"loss {means['loss']:.3f}  MAE {means['mae_mm']:.3f} mm  {rate * 3600:.0f} steps/h  "
        f"{(steps - trainer.step) / rate / 3600:.1f} h left"
    )
