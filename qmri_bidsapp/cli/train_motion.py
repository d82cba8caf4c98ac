"""``qmri train motion``: train the network that scores motion on T1w images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.cli.resources import available_cpus
from qmri_bidsapp.config import check_device, find_device
from qmri_bidsapp.errors import InputMissingError, OutputError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from qmri_bidsapp.motion.accuracy import Case
    from qmri_bidsapp.motion.label import Floats
    from qmri_bidsapp.motion.samples import Head
    from qmri_bidsapp.motion.score import Grid

#: Cases with motion per held-out head: of real heads, and of others.
LEVELS = {"real": 10, "rendered": 6, "stripped": 6}
VALIDATION = "validation.pt"


def add_parser(commands: Any) -> None:
    """Add ``train`` to the commands of ``qmri``."""
    train = commands.add_parser("train", help="train networks")
    what = train.add_subparsers(dest="what", required=True, metavar="WHAT", parser_class=type(train))
    motion = what.add_parser("motion", help="the motion score of T1w images, on simulated motion")
    motion.add_argument("--heads", type=Path, metavar="DIR", help="T1w volumes of whole heads (.nii, .nii.gz)")
    motion.add_argument("--stripped", type=Path, metavar="DIR", help="T1w volumes without skull")
    motion.add_argument("--labels", type=Path, metavar="DIR", help="label maps of whole heads, to render heads from")
    motion.add_argument(
        "--hold-out", nargs="+", default=[], metavar="NAME", help="files whose name holds this are for validation only"
    )
    motion.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoint and log; resumed if present")
    motion.add_argument("--steps", type=int, default=20_000, metavar="N", help="in all (default: %(default)s)")
    motion.add_argument("--seed", type=int, default=0, metavar="S", help="default: %(default)s")
    motion.add_argument("--spacing", type=float, default=1.5, metavar="MM", help="of the input (default: %(default)s)")
    motion.add_argument("--width", type=int, default=16, metavar="N", help="first channels (default: %(default)s)")
    motion.add_argument("--bfloat16", action="store_true", help="convolutions in half precision")
    motion.add_argument("--device", default="auto", metavar="auto|cpu|cuda[:n]", help="default: %(default)s")
    motion.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: all CPUs allowed)")
    motion.set_defaults(run=run_motion)


def run_motion(arguments: argparse.Namespace) -> None:
    """Load the heads, and train.

    Raises
    ------
    UsageError
        If an option is out of range, or nothing is left to train on.
    InputMissingError
        If a folder does not exist or holds no volume.
    OutputError
        If the output folder cannot be made.
    """
    check_device(arguments.device)
    threads = available_cpus() if arguments.threads is None else arguments.threads

    import torch

    from qmri_bidsapp.motion.network import Architecture
    from qmri_bidsapp.motion.score import GRIDS
    from qmri_bidsapp.motion.training import Settings, Trainer, train

    if threads < 1 or arguments.steps < 1 or arguments.width < 8 or arguments.width % 8:
        raise UsageError("--threads and --steps must be at least 1, and --width a multiple of 8.")
    if arguments.spacing not in GRIDS:
        raise UsageError(f"--spacing must be one of {', '.join(str(key) for key in GRIDS)}.")
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--out {arguments.out} cannot be made ({error.strerror or error}).") from error
    torch.set_num_threads(threads)
    device, grid, width = find_device(arguments.device), GRIDS[arguments.spacing], arguments.width
    channels = (width, 2 * width, 4 * width, 8 * width, 8 * width, 2 * width)
    settings = Settings(
        seed=arguments.seed,
        spacing=arguments.spacing,
        architecture=Architecture(channels=channels),
        bfloat16=arguments.bfloat16,
    )
    trainer = Trainer(settings, arguments.out, device)
    files = _files(arguments)
    training = [item for item in files if not _held_out(item[1], arguments.hold_out)]
    if not training:
        raise UsageError("Nothing to train on: name --heads, --stripped or --labels, and hold out less.")
    held_out = [item for item in files if _held_out(item[1], arguments.hold_out)]
    print(f"{len(training)} heads to train on, {len(held_out)} held out; {device}, threads: {threads}", flush=True)
    validation = _validation(held_out, arguments.out / VALIDATION, grid)
    heads = [_head(domain, path, grid, device) for domain, path in training]
    train(trainer, heads, validation, steps=arguments.steps, report=lambda line: print(line, flush=True))


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


def _held_out(path: Path, names: list[str]) -> bool:
    return any(name in path.name for name in names)


def _load(path: Path) -> tuple[Tensor, Floats]:
    import numpy as np
    import torch

    from qmri_bidsapp.images.volumes import load_image

    image = load_image(path, ndim=3)
    return torch.from_numpy(np.nan_to_num(np.asarray(image.dataobj))), np.asarray(image.affine, dtype=np.float64)


def _head(domain: str, path: Path, grid: Grid, device: str) -> Head:
    from qmri_bidsapp.motion.samples import image_head, label_head

    volume, affine = _load(path)
    if domain == "rendered":
        return label_head(path.name, volume.to(device), affine, grid)
    return image_head(path.name, domain, volume.to(device), affine, grid)


def _validation(files: list[tuple[str, Path]], cache: Path, grid: Grid) -> list[Case]:
    """Return the held-out cases; they are made once."""
    import numpy as np
    import torch

    from qmri_bidsapp.motion.accuracy import Case, disturbed_cases
    from qmri_bidsapp.motion.rendering import draw_contrast, render
    from qmri_bidsapp.motion.samples import LABEL_SPACING, label_head

    if cache.exists():
        return [Case(**entry) for entry in torch.load(cache, weights_only=True)]
    cases: list[Case] = []
    for number, (domain, path) in enumerate(files):
        rng = np.random.default_rng([1, number])
        volume, affine = _load(path)
        if domain == "rendered":
            head = label_head(path.name, volume, affine, grid)
            assert head.classes is not None
            assert head.intensity is not None
            volume = render(head.classes, draw_contrast(rng, head.intensity))
            affine = np.diag([LABEL_SPACING] * 3 + [1.0])
        cases += disturbed_cases(path.name, domain, volume, affine, LEVELS[domain], rng, grid)
        print(f"  held out: {path.name}", flush=True)
    torch.save([vars(case) for case in cases], cache)
    return cases
