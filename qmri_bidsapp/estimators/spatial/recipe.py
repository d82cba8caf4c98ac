"""Recipe for the weights of a spatial network: train, learn its errors, validate on other heads, write the card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import nn

from qmri_bidsapp.artifacts.weights import save_weights
from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.errors import OutputError
from qmri_bidsapp.estimators.likelihood.varpro import VariableProjection
from qmri_bidsapp.estimators.spatial.base import SpatialNetwork
from qmri_bidsapp.estimators.spatial.error_head import ErrorHead, SliceNetwork, join_head
from qmri_bidsapp.estimators.spatial.error_training import HeadOptions, calibrate, coverage, train_head
from qmri_bidsapp.estimators.spatial.patches import describe
from qmri_bidsapp.estimators.spatial.training import TrainingOptions, check_checkpoint, train_on_heads
from qmri_bidsapp.estimators.spatial.trials import (
    PROTOCOLS,
    Trial,
    errors_of,
    estimate_by_network,
    estimate_with,
    phantom_errors,
    phantom_std,
    simulate_trial,
)
from qmri_bidsapp.models.base import SignalModel

#: Heads kept for validation: the last ones.
N_HELD_OUT = 5
#: Signal-to-noise ratios of the validation, and its seed.
SNRS = (10, 50)
VALIDATION_SEED = 2021
#: Of the heads kept for validation, those that calibrate the standard deviations. Coverage is measured on the others.
N_CALIBRATION = 2
#: Iterations of the training of standard deviations, and batches of its calibration and validation.
HEAD_SIZES = {"n_iterations": 1000, "n_calibration": 80, "n_validation": 20}
#: Protocol of `trials.PROTOCOLS` that each model is validated on.
STANDARD = {"t1": "31", "t2": "6"}
#: Limits stated on the card of every spatial network.
LIMITS = (
    "Heads at 3 T with values as in the distribution; others, and other organs, were met only as the broad share.",
    "Structures smaller than a few voxels lose contrast; see `qmri evaluate relaxometry`.",
    "Standard deviations are for voxels like those of the training, with no sign where one is not.",
)

Head = npt.NDArray[np.uint8]
Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Recipe:
    """What to train, and for how long.

    Attributes
    ----------
    kind : type of SpatialNetwork
    model : SignalModel
        With a protocol in `STANDARD`.
    protocol : Acquisition or None
        The only protocol to train for; None for any.
    start_from : Path or None
        Folder with the weights to begin with; None for random ones.
    n_iterations : int
        Of the network, including those of an earlier run that is continued.
    every : int
        Iterations between checkpoints.
    seed : int
    """

    kind: type[SpatialNetwork]
    model: SignalModel
    protocol: Acquisition | None
    start_from: Path | None
    n_iterations: int
    every: int
    seed: int

    @property
    def shown(self) -> Acquisition:
        """Protocol of the validation."""
        return self.protocol or standard_protocol(self.model)

    @property
    def identity(self) -> dict[str, Any]:
        """What the weights are for; see `SpatialNetwork.identity`."""
        return self.kind.identity(self.model, self.protocol)


def standard_protocol(model: SignalModel) -> Acquisition:
    """Return the protocol that networks of a model are validated on (Sabidussi et al. 2021, Table 2)."""
    return PROTOCOLS[model.name][STANDARD[model.name]]


class _Heads(NamedTuple):
    """Heads to train on, and those held out."""

    training: Sequence[Head]
    held_out: Sequence[Head]

    def sha256(self) -> dict[str, str]:
        """Return the content hash of each set, in its order."""
        named = {"training": self.training, "held out": self.held_out}
        return {
            name: hashlib.sha256(b"".join(head.tobytes() for head in heads)).hexdigest()
            for name, heads in named.items()
        }


def make_weights(recipe: Recipe, heads: Sequence[Head], folder: Path, report: Report) -> Path:
    """Train a network, or continue from the checkpoint in the folder, and write its weights.

    Parameters
    ----------
    recipe : Recipe
    heads : sequence of ndarray
        Structures of more than `N_HELD_OUT` heads, cropped to the brain; the last `N_HELD_OUT` are held out.
    folder : Path
        Receives checkpoints, a log, the errors of least squares (``baseline.json``) and the folder of the weights.
    report : callable
        Receives each row of the log.

    Returns
    -------
    Path
        Folder of the weights.

    Raises
    ------
    WeightsError
        If the checkpoint belongs to another training, or the weights to start from do not fit; nothing is written.
    UsageError
        If the loss is not finite.
    OutputError
        If the folder cannot be written.
    """
    split = _Heads(heads[:-N_HELD_OUT], heads[-N_HELD_OUT:])
    first = None
    if recipe.start_from is not None:
        first = recipe.kind(recipe.model, weights=recipe.start_from).fit(recipe.shown)
    options = TrainingOptions(
        n_iterations=recipe.n_iterations, seed=recipe.seed, start_from=None if first is None else first.sha256_
    )
    label_maps = split.sha256()
    check_checkpoint(folder, recipe.identity, options, label_maps)
    validation = _Validation(recipe, split.held_out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "baseline.json").write_text(json.dumps(validation.baseline) + "\n")
        trained = train_on_heads(
            lambda: recipe.kind.build(recipe.model, recipe.shown) if first is None else first.network(),
            recipe.model,
            split.training,
            options,
            identity=recipe.identity,
            label_maps=label_maps,
            folder=folder,
            protocol=recipe.protocol,
            validate=validation,
            every=recipe.every,
            report=report,
        )
        head, error_notes = _learn_errors(recipe, trained.network, split, folder, report)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error}") from error
    notes = {
        "iterations": trained.iterations,
        "planned": trained.planned,
        "options": {key: value for key, value in asdict(options).items() if key != "n_iterations"},
        "n_label_maps": len(split.training),
        "label_maps_sha256": label_maps["training"],
        "distribution": describe(recipe.model, recipe.protocol),
        "validation": {
            "protocol": recipe.shown.to_dict(),
            "n_label_maps": N_HELD_OUT,
            "label_maps_sha256": label_maps["held out"],
            "least_squares": validation.baseline,
            recipe.kind.name: validation.last or validation(trained.network),
        },
        "phantom": phantom_errors(trained.network, recipe.model, recipe.shown)._asdict(),
        "error_head": error_notes,
        "limits": LIMITS,
    }
    if first is not None:
        notes["started_from"] = {name: first.notes_[name] for name in ("iterations", "label_maps_sha256")}
    target = folder / f"{recipe.kind.name}-{recipe.model.name}"
    save_weights(target, join_head(trained.network, head), recipe.identity, notes)
    return target


class _Validation:
    """Errors on simulated measurements of held-out heads, of least squares and of a network.

    Attributes
    ----------
    baseline : dict
        SNR -> errors of voxelwise least squares.
    last : dict
        Errors of the network that was validated last; empty before.
    """

    def __init__(self, recipe: Recipe, held_out: Sequence[Head]) -> None:
        self._model = recipe.model
        self._trials = {
            snr: simulate_trial(recipe.model, held_out, recipe.shown, snr, seed=VALIDATION_SEED) for snr in SNRS
        }
        self.baseline = {f"varpro_snr{snr}": self._least_squares(trial) for snr, trial in self._trials.items()}
        self.last: dict[str, float] = {}

    def _least_squares(self, trial: Trial) -> dict[str, float]:
        estimator = VariableProjection(self._model).fit(trial.acquisition)
        return errors_of(estimate_with(estimator, trial), trial)._asdict()

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Return the errors of a network at each SNR."""
        self.last = {}
        for snr, trial in self._trials.items():
            errors = errors_of(estimate_by_network(network, self._model, trial), trial)
            self.last |= {f"{key}_snr{snr}": value for key, value in errors._asdict().items()}
        return self.last


def _learn_errors(
    recipe: Recipe, network: SliceNetwork, split: _Heads, folder: Path, report: Report
) -> tuple[ErrorHead, dict[str, Any]]:
    """Train, calibrate and validate the head that estimates the network's errors; return it with its card entry."""
    options = HeadOptions(seed=recipe.seed, **HEAD_SIZES)
    model, protocol = recipe.model, recipe.protocol
    head = train_head(
        network,
        model,
        split.training,
        options,
        facts={"label_maps": split.sha256()},
        folder=folder,
        protocol=protocol,
        every=recipe.every,
        report=report,
    )
    calibrate(network, head, model, split.held_out[:N_CALIBRATION], options, protocol=protocol)
    notes = {
        "options": asdict(options),
        "n_label_maps": {"calibration": N_CALIBRATION, "coverage": N_HELD_OUT - N_CALIBRATION},
        "factor": dict(zip((parameter.name for parameter in model.parameters), head.factor.tolist(), strict=True)),
        "lowest_snr": float(head.lowest_snr),
        "coverage_of_95": coverage(network, head, model, split.held_out[N_CALIBRATION:], options, protocol=protocol),
        "phantom_std": phantom_std(network, head, model, recipe.shown),
    }
    return head, notes
