"""``qmri train motion``: train the network that scores motion on T1w images."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.artifacts.atomic import atomic_file
from qmri_bidsapp.cli.arguments import seed
from qmri_bidsapp.cli.resources import available_cpus
from qmri_bidsapp.config import check_device, find_device
from qmri_bidsapp.errors import InputMissingError, OutputError, UsageError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from qmri_bidsapp.motion.displacement import Floats
    from qmri_bidsapp.motion.familiarity import Familiarity
    from qmri_bidsapp.motion.network import SFCN
    from qmri_bidsapp.motion.training.accuracy import Case
    from qmri_bidsapp.motion.training.samples import Head
    from qmri_bidsapp.motion.training.trainer import Trainer

DESCRIPTION = """\
Train the network that scores motion on T1w images, on simulated motion, and write its weights.

Rounds of simulation alternate with rounds of training. A training that was stopped goes on where it
was when the same command is given again. Heads held out are moved at their own resolution, and tell
how well the network does.
"""
EPILOG = """\
Example:
  qmri train motion run --heads HEADS --labels LABELS --hold-out sub-08 sub-09
  qmri-bids bids out participant --motion-weights run/weights
"""
#: Cases with motion per held-out head: of real heads, and of others.
LEVELS = {"real": 10, "rendered": 6, "stripped": 6}
#: And per head of the training, for what is known of usual images: most images of a lab are still. Of few heads, more
#: levels make as many images as it takes for a p-value below `scorer.UNFAMILIAR`.
USUAL_LEVELS, N_USUAL = 3, 100
DATA, VALIDATION, WEIGHTS = "data.json", "validation.pt", "weights"
#: What the card says of all such weights.
LIMITS = (
    "Motion was simulated: 3-D Cartesian acquisitions whose slow phase encoding is along one axis of the image.",
    "Heads of adults; images of a few scanners.",
)


def add_parser(commands: Any) -> None:
    """Add ``motion`` to the commands of ``qmri train``."""
    motion = commands.add_parser(
        "motion",
        help="the motion score of T1w images",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=100),
    )
    motion.add_argument(
        "folder", type=Path, help="checkpoint, planes of simulated images, log and weights; resumed if present"
    )
    motion.add_argument("--heads", type=Path, metavar="DIR", help="T1w volumes of whole heads (.nii, .nii.gz)")
    motion.add_argument("--stripped", type=Path, metavar="DIR", help="T1w volumes without skull")
    motion.add_argument("--labels", type=Path, metavar="DIR", help="label maps of whole heads, to render heads from")
    motion.add_argument(
        "--hold-out", nargs="+", default=[], metavar="NAME", help="files whose name holds this are for validation only"
    )
    motion.add_argument(
        "--start-from",
        type=Path,
        metavar="DIR",
        help="weights to begin with, to adapt them to other heads or to train them for longer, then with another "
        "--seed (default: random ones)",
    )
    motion.add_argument(
        "--rounds",
        type=int,
        default=100,
        metavar="N",
        help="rounds of 128 new images and 200 steps, in all; the learning rate falls to zero at the last "
        "(default: %(default)s)",
    )
    motion.add_argument("--seed", type=seed, default=0, metavar="S", help="of everything random (default: %(default)s)")
    motion.add_argument("--device", default="auto", metavar="auto|cpu|cuda[:n]", help="default: %(default)s")
    motion.add_argument("--threads", type=int, metavar="N", help="CPUs to use (default: all that are allowed)")
    motion.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Load the heads, and train.

    Raises
    ------
    UsageError
        If an option is out of range, or nothing is left to train on.
    InputMissingError
        If a folder does not exist or holds no volume.
    WeightsError
        If there are no such weights to begin with.
    OutputError
        If the output folder cannot be made.
    """
    check_device(arguments.device)
    threads = available_cpus() if arguments.threads is None else arguments.threads

    import torch

    from qmri_bidsapp.motion import network_input as score
    from qmri_bidsapp.motion.familiarity import N_FOLDS
    from qmri_bidsapp.motion.head_axes import mean_heads
    from qmri_bidsapp.motion.scorer import save_scorer
    from qmri_bidsapp.motion.training.pool import Simulator
    from qmri_bidsapp.motion.training.trainer import Settings, Trainer, train

    if threads < 1 or arguments.rounds < 1:
        raise UsageError("--threads and --rounds must be at least 1.")
    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{arguments.folder} cannot be made ({error.strerror or error}).") from error
    torch.set_num_threads(threads)
    device = find_device(arguments.device)
    files = _files(arguments)
    training = [item for item in files if not _held_out(item[1], arguments.hold_out)]
    if not training:
        raise UsageError("Nothing to train on: name --heads, --stripped or --labels, and hold out less.")
    if len(training) < N_FOLDS:
        raise UsageError(f"{len(training)} heads to train on, at least {N_FOLDS} are needed: name more, hold out less.")
    for name in arguments.hold_out:
        if not any(_held_out(path, [name]) for _, path in files):
            raise UsageError(f"--hold-out {name}: no file has a name with it.")
    held_out = [item for item in files if _held_out(item[1], arguments.hold_out)]
    _compare_data(arguments.folder, arguments.seed, training, held_out)
    settings = Settings(seed=arguments.seed)
    start: SFCN | None = None
    earlier: dict[str, list[str]] = {}
    if arguments.start_from is not None:
        start, sha256, earlier = _start(arguments.start_from, arguments.hold_out)
        settings = replace(settings, architecture=start.architecture, start_from=sha256)
    trainer = Trainer(settings, arguments.folder, device, start)
    print(f"{len(training)} heads to train on, {len(held_out)} held out; {device}, threads: {threads}", flush=True)
    validation = _validation(held_out, arguments.folder / VALIDATION)
    heads = [_head(domain, path, device) for domain, path in training]
    simulator = Simulator(heads, arguments.folder, seed=arguments.seed, n_processes=threads, grid=score.GRID)
    train(trainer, simulator, validation, n_rounds=arguments.rounds, report=lambda line: print(line, flush=True))
    folder = arguments.folder / WEIGHTS
    usual = _cases(training, trainer.settings.seed + 1, _usual_levels(len(training)))
    still = [case for case in usual if case.score == 0]
    heads_in_place = mean_heads([case.image for case in still], [case.domain for case in still])
    familiarity = _familiarity(trainer.average, usual, device)
    notes = _notes(trainer, _names_by_domain(training, earlier), held_out)
    save_scorer(folder, trainer.average, familiarity, heads_in_place, notes)
    print(f"Weights: {folder}", flush=True)


def _files(arguments: argparse.Namespace) -> list[tuple[str, Path]]:
    """Return the domain and path of every volume."""
    folders = {"real": arguments.heads, "stripped": arguments.stripped, "rendered": arguments.labels}
    found = []
    for domain, folder in folders.items():
        if folder is None:
            continue
        paths = sorted(path for path in folder.glob("*") if path.name.endswith((".nii", ".nii.gz")))
        if not paths:
            raise InputMissingError(f"{folder} does not exist or holds no .nii or .nii.gz.")
        found += [(domain, path) for path in paths]
    return found


def _start(folder: Path, hold_out: list[str]) -> tuple[SFCN, str, dict[str, list[str]]]:
    """Return the network to begin with, the SHA-256 of its weights, and the names of the heads it has seen, by domain.

    Raises
    ------
    WeightsError
        If the folder holds no such weights, or their card does not name their heads.
    UsageError
        If they were trained on heads that are held out now.
    """
    from qmri_bidsapp.artifacts.weights import sha256_of
    from qmri_bidsapp.motion.scorer import load_network

    network, _, notes = load_network(folder)
    if "data" not in notes:
        raise WeightsError(f"The card of the weights in {folder} does not name the heads they were trained on.")
    seen = [name for names in notes["data"].values() for name in names if _held_out(Path(name), hold_out)]
    if seen:
        raise UsageError(
            f"--hold-out: the weights in {folder} were trained on {', '.join(seen)}. Hold out others, or rename "
            "files of other persons."
        )
    return network, sha256_of(folder), notes["data"]


def _compare_data(folder: Path, seed: int, training: list[tuple[str, Path]], held_out: list[tuple[str, Path]]) -> None:
    """Compare what images come from with that of the training that is gone on with; note it where it begins.

    Raises
    ------
    UsageError
        If they differ: heads held out now may have been trained on before.
    """
    from qmri_bidsapp.motion.network_input import GRID

    files = {"training": training, "held_out": held_out}
    data: dict[str, Any] = {"seed": seed, "spacing": GRID.spacing}
    data |= {name: [[kind, path.name, path.stat().st_size] for kind, path in part] for name, part in files.items()}
    record = folder / DATA
    if not record.exists():
        with atomic_file(record) as temporary:
            temporary.write_text(json.dumps(data), encoding="utf-8")
    elif json.loads(record.read_text(encoding="utf-8")) != data:
        raise UsageError(
            f"{folder} holds a training on other heads, with others held out, or with another --seed or grid: "
            "name another folder."
        )


def _held_out(path: Path, names: list[str]) -> bool:
    return any(name in path.name for name in names)


def _load(path: Path) -> tuple[Tensor, Floats]:
    import numpy as np
    import torch

    from qmri_bidsapp.images.volumes import load_image

    image = load_image(path, ndim=3)
    return torch.from_numpy(np.nan_to_num(np.asarray(image.dataobj), posinf=0, neginf=0)), np.asarray(
        image.affine, dtype=np.float64
    )


def _head(domain: str, path: Path, device: str) -> Head:
    from qmri_bidsapp.motion.network_input import GRID
    from qmri_bidsapp.motion.training.samples import image_head, label_head

    volume, affine = _load(path)
    if domain == "rendered":
        return label_head(path.name, volume.to(device), affine, GRID)
    return image_head(path.name, domain, volume.to(device), affine, GRID)


def _familiarity(network: SFCN, cases: list[Case], device: str) -> Familiarity:
    """Return where the embeddings of usual images lie, which went through none of the variations of the training."""
    import torch

    from qmri_bidsapp.motion.familiarity import Familiarity

    network.eval()
    with torch.no_grad():
        embeddings = [network.embed(case.image[None].to(device).float()) for case in cases]
    names = [case.head for case in cases]
    return Familiarity.learn(torch.cat(embeddings).cpu(), [names.index(name) for name in names])


def _usual_levels(n_heads: int) -> dict[str, int]:
    """Return the cases with motion per head of the training, by domain; each head is one more, as it came."""
    return dict.fromkeys(LEVELS, max(USUAL_LEVELS, math.ceil(N_USUAL / n_heads) - 1))


def _names_by_domain(training: list[tuple[str, Path]], earlier: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return the names of heads of this training and of the one that it began with."""
    names = [(kind, path.name) for kind, path in training]
    names += [(kind, name) for kind, others in earlier.items() for name in others]
    return {kind: sorted({name for other, name in names if other == kind}) for kind, _ in names}


def _notes(trainer: Trainer, data: Mapping[str, list[str]], held_out: list[tuple[str, Path]]) -> dict[str, Any]:
    """Return what the card says of the training."""
    return {
        "data": data,
        "held_out": sorted(path.name for _, path in held_out),
        "distribution": "scores uniform over 0 to 4 mm, 8 % of the images without motion; 2 to 8 movements; voxels of "
        "0.65 to 2.1 mm; see docs",
        "noise": "standard deviation 0.3 to 5 % of the 99th percentile, log-uniform, in 85 % of the images",
        "seed": trainer.settings.seed,
        "start_from": trainer.settings.start_from,
        "rounds": trainer.round,
        "hours": round(trainer.seconds / 3600, 2),
        "validation": trainer.figures,
        "limits": LIMITS,
    }


def _validation(files: list[tuple[str, Path]], cache: Path) -> list[Case]:
    """Return the held-out cases; they are made once."""
    import torch

    from qmri_bidsapp.motion.training.accuracy import Case

    if cache.exists():
        return [Case(**entry) for entry in torch.load(cache, weights_only=True)]
    cases = _cases(files, 1, LEVELS)
    with atomic_file(cache) as temporary:
        torch.save([vars(case) for case in cases], temporary)
    return cases


def _cases(files: list[tuple[str, Path]], seed: int, levels: Mapping[str, int]) -> list[Case]:
    """Return heads as they came and with fresh motion, through none of the variations of the training."""
    import numpy as np

    from qmri_bidsapp.motion.network_input import GRID
    from qmri_bidsapp.motion.training.accuracy import disturbed_cases
    from qmri_bidsapp.motion.training.augmentation import Anatomy
    from qmri_bidsapp.motion.training.samples import appear, label_head

    cases: list[Case] = []
    for number, (domain, path) in enumerate(files):
        rng = np.random.default_rng([seed, number])
        volume, affine = _load(path)
        if domain == "rendered":
            head = label_head(path.name, volume, affine, GRID)
            # Shape as it is, and as sharp as images of 1.2 mm.
            plain = Anatomy(None, np.eye(3), flip=False, gamma=1.0, resolution=np.full(3, 1.2), taper=0.3)
            volume, affine = appear(head, plain, rng, GRID), np.diag([GRID.spacing] * 3 + [1.0])
        cases += disturbed_cases(path.name, domain, volume, affine, levels[domain], rng, GRID)
        print(f"  as it came, and moved: {path.name}", flush=True)
    return cases
