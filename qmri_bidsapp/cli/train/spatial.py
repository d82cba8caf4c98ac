"""The part of ``qmri train`` for spatial networks, which are trained on virtual heads."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.errors import UsageError

if TYPE_CHECKING:
    from qmri_bidsapp.core.acquisition import Acquisition
    from qmri_bidsapp.estimators.spatial.base import SpatialNetwork
    from qmri_bidsapp.models.base import SignalModel

#: Default number of iterations, and of iterations between checkpoints.
N_ITERATIONS = 5_000
EVERY = 250


def add_options(group: Any) -> None:
    """Add the options of spatial networks to those of ``qmri train``."""
    group.add_argument("--labels", type=Path, metavar="DIR", help="folder of SynthSeg label maps (*.nii.gz); required")
    group.add_argument(
        "--times",
        nargs="+",
        type=float,
        metavar="S",
        help="inversion or echo times of the protocol to train for, s (default: rim is trained for any, drawn for each "
        "batch; resnet for those of the paper)",
    )
    group.add_argument(
        "--signed",
        action="store_true",
        default=None,
        help="train for inversion recoveries with restored polarity (default: magnitudes; rim without --times: both)",
    )
    group.add_argument(
        "--start-from",
        type=Path,
        metavar="DIR",
        help="initial weights: of rim for any times or the same ones, of resnet for the same ones; with --iterations 0 "
        "only their standard deviations are trained (default: random)",
    )
    group.add_argument(
        "--iterations",
        type=int,
        metavar="N",
        help="iterations of the network, including earlier ones; standard deviations are trained afterwards, if they "
        f"were not before (default: {N_ITERATIONS})",
    )
    group.add_argument("--every", type=int, metavar="N", help=f"iterations between checkpoints (default: {EVERY})")


def run(arguments: argparse.Namespace, model: SignalModel, kind: type[SpatialNetwork]) -> None:
    """Train a network, or continue from the checkpoint in the folder, and print where its weights are.

    Raises
    ------
    UsageError
        If an option is missing or out of range, or the model has no virtual heads.
    WeightsError
        If the checkpoint belongs to another training, or the weights to start from do not fit; nothing is written.
    InputError
        If the label maps cannot be used.
    OutputError
        If the folder cannot be written.
    """
    from qmri_bidsapp.estimators.spatial.recipe import Recipe, make_weights
    from qmri_bidsapp.images.label_maps import load_heads

    _check(arguments, model, kind)
    recipe = Recipe(
        kind,
        model,
        protocol=_protocol(kind, model, arguments),
        start_from=arguments.start_from,
        n_iterations=N_ITERATIONS if arguments.iterations is None else arguments.iterations,
        every=arguments.every or EVERY,
        seed=arguments.seed,
    )
    print(make_weights(recipe, load_heads(arguments.labels), arguments.folder, _say))


def _say(row: dict[str, float]) -> None:
    print(" ".join(f"{key}={value:.4g}" for key, value in row.items()), flush=True)


def _check(arguments: argparse.Namespace, model: SignalModel, kind: type[SpatialNetwork]) -> None:
    """Raise UsageError if an option is missing or out of range, or the model has no virtual heads."""
    from qmri_bidsapp.estimators.spatial.recipe import STANDARD

    least = 1 if arguments.start_from is None else 0
    if (arguments.iterations is not None and arguments.iterations < least) or (
        arguments.every is not None and arguments.every < 1
    ):
        raise UsageError("--iterations (unless with --start-from) and --every must be at least 1.")
    if arguments.labels is None:
        raise UsageError(f"Estimator {kind.name} is trained on label maps: name their folder with --labels DIR.")
    if model.name not in STANDARD:
        raise UsageError(f"Estimator {kind.name} is for {' and '.join(STANDARD)}, not for {model.name}.")


def _protocol(kind: type[SpatialNetwork], model: SignalModel, arguments: argparse.Namespace) -> Acquisition | None:
    """Return the requested protocol; None for any."""
    from qmri_bidsapp.core.acquisition import InversionRecovery
    from qmri_bidsapp.estimators.spatial.recipe import standard_protocol

    standard = standard_protocol(model)
    if arguments.signed and not isinstance(standard, InversionRecovery):
        raise UsageError(f"--signed is for inversion recoveries, which model {model.name} does not use.")
    if arguments.times is None and kind.is_general:
        if arguments.signed:
            raise UsageError(f"Estimator {kind.name} is trained for both signs unless --times names one protocol.")
        return None
    protocol = standard if arguments.times is None else type(standard)(tuple(arguments.times))  # type: ignore[call-arg]
    if isinstance(protocol, InversionRecovery) and arguments.signed:
        protocol = replace(protocol, signed=True)
    kind.check(model, protocol)
    return protocol
