"""The part of ``qmri train`` that trains spatial networks, on virtual heads."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.errors import InputError, OutputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from qmri_bidsapp.core.acquisition import Acquisition
    from qmri_bidsapp.evaluation.relaxometry import Errors
    from qmri_bidsapp.models.base import SignalModel

#: Heads that are kept for validation, the last of them in the order of their names.
N_HELD_OUT = 5
#: Signal-to-noise ratios at which a network is validated, and its seed.
SNRS = (10, 50)
VALIDATION_SEED = 2021
#: Networks, and the protocol of `evaluation.relaxometry.PROTOCOLS` that each model is validated on.
NETWORKS = ("rim", "resnet")
STANDARD = {"t1": "31", "t2": "6"}


def add_options(group: Any) -> None:
    """Add what only spatial networks need to the options of ``qmri train``."""
    group.add_argument("--labels", type=Path, metavar="DIR", help="folder of SynthSeg label maps; required")
    group.add_argument(
        "--times",
        nargs="+",
        type=float,
        metavar="S",
        help="the only inversion or echo times, s (default for rim: drawn anew for each batch; for resnet: those of "
        "the paper)",
    )
    group.add_argument("--iterations", type=int, default=20_000, metavar="N", help="default: %(default)s")
    group.add_argument("--every", type=int, default=250, metavar="N", help="iterations between checkpoints")


def run(arguments: argparse.Namespace) -> None:
    """Train a network, or go on from the checkpoint that is in the folder."""
    import torch

    from qmri_bidsapp.estimators.recurrent import RecurrentInferenceMachine
    from qmri_bidsapp.estimators.residual import ResidualNetwork
    from qmri_bidsapp.estimators.spatial_training import TrainingOptions, train
    from qmri_bidsapp.evaluation.relaxometry import PROTOCOLS, errors_of, estimate_by_network, simulate
    from qmri_bidsapp.registry import get_model

    if arguments.iterations < 1 or arguments.every < 1:
        raise UsageError("--iterations and --every must be at least 1.")
    if arguments.labels is None:
        raise UsageError(f"Estimator {arguments.estimator} is trained on the label maps of --labels DIR: name one.")
    if arguments.model not in STANDARD:
        raise UsageError(f"Estimator {arguments.estimator} is for {' and '.join(STANDARD)}, not for {arguments.model}.")
    model = get_model(arguments.model)
    standard = PROTOCOLS[model.name][STANDARD[model.name]]
    protocol = _protocol(model, arguments.times)
    if protocol is None and arguments.estimator == "resnet":
        protocol = standard
    heads = load_heads(arguments.labels)
    training, held_out = heads[:-N_HELD_OUT], heads[-N_HELD_OUT:]
    trials = {snr: simulate(model, held_out, protocol or standard, snr, seed=VALIDATION_SEED) for snr in SNRS}

    def build() -> nn.Module:
        if arguments.estimator == "rim":
            return RecurrentInferenceMachine(model)
        return ResidualNetwork(model, (protocol or standard).n_measurements)

    def validate(network: nn.Module) -> dict[str, float]:
        found = {snr: errors_of(estimate_by_network(network, model, trial), trial) for snr, trial in trials.items()}
        return {f"{key}_snr{snr}": value for snr, errors in found.items() for key, value in errors._asdict().items()}

    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        _write_baseline(arguments.folder / "baseline.json", model, trials)
        train(
            build,
            model,
            training,
            TrainingOptions(n_iterations=arguments.iterations, seed=arguments.seed),
            card={
                "network": arguments.estimator,
                "model": model.name,
                "protocol": None if protocol is None else protocol.to_dict(),
            },
            folder=arguments.folder,
            protocol=protocol,
            validate=validate,
            every=arguments.every,
            report=lambda row: print(" ".join(f"{key}={value:.4g}" for key, value in row.items()), flush=True),
        )
    except OSError as error:
        raise OutputError(f"{arguments.folder} cannot be written: {error}") from error
    print(f"{arguments.estimator} for {model.name}, {torch.get_num_threads()} threads: {arguments.folder}")


def load_heads(folder: Path) -> list[npt.NDArray[np.uint8]]:
    """Return the structures of all label maps of a folder, in the order of their names, cropped to the brain.

    Raises
    ------
    InputError
        If there are too few of them, or one holds other labels.
    """
    import nibabel as nib
    import numpy as np

    from qmri_bidsapp.estimators.virtual_heads import crop, structures_of
    from qmri_bidsapp.images.volumes import load_image

    paths = sorted(folder.glob("*.nii.gz"))
    if len(paths) <= N_HELD_OUT:
        raise InputError(f"{folder} must hold more than {N_HELD_OUT} label maps (*.nii.gz), got {len(paths)}.")
    heads = []
    for path in paths:
        image = nib.as_closest_canonical(load_image(path, ndim=3))
        try:
            heads.append(crop(structures_of(np.asarray(image.dataobj).round())))
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
    return heads


def _protocol(model: SignalModel, times: list[float] | None) -> Acquisition | None:
    """Return the protocol that was asked for."""
    from qmri_bidsapp.core.acquisition import InversionRecovery, MultiEcho

    if times is None:
        return None
    protocol = (MultiEcho if model.acquisition_type is MultiEcho else InversionRecovery)(tuple(times))
    model.check(protocol)
    return protocol


def _write_baseline(path: Path, model: SignalModel, trials: dict[int, Any]) -> None:
    """Write the errors of voxelwise least squares on what the network is validated on."""
    from qmri_bidsapp.estimators.varpro import VariableProjection
    from qmri_bidsapp.evaluation.relaxometry import errors_of, estimate_with

    def errors(trial: Any) -> Errors:
        return errors_of(estimate_with(VariableProjection(model).fit(trial.acquisition), trial), trial)

    path.write_text(json.dumps({f"varpro_snr{snr}": errors(trial)._asdict() for snr, trial in trials.items()}) + "\n")
