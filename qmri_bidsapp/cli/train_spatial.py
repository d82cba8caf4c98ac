"""The part of ``qmri train`` that trains spatial networks, on virtual heads."""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.errors import InputError, OutputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from qmri_bidsapp.core.acquisition import Acquisition
    from qmri_bidsapp.estimators.spatial_network import SpatialNetwork
    from qmri_bidsapp.evaluation.relaxometry import Errors
    from qmri_bidsapp.models.base import SignalModel

#: Heads that are kept for validation, the last of them in the order of their names.
N_HELD_OUT = 5
#: Signal-to-noise ratios at which a network is validated, and its seed.
SNRS = (10, 50)
VALIDATION_SEED = 2021
#: Protocol of `evaluation.relaxometry.PROTOCOLS` that each model is validated on.
STANDARD = {"t1": "31", "t2": "6"}
#: What the card says of all spatial networks.
LIMITS = (
    "Heads at 3 T with values as in the distribution; others, and other organs, were met only as the broad share.",
    "Structures smaller than a few voxels lose contrast; see `qmri evaluate relaxometry`.",
    "No standard deviations, and no sign where a voxel is unlike those of the training.",
)


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


def run(arguments: argparse.Namespace, model: SignalModel, kind: type[SpatialNetwork]) -> None:
    """Train a network, or go on from the checkpoint that is in the folder, and write its weights.

    Raises
    ------
    UsageError
        If an option is missing or out of range, or the model has no virtual heads.
    InputError
        If the label maps cannot be used.
    OutputError
        If the folder cannot be written.
    """
    from qmri_bidsapp.estimators.patches import describe
    from qmri_bidsapp.estimators.spatial_training import TrainingOptions, train
    from qmri_bidsapp.estimators.weights import save_weights
    from qmri_bidsapp.evaluation.relaxometry import PROTOCOLS, errors_of, estimate_by_network, phantom_errors, simulate

    if arguments.iterations < 1 or arguments.every < 1:
        raise UsageError("--iterations and --every must be at least 1.")
    if arguments.labels is None:
        raise UsageError(f"Estimator {kind.name} is trained on the label maps of --labels DIR: name one.")
    if model.name not in STANDARD:
        raise UsageError(f"Estimator {kind.name} is for {' and '.join(STANDARD)}, not for {model.name}.")
    standard = PROTOCOLS[model.name][STANDARD[model.name]]
    protocol = _protocol(kind, model, arguments.times)
    if protocol is None and not kind.is_general:
        protocol = standard
    heads = load_heads(arguments.labels)
    training, held_out = heads[:-N_HELD_OUT], heads[-N_HELD_OUT:]
    trials = {snr: simulate(model, held_out, protocol or standard, snr, seed=VALIDATION_SEED) for snr in SNRS}
    options = TrainingOptions(n_iterations=arguments.iterations, seed=arguments.seed)
    identity = kind.identity(model, protocol)

    validation: dict[str, float] = {}

    def validate(network: nn.Module) -> dict[str, float]:
        found = {snr: errors_of(estimate_by_network(network, model, trial), trial) for snr, trial in trials.items()}
        for snr, errors in found.items():
            validation.update({f"{key}_snr{snr}": value for key, value in errors._asdict().items()})
        return validation

    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        baseline = _baseline(model, trials)
        (arguments.folder / "baseline.json").write_text(json.dumps(baseline) + "\n")
        trained = train(
            lambda: kind.build(model, protocol or standard),
            model,
            training,
            options,
            identity=identity,
            folder=arguments.folder,
            protocol=protocol,
            validate=validate,
            every=arguments.every,
            report=lambda row: print(" ".join(f"{key}={value:.4g}" for key, value in row.items()), flush=True),
        )
    except OSError as error:
        raise OutputError(f"{arguments.folder} cannot be written: {error}") from error
    notes = {
        "iterations": trained.iterations,
        "planned": trained.planned,
        "options": {key: value for key, value in asdict(options).items() if key != "n_iterations"},
        "n_label_maps": len(training),
        "label_maps_sha256": hashlib.sha256(b"".join(head.tobytes() for head in training)).hexdigest(),
        "distribution": describe(model, protocol),
        "validation": {
            "protocol": (protocol or standard).to_dict(),
            "n_label_maps": N_HELD_OUT,
            "least_squares": baseline,
            kind.name: validation or validate(trained.network),
        },
        "phantom": phantom_errors(trained.network, model, protocol or standard)._asdict(),
        "limits": LIMITS,
    }
    target = arguments.folder / f"{kind.name}-{model.name}"
    save_weights(target, trained.network.state_dict(), identity, notes)
    print(target)


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


def _protocol(kind: type[SpatialNetwork], model: SignalModel, times: list[float] | None) -> Acquisition | None:
    """Return the protocol that was asked for."""
    from qmri_bidsapp.core.acquisition import InversionRecovery, MultiEcho

    if times is None:
        return None
    protocol = (MultiEcho if model.acquisition_type is MultiEcho else InversionRecovery)(tuple(times))
    kind.check(model, protocol)
    return protocol


def _baseline(model: SignalModel, trials: dict[int, Any]) -> dict[str, dict[str, float]]:
    """Return the errors of voxelwise least squares on what the network is validated on."""
    from qmri_bidsapp.estimators.varpro import VariableProjection
    from qmri_bidsapp.evaluation.relaxometry import errors_of, estimate_with

    def errors(trial: Any) -> Errors:
        return errors_of(estimate_with(VariableProjection(model).fit(trial.acquisition), trial), trial)

    return {f"varpro_snr{snr}": errors(trial)._asdict() for snr, trial in trials.items()}
