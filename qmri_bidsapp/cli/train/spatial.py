"""The part of ``qmri train`` that trains spatial networks, on virtual heads."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.errors import InputError, OutputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from qmri_bidsapp.core.acquisition import Acquisition
    from qmri_bidsapp.estimators.spatial.error_head import ErrorHead, SliceNetwork
    from qmri_bidsapp.estimators.spatial.estimators import SpatialNetwork
    from qmri_bidsapp.estimators.spatial.trials import Errors
    from qmri_bidsapp.models.base import SignalModel

#: Iterations of a training that are not named, and iterations between checkpoints.
N_ITERATIONS = 5_000
EVERY = 250
#: Heads that are kept for validation, the last of them in the order of their names.
N_HELD_OUT = 5
#: Signal-to-noise ratios at which a network is validated, and its seed.
SNRS = (10, 50)
VALIDATION_SEED = 2021
#: Of the heads kept for validation, those that calibrate the standard deviations; coverage is measured on the others.
N_CALIBRATION = 2
#: Iterations, and batches that calibrate and validate, of the training of standard deviations.
HEAD_SIZES = {"n_iterations": 1000, "n_calibration": 80, "n_validation": 20}
#: Protocol of `evaluation.relaxometry.PROTOCOLS` that each model is validated on.
STANDARD = {"t1": "31", "t2": "6"}
#: What the card says of all spatial networks.
LIMITS = (
    "Heads at 3 T with values as in the distribution; others, and other organs, were met only as the broad share.",
    "Structures smaller than a few voxels lose contrast; see `qmri evaluate relaxometry`.",
    "Standard deviations are for voxels like those of the training, with no sign where one is not.",
)


def add_options(group: Any) -> None:
    """Add what only spatial networks need to the options of ``qmri train``."""
    group.add_argument(
        "--labels", type=Path, metavar="DIR", help="folder of SynthSeg label maps (*.nii.gz); required for these"
    )
    group.add_argument(
        "--times",
        nargs="+",
        type=float,
        metavar="S",
        help="inversion or echo times of the one protocol to train for, s (default: for rim any, drawn anew for each "
        "batch; for resnet those of the paper)",
    )
    group.add_argument(
        "--signed",
        action="store_true",
        default=None,
        help="train for inversion recoveries whose polarity is restored (default: magnitudes; rim without --times: "
        "both)",
    )
    group.add_argument(
        "--start-from",
        type=Path,
        metavar="DIR",
        help="go on from these weights: of rim for any times or the same ones, of resnet for the same ones; with "
        "--iterations 0 only their standard deviations are learned (default: random ones)",
    )
    group.add_argument(
        "--iterations",
        type=int,
        metavar="N",
        help="of the network, those done before included; the standard deviations are learned after them, unless that "
        f"was done (default: {N_ITERATIONS})",
    )
    group.add_argument("--every", type=int, metavar="N", help=f"iterations between checkpoints (default: {EVERY})")


def run(arguments: argparse.Namespace, model: SignalModel, kind: type[SpatialNetwork]) -> None:
    """Train a network, or go on from the checkpoint that is in the folder, and write its weights.

    Raises
    ------
    UsageError
        If an option is missing or out of range, or the model has no virtual heads.
    WeightsError
        If the checkpoint is of another training, or the weights to start from are for something else; nothing is
        written then.
    InputError
        If the label maps cannot be used.
    OutputError
        If the folder cannot be written.
    """
    from qmri_bidsapp.artifacts.weights import save_weights
    from qmri_bidsapp.estimators.spatial.error_head import join_head
    from qmri_bidsapp.estimators.spatial.patches import describe
    from qmri_bidsapp.estimators.spatial.training import TrainingOptions, check_checkpoint, train
    from qmri_bidsapp.estimators.spatial.trials import (
        PROTOCOLS,
        errors_of,
        estimate_by_network,
        phantom_errors,
        phantom_std,
        simulate,
    )

    _check(arguments, model, kind)
    standard = PROTOCOLS[model.name][STANDARD[model.name]]
    protocol = _protocol(kind, model, standard, arguments)
    shown = protocol or standard
    heads = load_heads(arguments.labels)
    training, held_out = heads[:-N_HELD_OUT], heads[-N_HELD_OUT:]
    label_maps = {"training": _sha256(training), "held out": _sha256(held_out)}
    first = None if arguments.start_from is None else kind(model, weights=arguments.start_from).fit(shown)
    options = TrainingOptions(
        n_iterations=N_ITERATIONS if arguments.iterations is None else arguments.iterations,
        seed=arguments.seed,
        start_from=None if first is None else first.sha256_,
    )
    identity = kind.identity(model, protocol)
    check_checkpoint(arguments.folder, identity, options, label_maps)
    trials = {snr: simulate(model, held_out, shown, snr, seed=VALIDATION_SEED) for snr in SNRS}

    validation: dict[str, float] = {}

    def validate(network: nn.Module) -> dict[str, float]:
        found = {snr: errors_of(estimate_by_network(network, model, trial), trial) for snr, trial in trials.items()}
        for snr, errors in found.items():
            validation.update({f"{key}_snr{snr}": value for key, value in errors._asdict().items()})
        return validation

    def say(row: dict[str, float]) -> None:
        print(" ".join(f"{key}={value:.4g}" for key, value in row.items()), flush=True)

    every = arguments.every or EVERY
    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        baseline = _baseline(model, trials)
        (arguments.folder / "baseline.json").write_text(json.dumps(baseline) + "\n")
        trained = train(
            lambda: kind.build(model, shown) if first is None else first.network(),
            model,
            training,
            options,
            identity=identity,
            label_maps=label_maps,
            folder=arguments.folder,
            protocol=protocol,
            validate=validate,
            every=every,
            report=say,
        )
        head, error_notes = _learn_errors(arguments, model, trained.network, heads, label_maps, protocol, every, say)
    except OSError as error:
        raise OutputError(f"{arguments.folder} cannot be written: {error}") from error
    notes = {
        "iterations": trained.iterations,
        "planned": trained.planned,
        "options": {key: value for key, value in asdict(options).items() if key != "n_iterations"},
        "n_label_maps": len(training),
        "label_maps_sha256": label_maps["training"],
        "distribution": describe(model, protocol),
        "validation": {
            "protocol": shown.to_dict(),
            "n_label_maps": N_HELD_OUT,
            "label_maps_sha256": label_maps["held out"],
            "least_squares": baseline,
            kind.name: validation or validate(trained.network),
        },
        "phantom": phantom_errors(trained.network, model, shown)._asdict(),
        "error_head": {**error_notes, "phantom_std": phantom_std(trained.network, head, model, shown)},
        "limits": LIMITS,
    }
    if first is not None:
        notes["started_from"] = {name: first.notes_[name] for name in ("iterations", "label_maps_sha256")}
    target = arguments.folder / f"{kind.name}-{model.name}"
    save_weights(target, join_head(trained.network, head), identity, notes)
    print(target)


def _learn_errors(
    arguments: argparse.Namespace,
    model: SignalModel,
    network: SliceNetwork,
    heads: list[npt.NDArray[np.uint8]],
    label_maps: dict[str, str],
    protocol: Acquisition | None,
    every: int,
    report: Callable[[dict[str, float]], None],
) -> tuple[ErrorHead, dict[str, Any]]:
    """Train, calibrate and try the head that tells the network's errors; return it and what the card says of it."""
    from qmri_bidsapp.estimators.spatial.error_training import HeadOptions, calibrate, coverage, train_head

    training, held_out = heads[:-N_HELD_OUT], heads[-N_HELD_OUT:]
    options = HeadOptions(seed=arguments.seed, **HEAD_SIZES)
    head = train_head(
        network,
        model,
        training,
        options,
        facts={"label_maps": label_maps},
        folder=arguments.folder,
        protocol=protocol,
        every=every,
        report=report,
    )
    calibrate(network, head, model, held_out[:N_CALIBRATION], options, protocol=protocol)
    notes = {
        "options": asdict(options),
        "n_label_maps": {"calibration": N_CALIBRATION, "coverage": N_HELD_OUT - N_CALIBRATION},
        "factor": dict(zip((parameter.name for parameter in model.parameters), head.factor.tolist(), strict=True)),
        "lowest_snr": float(head.lowest_snr),
        "coverage_of_95": coverage(network, head, model, held_out[N_CALIBRATION:], options, protocol=protocol),
    }
    return head, notes


def _check(arguments: argparse.Namespace, model: SignalModel, kind: type[SpatialNetwork]) -> None:
    """Raise UsageError if an option is missing or out of range, or the model has no virtual heads."""
    least = 1 if arguments.start_from is None else 0
    if (arguments.iterations is not None and arguments.iterations < least) or (
        arguments.every is not None and arguments.every < 1
    ):
        raise UsageError("--iterations (unless with --start-from) and --every must be at least 1.")
    if arguments.labels is None:
        raise UsageError(f"Estimator {kind.name} is trained on the label maps of --labels DIR: name one.")
    if model.name not in STANDARD:
        raise UsageError(f"Estimator {kind.name} is for {' and '.join(STANDARD)}, not for {model.name}.")


def load_heads(folder: Path) -> list[npt.NDArray[np.uint8]]:
    """Return the structures of all label maps of a folder, in the order of their names, cropped to the brain.

    Raises
    ------
    InputError
        If there are too few of them, or one holds other labels.
    """
    import nibabel as nib
    import numpy as np

    from qmri_bidsapp.estimators.spatial.virtual_heads import crop, structures_of
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


def _protocol(
    kind: type[SpatialNetwork], model: SignalModel, standard: Acquisition, arguments: argparse.Namespace
) -> Acquisition | None:
    """Return the protocol that was asked for, None for any."""
    from qmri_bidsapp.core.acquisition import InversionRecovery

    if arguments.signed and not isinstance(standard, InversionRecovery):
        raise UsageError(f"--signed is for inversion recoveries, and {model.name} is not measured by one.")
    if arguments.times is None and kind.is_general:
        if arguments.signed:
            raise UsageError(f"Estimator {kind.name} is trained for both signs unless --times names one protocol.")
        return None
    protocol = standard if arguments.times is None else type(standard)(tuple(arguments.times))  # type: ignore[call-arg]
    if isinstance(protocol, InversionRecovery) and arguments.signed:
        protocol = replace(protocol, signed=True)
    kind.check(model, protocol)
    return protocol


def _sha256(heads: list[npt.NDArray[np.uint8]]) -> str:
    """Return the content hash of heads in their order."""
    return hashlib.sha256(b"".join(head.tobytes() for head in heads)).hexdigest()


def _baseline(model: SignalModel, trials: dict[int, Any]) -> dict[str, dict[str, float]]:
    """Return the errors of voxelwise least squares on what the network is validated on."""
    from qmri_bidsapp.estimators.likelihood.varpro import VariableProjection
    from qmri_bidsapp.estimators.spatial.trials import errors_of, estimate_with

    def errors(trial: Any) -> Errors:
        return errors_of(estimate_with(VariableProjection(model).fit(trial.acquisition), trial), trial)

    return {f"varpro_snr{snr}": errors(trial)._asdict() for snr, trial in trials.items()}
