"""``qmri train motion``: train the network that scores motion on T1w images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.cli.arguments import seed
from qmri_bidsapp.cli.resources import available_cpus
from qmri_bidsapp.config import check_device, find_device
from qmri_bidsapp.errors import InputMissingError, OutputError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from qmri_bidsapp.motion.displacement import Floats
    from qmri_bidsapp.motion.training.recipe import HeadFile

DESCRIPTION = """\
Train the network that scores motion on T1w images, on simulated motion, and write its weights.

Rounds of simulation alternate with rounds of training. Give the same command again to resume a
training that was stopped. Motion is simulated in held-out heads at their own resolution, to report
the accuracy of the network.
"""
EPILOG = """\
Example:
  qmri train motion run --heads HEADS --labels LABELS --hold-out sub-08 sub-09
  qmri-bids bids out participant --motion-weights run/weights
"""


def add_parser(commands: Any) -> None:
    """Add ``motion`` to the commands of ``qmri train``."""
    motion = commands.add_parser(
        "motion",
        help="the network of the motion score of T1w images",
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
        "--hold-out",
        nargs="+",
        default=[],
        metavar="NAME",
        help="files whose name contains this are for validation only",
    )
    motion.add_argument(
        "--start-from",
        type=Path,
        metavar="DIR",
        help="start from these weights, to adapt them to other heads or to train them for longer; use another --seed "
        "(default: random weights)",
    )
    motion.add_argument(
        "--rounds",
        type=int,
        default=100,
        metavar="N",
        help="total number of rounds, of 128 new images and 200 steps each; the learning rate falls to zero at the "
        "last (default: %(default)s)",
    )
    motion.add_argument("--seed", type=seed, default=0, metavar="S", help="random seed (default: %(default)s)")
    motion.add_argument("--device", default="auto", metavar="auto|cpu|cuda[:n]", help="default: %(default)s")
    motion.add_argument("--threads", type=int, metavar="N", help="CPUs to use (default: all available)")
    motion.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Find the heads, and train.

    Raises
    ------
    UsageError
        If an option is out of range, or nothing is left to train on.
    InputMissingError
        If a folder does not exist or holds no volume.
    WeightsError
        If the weights to start from cannot be used.
    OutputError
        If the output folder cannot be made.
    """
    check_device(arguments.device)
    threads = available_cpus() if arguments.threads is None else arguments.threads
    if threads < 1 or arguments.rounds < 1:
        raise UsageError("--threads and --rounds must be at least 1.")

    import torch

    from qmri_bidsapp.motion.training.recipe import train_scorer

    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{arguments.folder} cannot be made ({error.strerror or error}).") from error
    torch.set_num_threads(threads)
    weights = train_scorer(
        _files(arguments),
        arguments.folder,
        read=_read,
        hold_out=arguments.hold_out,
        start_from=arguments.start_from,
        n_rounds=arguments.rounds,
        seed=arguments.seed,
        device=find_device(arguments.device),
        n_processes=threads,
        report=lambda line: print(line, flush=True),
    )
    print(f"Weights: {weights}", flush=True)


def _files(arguments: argparse.Namespace) -> list[HeadFile]:
    """Return the volumes of all folders, with their domains."""
    from qmri_bidsapp.motion.training.recipe import HeadFile

    folders = {"real": arguments.heads, "stripped": arguments.stripped, "rendered": arguments.labels}
    found = []
    for domain, folder in folders.items():
        if folder is None:
            continue
        paths = sorted(path for path in folder.glob("*") if path.name.endswith((".nii", ".nii.gz")))
        if not paths:
            raise InputMissingError(f"{folder} does not exist or holds no .nii or .nii.gz.")
        found += [HeadFile(domain, path) for path in paths]
    return found


def _read(path: Path) -> tuple[Tensor, Floats]:
    """Return a volume (i, j, k), with zeros for values that are not finite, and its affine (4, 4)."""
    import numpy as np
    import torch

    from qmri_bidsapp.images.volumes import load_image

    image = load_image(path, ndim=3)
    volume = torch.from_numpy(np.nan_to_num(np.asarray(image.dataobj), posinf=0, neginf=0))
    return volume, np.asarray(image.affine, dtype=np.float64)
