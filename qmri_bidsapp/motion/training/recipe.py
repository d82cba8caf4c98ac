"""The recipe of a motion score: from files of heads to weights with their card."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from qmri_bidsapp.artifacts.atomic import atomic_file
from qmri_bidsapp.artifacts.weights import sha256_of
from qmri_bidsapp.errors import UsageError, WeightsError
from qmri_bidsapp.motion.displacement import Floats
from qmri_bidsapp.motion.familiarity import N_FOLDS, Familiarity
from qmri_bidsapp.motion.head_axes import mean_heads
from qmri_bidsapp.motion.network import SFCN
from qmri_bidsapp.motion.network_input import GRID
from qmri_bidsapp.motion.scorer import load_network, save_scorer
from qmri_bidsapp.motion.training.accuracy import ScoredImage, simulated_cases
from qmri_bidsapp.motion.training.augmentation import NOISE, NOISY, RESOLUTION, Anatomy
from qmri_bidsapp.motion.training.pool import Simulator
from qmri_bidsapp.motion.training.samples import RENDERED, STILL, Head, image_head, image_of, label_head
from qmri_bidsapp.motion.training.simulation import MAX_SCORE, MOVEMENTS
from qmri_bidsapp.motion.training.trainer import Settings, Trainer, train

#: Validation images with motion per held-out head, by domain.
LEVELS = {"real": 10, RENDERED: 6, "stripped": 6}
#: Images with motion per training head from which the familiarity is learned: at least the first number, and for few
#: heads as many as make the second number of images in all, so that p-values below `scorer.UNFAMILIAR` exist. They are
#: few per head since most images of a lab are still.
USUAL_LEVELS, N_USUAL = 3, 100
#: Files in the folder of a training.
DATA, VALIDATION, WEIGHTS = "data.json", "validation.pt", "weights"
#: Limitations that the card of all such weights states.
LIMITS = (
    "Motion was simulated: 3-D Cartesian acquisitions whose slow phase encoding is along one axis of the image.",
    "Heads of adults; images of a few scanners.",
)

Read: TypeAlias = Callable[[Path], tuple[Tensor, Floats]]
Report: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class HeadFile:
    """A file to train on.

    Attributes
    ----------
    domain : str
        ``real``: T1w of a whole head; ``stripped``: T1w without skull; ``rendered``: label map of a whole head.
    path : Path
    """

    domain: str
    path: Path


def train_scorer(
    files: Sequence[HeadFile],
    folder: Path,
    *,
    read: Read,
    hold_out: Sequence[str] = (),
    start_from: Path | None = None,
    n_rounds: int,
    seed: int = 0,
    device: str = "cpu",
    n_processes: int = 1,
    report: Report = print,
) -> Path:
    """Train the network of the motion score, or resume its training, and write its weights.

    Parameters
    ----------
    files : sequence of HeadFile
    folder : Path
        Holds checkpoint, simulated planes, log and weights; exists.
    read : callable
        Path -> volume (i, j, k) and affine (4, 4), voxel to mm.
    hold_out : sequence of str
        Files whose name contains one of these are for validation only.
    start_from : Path, optional
        Weights to start from; random ones without.
    n_rounds : int
        Rounds in all, those before a resume included.
    seed : int
    device : str
    n_processes : int
        Processes that simulate.
    report : callable
        Receives lines of progress.

    Returns
    -------
    Path
        Folder of the weights.

    Raises
    ------
    UsageError
        If there are too few heads, a name in `hold_out` matches no file, the folder holds a training on other data, or
        the weights to start from were trained on held-out heads.
    WeightsError
        If the weights to start from cannot be used.
    """
    training, held_out = split_heads(files, hold_out)
    _check_data(folder, seed, training, held_out)
    settings = Settings(seed=seed)
    start: SFCN | None = None
    earlier: Mapping[str, Sequence[str]] = {}
    if start_from is not None:
        start, sha256, earlier = _starting_network(start_from, hold_out)
        settings = replace(settings, architecture=start.architecture, start_from=sha256)
    trainer = Trainer(settings, folder, device, start)
    report(f"{len(training)} heads to train on, {len(held_out)} held out; {device}, processes: {n_processes}")
    validation = _validation_cases(held_out, folder / VALIDATION, read, report)
    heads = [_head(item, read, device) for item in training]
    simulator = Simulator(heads, folder, seed=seed, n_processes=n_processes, grid=GRID)
    train(trainer, simulator, validation, n_rounds=n_rounds, report=report)
    usual = _cases(training, seed + 1, _usual_levels(len(training)), read, report)
    still = [case for case in usual if case.score == 0]
    save_scorer(
        folder / WEIGHTS,
        trainer.average,
        _familiarity(trainer.average, usual, device),
        mean_heads([case.image for case in still], [case.domain for case in still]),
        card_notes(trainer, _names_by_domain(training, earlier), held_out),
    )
    return folder / WEIGHTS


def split_heads(files: Sequence[HeadFile], hold_out: Sequence[str]) -> tuple[list[HeadFile], list[HeadFile]]:
    """Return the files to train on, and those held out.

    Raises
    ------
    UsageError
        If a name in `hold_out` matches no file, or fewer heads are left than the familiarity needs.
    """
    for name in hold_out:
        if not any(_matches(item.path, [name]) for item in files):
            raise UsageError(f"--hold-out {name}: no file has a name that contains it.")
    training = [item for item in files if not _matches(item.path, hold_out)]
    if not training:
        raise UsageError("Nothing to train on: name --heads, --stripped or --labels, and hold out less.")
    if len(training) < N_FOLDS:
        raise UsageError(f"Training needs at least {N_FOLDS} heads, got {len(training)}: name more, hold out less.")
    return training, [item for item in files if _matches(item.path, hold_out)]


def _matches(path: Path, names: Sequence[str]) -> bool:
    return any(name in path.name for name in names)


def _check_data(folder: Path, seed: int, training: Sequence[HeadFile], held_out: Sequence[HeadFile]) -> None:
    """Record the data of a new training; compare those of a resumed one with the record.

    Raises
    ------
    UsageError
        If they differ: heads held out now may have been trained on before.
    """
    files = {"training": training, "held_out": held_out}
    data: dict[str, Any] = {"seed": seed, "spacing": GRID.spacing}
    data |= {
        name: [[item.domain, item.path.name, item.path.stat().st_size] for item in part] for name, part in files.items()
    }
    record = folder / DATA
    if not record.exists():
        with atomic_file(record) as temporary:
            temporary.write_text(json.dumps(data), encoding="utf-8")
    elif json.loads(record.read_text(encoding="utf-8")) != data:
        raise UsageError(
            f"{folder} holds a training on other heads, with others held out, or with another --seed or grid: "
            "name another folder."
        )


def _starting_network(folder: Path, hold_out: Sequence[str]) -> tuple[SFCN, str, Mapping[str, Sequence[str]]]:
    """Return the network to start from, the SHA-256 of its weights, and the heads it was trained on, by domain.

    Raises
    ------
    WeightsError
        If the folder holds no such weights, or their card does not name the training heads.
    UsageError
        If the network was trained on heads that are held out now.
    """
    network, _, notes = load_network(folder)
    if "data" not in notes:
        raise WeightsError(f"The card of the weights in {folder} does not name the heads they were trained on.")
    seen = [name for names in notes["data"].values() for name in names if _matches(Path(name), hold_out)]
    if seen:
        raise UsageError(
            f"--hold-out: the weights in {folder} were trained on {', '.join(seen)}. Hold out others, or rename "
            "files of other persons."
        )
    return network, sha256_of(folder), notes["data"]


def _head(item: HeadFile, read: Read, device: str) -> Head:
    volume, affine = read(item.path)
    if item.domain == RENDERED:
        return label_head(item.path.name, volume.to(device), affine, GRID)
    return image_head(item.path.name, item.domain, volume.to(device), affine, GRID)


def _validation_cases(files: Sequence[HeadFile], cache: Path, read: Read, report: Report) -> list[ScoredImage]:
    """Return images of held-out heads with and without motion; they are simulated once."""
    if cache.exists():
        return [ScoredImage(**entry) for entry in torch.load(cache, weights_only=True)]
    cases = _cases(files, 1, LEVELS, read, report)
    with atomic_file(cache) as temporary:
        torch.save([vars(case) for case in cases], temporary)
    return cases


def _cases(
    files: Sequence[HeadFile], seed: int, levels: Mapping[str, int], read: Read, report: Report
) -> list[ScoredImage]:
    """Return images of heads with and without motion, and without the augmentation of the training."""
    cases: list[ScoredImage] = []
    for number, item in enumerate(files):
        rng = np.random.default_rng([seed, number])
        volume, affine = read(item.path)
        if item.domain == RENDERED:
            head = label_head(item.path.name, volume, affine, GRID)
            # Undeformed, and as sharp as images of 1.2 mm.
            plain = Anatomy(None, np.eye(3), flip=False, gamma=1.0, resolution=np.full(3, 1.2), taper=0.3)
            volume, affine = image_of(head, plain, rng, GRID), np.diag([GRID.spacing] * 3 + [1.0])
        cases += simulated_cases(item.path.name, item.domain, volume, affine, levels[item.domain], rng, GRID)
        report(f"  images with and without motion: {item.path.name}")
    return cases


def _usual_levels(n_heads: int) -> dict[str, int]:
    """Return the number of images with motion per training head, by domain; each head adds one without motion."""
    return dict.fromkeys(LEVELS, max(USUAL_LEVELS, math.ceil(N_USUAL / n_heads) - 1))


def _familiarity(network: SFCN, cases: Sequence[ScoredImage], device: str) -> Familiarity:
    """Return the distribution of the embeddings of images without augmentation."""
    network.eval()
    with torch.no_grad():
        embeddings = [network.embed(case.image[None].to(device).float()) for case in cases]
    names = [case.head for case in cases]
    return Familiarity.learn(torch.cat(embeddings).cpu(), [names.index(name) for name in names])


def _names_by_domain(training: Sequence[HeadFile], earlier: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the names of the heads of this training and of the one that it started from."""
    names = [(item.domain, item.path.name) for item in training]
    names += [(domain, name) for domain, others in earlier.items() for name in others]
    return {domain: sorted({name for other, name in names if other == domain}) for domain, _ in names}


def card_notes(trainer: Trainer, data: Mapping[str, Sequence[str]], held_out: Sequence[HeadFile]) -> dict[str, Any]:
    """Return the notes on the card of the weights: data, simulation, validation, limitations."""
    return {
        "data": data,
        "held_out": sorted(item.path.name for item in held_out),
        **describe_simulation(),
        "seed": trainer.settings.seed,
        "start_from": trainer.settings.start_from,
        "rounds": trainer.round,
        "hours": round(trainer.seconds / 3600, 2),
        "validation": trainer.figures,
        "limits": LIMITS,
    }


def describe_simulation() -> dict[str, str]:
    """Return the distributions of motion and noise in words, from the constants that they are drawn with."""
    return {
        "distribution": f"scores uniform over 0 to {MAX_SCORE:g} mm, {100 * STILL:g} % of the images without motion; "
        f"{MOVEMENTS[0]} to {MOVEMENTS[1]} movements; voxels of {RESOLUTION[0]:g} to {RESOLUTION[1]:g} mm; see docs",
        "noise": f"standard deviation {100 * NOISE[0]:g} to {100 * NOISE[1]:g} % of the 99th percentile, log-uniform, "
        f"in {100 * NOISY:g} % of the images",
    }
