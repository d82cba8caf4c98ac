"""Training of the network: rounds of simulation, each followed by steps over all simulated images so far."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from qmri_bidsapp.artifacts.atomic import atomic_file
from qmri_bidsapp.errors import InputError
from qmri_bidsapp.motion.network import SFCN, Architecture, soft_labels
from qmri_bidsapp.motion.network_input import BRIGHTEST
from qmri_bidsapp.motion.training.accuracy import ScoredImage, agreement_by_domain, predict
from qmri_bidsapp.motion.training.pool import PlaneSet, Simulator
from qmri_bidsapp.motion.training.samples import N_PROFILE

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
#: Second element of the seeds of steps: larger than the number of any round, whose seeds have it there.
STEPS = 2**31
#: Rounds from one validation to the next.
EVERY = 5


@dataclass(frozen=True)
class Settings:
    """Settings of a training; it can only be resumed with the same ones.

    The simulation of an image takes sixty times as long as a step with it, so images are used more than once.

    Attributes
    ----------
    seed : int
    architecture : Architecture
    steps_per_round : int
    images_per_step : int
        Batch size, with one plane of each orientation per image: few planes of many images inform more than many
        planes of a few.
    profile_weight : float
        Weight of the auxiliary loss of profiles (see `samples.profile_of`); that of scores has weight one.
    learning_rate : float
        Reached after `warm_up` steps; falls to zero over the second half of the steps.
    warm_up : int
    weight_decay : float
    averaging : float
        Decay per step of the exponential moving average of the weights, which is evaluated and kept.
    start_from : str or None
        SHA-256 of the weights that the training starts from; None for random ones.
    """

    seed: int = 0
    architecture: Architecture = field(default_factory=Architecture)
    steps_per_round: int = 200
    images_per_step: int = 32
    profile_weight: float = 10.0
    learning_rate: float = 1e-3
    warm_up: int = 100
    weight_decay: float = 0.01
    averaging: float = 0.998
    start_from: str | None = None


class Trainer:
    """Network, moving average of its weights and optimiser, with a checkpoint.

    As an auxiliary task the network learns the profile of the motion over bands of k-space, which explains the score;
    the layer that predicts it is discarded after training.

    Parameters
    ----------
    settings : Settings
    directory : Path
        Folder of checkpoint and log; a training with a checkpoint is resumed.
    device : str
    start : SFCN, optional
        Network to start from, of the architecture in the settings.

    Raises
    ------
    InputError
        If the checkpoint was made with other settings.
    """

    def __init__(self, settings: Settings, directory: Path, device: str = "cpu", start: SFCN | None = None) -> None:
        self.settings, self.directory, self.device = settings, directory, device
        torch.manual_seed(settings.seed)
        self.network = SFCN(settings.architecture).to(device)
        if start is not None:
            self.network.load_state_dict(start.state_dict())
        self.average = copy.deepcopy(self.network)
        self.profile = nn.Linear(settings.architecture.hidden, N_PROFILE).to(device)
        self.optimiser = torch.optim.AdamW(
            [*self.network.parameters(), *self.profile.parameters()],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.round, self.seconds = 0, 0.0
        self.figures: dict[str, dict[str, float]] = {}
        if (directory / CHECKPOINT).exists():
            self._load()

    @property
    def step(self) -> int:
        """Number of steps so far."""
        return self.round * self.settings.steps_per_round

    def train_round(self, parts: Sequence[PlaneSet], n_rounds: int) -> tuple[float, float]:
        """Train for one round; return the mean losses of scores and of profiles.

        Parameters
        ----------
        parts : sequence of PlaneSet
            Of equal length.
        n_rounds : int
            Total number, which the schedule of the learning rate depends on.
        """
        self.network.train()
        losses = []
        for step in range(self.step, self.step + self.settings.steps_per_round):
            rng = np.random.default_rng([self.settings.seed, STEPS, step])
            torch.manual_seed(int(rng.integers(2**31)))  # dropout
            chosen = rng.integers(len(parts) * len(parts[0]), size=self.settings.images_per_step)
            places = [(parts[i // len(parts[0])], i % len(parts[0])) for i in chosen]
            varied = [augment_planes(part, i, rng) for part, i in places]
            planes = [torch.from_numpy(np.stack(same)).to(self.device) for same in zip(*varied, strict=True)]
            scores, profiles = (
                torch.from_numpy(np.stack([getattr(part, name)[i] for part, i in places])).to(self.device)
                for name in ("scores", "profiles")
            )
            losses.append(self._update(planes, soft_labels(scores), profiles, self._rate(step, n_rounds)))
        self.round += 1
        of_scores, of_profiles = np.mean(losses, axis=0).tolist()
        return of_scores, of_profiles

    def _rate(self, step: int, n_rounds: int) -> float:
        """Return the learning rate at a step."""
        rise = min(1.0, (step + 1) / self.settings.warm_up)
        left = 1 - step / (n_rounds * self.settings.steps_per_round)
        return self.settings.learning_rate * rise * min(1.0, 2 * left)

    def _update(self, planes: Sequence[Tensor], target: Tensor, profiles: Tensor, rate: float) -> tuple[float, float]:
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        # Half precision takes a third of the time on processors that support it; losses stay in single precision.
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            hidden = self.network.hidden(self.network.embed_planes(planes))
            log_probability, profile = self.network.from_hidden(hidden), self.profile(hidden)
        loss = nn.functional.kl_div(log_probability, target, reduction="batchmean")
        of_profile = nn.functional.mse_loss(profile.float(), profiles)
        self.optimiser.zero_grad(set_to_none=True)
        total = loss + self.settings.profile_weight * of_profile
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*self.network.parameters(), *self.profile.parameters()], 5.0)
        self.optimiser.step()
        self._average_weights()
        return loss.item(), of_profile.item()

    @torch.no_grad()
    def _average_weights(self) -> None:
        kept, new = self.average.state_dict(), self.network.state_dict()
        for name, value in kept.items():
            if value.is_floating_point():
                value.lerp_(new[name], 1 - self.settings.averaging)

    def save(self) -> None:
        """Write the checkpoint atomically."""
        state = {
            "settings": asdict(self.settings),
            "round": self.round,
            "seconds": self.seconds,
            "figures": self.figures,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "profile": self.profile.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        with atomic_file(self.directory / CHECKPOINT) as temporary:
            torch.save(state, temporary)

    def _load(self) -> None:
        path = self.directory / CHECKPOINT
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["settings"] != asdict(self.settings):
            given = asdict(self.settings)
            other = [
                f"{name}: {value}, not {given.get(name)}"
                for name, value in state["settings"].items()
                if value != given.get(name)
            ]
            raise InputError(f"{path} was made with other settings ({'; '.join(other)}): use these, or another folder.")
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.profile.load_state_dict(state["profile"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.round, self.seconds, self.figures = state["round"], state["seconds"], state["figures"]

    def log(self, entry: dict[str, Any]) -> None:
        """Append a line to the log."""
        line = {"round": self.round, "step": self.step, "hours": round(self.seconds / 3600, 3)}
        with (self.directory / LOG).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line | entry) + "\n")


def augment_planes(part: PlaneSet, image: int, rng: np.random.Generator) -> list[npt.NDArray[np.float32]]:
    """Return a random plane of each orientation, (1, height, width), with random contrast, flip and noise."""
    side, gamma, factor = rng.uniform() < 0.5, float(np.exp(rng.normal(0, 0.15))), rng.uniform(0.8, 1.1)
    noise = float(np.exp(rng.uniform(np.log(0.002), np.log(0.03)))) if rng.uniform() < 0.5 else 0.0
    planes = []
    for axis, kept in enumerate((part.x, part.y, part.z)):
        plane = kept[image, rng.integers(kept.shape[1])][None].astype(np.float32) / 255
        if side and axis > 0:
            plane = plane[:, ::-1]
        plane = factor * BRIGHTEST * plane ** np.float32(2 * gamma)
        if noise:
            real, imaginary = (rng.standard_normal(plane.shape, dtype=np.float32) for _ in range(2))
            plane = np.hypot(plane + noise * real, noise * imaginary)
        planes.append(np.minimum(plane, BRIGHTEST).astype(np.float32))
    return planes


def train(
    trainer: Trainer,
    simulator: Simulator,
    validation: Sequence[ScoredImage],
    *,
    n_rounds: int,
    report: Callable[[str], None] = print,
) -> None:
    """Train up to a number of rounds; save after each, validate every `EVERY` rounds and at the end.

    Parameters
    ----------
    trainer : Trainer
    simulator : Simulator
    validation : sequence of ScoredImage
        Images of held-out persons; may be empty.
    n_rounds : int
        Total number, with those before a resume.
    report : callable
        Receives lines of progress.
    """
    begin = time.monotonic() - trainer.seconds
    with simulator.running() as parts_for:
        while trainer.round < n_rounds:
            loss, of_profile = trainer.train_round(parts_for(trainer.round), n_rounds)
            trainer.seconds = time.monotonic() - begin
            trainer.log({"loss": loss, "profile_loss": of_profile})
            left = (n_rounds - trainer.round) * trainer.seconds / trainer.round / 3600
            line = f"round {trainer.round}/{n_rounds}  loss {loss:.3f}  {left:.1f} h left"
            if validation and (trainer.round == n_rounds or trainer.round % EVERY == 0):
                validate(trainer, validation)
                line += "\n  held out: " + ", ".join(
                    f"{key} {value:.3f}" for key, value in trainer.figures["all"].items()
                )
            trainer.save()
            report(line)


def validate(trainer: Trainer, validation: Sequence[ScoredImage]) -> None:
    """Compute and log the accuracy of the averaged weights on held-out heads, by domain."""
    found = predict(trainer.average, [case.image for case in validation], trainer.device)
    trainer.figures = agreement_by_domain(validation, *found)
    trainer.log({"validation": trainer.figures})
