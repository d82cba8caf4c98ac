"""``qmri train MODEL``: train learned estimators, voxelwise or spatial."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.cli.arguments import seed
from qmri_bidsapp.cli.exits import say_error
from qmri_bidsapp.cli.train import spatial as train_spatial
from qmri_bidsapp.config import PRIORS, check_device, find_device
from qmri_bidsapp.errors import InputError, InputMissingError, OutputError, UsageError, WeightsError

if TYPE_CHECKING:
    from qmri_bidsapp.bids.earlier_fits import FoundFit
    from qmri_bidsapp.core.acquisition import Acquisition
    from qmri_bidsapp.core.prior import Prior
    from qmri_bidsapp.estimators.learned.base import LearnedEstimator
    from qmri_bidsapp.models.base import SignalModel

VOXELWISE = ("mlp", "forest", "boosting", "polynomial", "wide-deep")
SPATIAL = ("rim", "resnet")
DESCRIPTION = """\
Train a learned estimator on simulated data, and write its weights for qmri-bids --weights FOLDER.

Voxelwise estimators are trained for each protocol of a data set or of earlier fits. qmri-bids also
trains them during a run, with fewer options. Spatial networks take whole slices. To continue an
interrupted training, repeat the command (boosting starts again). Separate several values by spaces,
and put such options after the folder.
"""
EPILOG = """\
Examples:
  qmri train smt weights --bids-dir bids --snr 10 50
  qmri train t2 weights --estimator forest --bids-derivatives out --prior mixed --range t2 0.01 3
  qmri train t1 networks --estimator resnet --labels DIR --times 0.05 0.2 0.5 0.9 1.6 2.8
  qmri-bids bids out2 participant --models smt --estimators smt:mlp --weights weights
"""


def add_parsers(commands: Any, models: Sequence[str]) -> None:
    """Add a command for each model to those of ``qmri train``; all have the same options."""
    options = _options()
    for model in models:
        commands.add_parser(
            model,
            usage="%(prog)s folder [options]",
            description=DESCRIPTION,
            epilog=EPILOG,
            parents=[options],
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=100),
        )


def _options() -> argparse.ArgumentParser:
    """Return a parser with the options of all models."""
    train = argparse.ArgumentParser(add_help=False)
    train.add_argument(
        "folder", type=Path, help="output folder; voxelwise estimators get a folder for each protocol in it"
    )
    train.add_argument(
        "--estimator",
        default="mlp",
        metavar="NAME",
        help=f"voxelwise: {', '.join(VOXELWISE)}; spatial, for T1 and T2: {', '.join(SPATIAL)} (default: %(default)s)",
    )
    train.add_argument("--seed", type=seed, default=0, metavar="N", help="random seed (default: %(default)s)")
    voxelwise = train.add_argument_group(
        "Voxelwise estimators", "At least one of --bids-dir and --bids-derivatives is required."
    )
    _add_voxelwise(voxelwise)
    spatial = train.add_argument_group("Spatial networks", "Trained on virtual heads made from label maps.")
    train_spatial.add_options(spatial)
    groups = {
        name: [action.dest for action in group._group_actions]
        for name, group in (("voxelwise", voxelwise), ("spatial", spatial))
    }
    train.set_defaults(run=run, **groups)
    return train


def _add_voxelwise(group: Any) -> None:
    """Add the options of voxelwise estimators; their default is None."""
    group.add_argument(
        "--bids-dir",
        type=Path,
        metavar="DIR",
        help="data set with the protocols to train for, instead of those of fits",
    )
    group.add_argument(
        "--bids-derivatives",
        type=Path,
        nargs="+",
        action="extend",
        metavar="DIR",
        help="output folders of qmri-bids with fits of the model, which provide the protocols and, for all priors but "
        "uniform, the parameters of healthy subjects; may be repeated",
    )
    group.add_argument(
        "--prior",
        choices=PRIORS,
        help="training distribution: parameters uniform within their bounds; the density of the fits of at least three "
        "subjects in --bids-derivatives, of all tissue (healthy) or of white or grey matter (healthy-wm, healthy-gm); "
        "or half uniform, half healthy (mixed) (default: uniform)",
    )
    group.add_argument(
        "--range",
        action="append",
        nargs=3,
        metavar=("NAME", "LOW", "HIGH"),
        help="range of a parameter in the uniform part, in its BIDS unit; 'qmri models' lists names and bounds; may be "
        "repeated (default: the bounds)",
    )
    group.add_argument(
        "--noise",
        choices=("gaussian", "rician"),
        help="distribution of the noise (default: rician, but gaussian for diffusion and signed series)",
    )
    group.add_argument(
        "--snr",
        type=float,
        nargs="+",
        metavar="SNR",
        help="signal-to-noise ratio of a voxel's reference signal (without diffusion weighting, or else the largest): "
        "one, or lowest and highest (default: 10 100)",
    )
    group.add_argument(
        "--optimiser",
        metavar="NAME",
        help="for mlp and wide-deep: adam, sgd, ftrl or proximal-adagrad (default: adam); for polynomial: exact or "
        "sdca (default: exact)",
    )
    group.add_argument("--device", metavar="auto|cpu|cuda[:n]", help="where to train (default: cpu)")


def run(arguments: argparse.Namespace) -> None:
    """Train a spatial network, or a voxelwise estimator for every distinct protocol.

    Existing weights are kept. If the training fails for a protocol, the failure is printed and the others continue.

    Raises
    ------
    UsageError
        If the estimator is not learned, or an option does not fit it or the model.
    InputMissingError
        If there is no fit or series of the model.
    InputError
        If some protocols were not trained.
    """
    from qmri_bidsapp.artifacts.weights import key_of
    from qmri_bidsapp.bids.earlier_fits import find_fits
    from qmri_bidsapp.estimators.learned.base import LearnedEstimator
    from qmri_bidsapp.estimators.spatial.base import SpatialNetwork
    from qmri_bidsapp.registry import get_estimator, get_model

    model, kind = get_model(arguments.what), get_estimator(arguments.estimator)
    if issubclass(kind, SpatialNetwork):
        _refuse(arguments, arguments.voxelwise, f"voxelwise estimators, and {kind.name} is a spatial network")
        train_spatial.run(arguments, model, kind)
        return
    if not issubclass(kind, LearnedEstimator):
        raise UsageError(f"Estimator {arguments.estimator} is not learned: there is nothing to train.")
    _check(arguments, model, kind)
    device = find_device(arguments.device or "cpu")
    options = kind.optimised_by(arguments.optimiser) if arguments.optimiser else {}
    fits = [fit for folder in arguments.bids_derivatives or () for fit in find_fits(folder, model)]
    prior = _prior(arguments, model, fits)
    pairs = (
        [(fit.acquisition, fit.subject) for fit in fits]
        if arguments.bids_dir is None
        else _protocols(arguments.bids_dir, model)
    )

    trained: dict[str, Acquisition] = {}

    def train(protocol: Acquisition) -> None:
        kind.check(model, protocol)
        noise = _noise(arguments, model, protocol)
        estimator = kind(model, device=device, prior=prior, noise=noise, **options)
        key = key_of(estimator.identity(protocol))
        if key in trained:
            _check_shared(trained[key], protocol, arguments.folder)
        else:
            _train(estimator, protocol, arguments)
            trained[key] = protocol

    _for_each(pairs, train)


def _check(arguments: argparse.Namespace, model: SignalModel, kind: type[LearnedEstimator]) -> None:
    """Raise UsageError if the options do not fit a voxelwise estimator or the model."""
    _refuse(arguments, arguments.spatial, f"spatial networks ({', '.join(SPATIAL)}), and {kind.name} is none")
    if not kind.supports(model):
        raise UsageError(f"Estimator {arguments.estimator} cannot be used with {model.name}; see `qmri models`.")
    if not arguments.bids_derivatives and arguments.bids_dir is None:
        raise UsageError(f"Estimator {kind.name} needs protocols: name --bids-dir DIR or --bids-derivatives DIR.")
    if not arguments.bids_derivatives and arguments.prior not in (None, "uniform"):
        raise UsageError(f"Prior {arguments.prior} is made from fits: name their folder with --bids-derivatives DIR.")
    if arguments.snr and len(arguments.snr) > 2:
        raise UsageError(f"--snr takes one or two numbers, got {len(arguments.snr)}.")
    check_device(arguments.device or "cpu")


def _refuse(arguments: argparse.Namespace, names: list[str], purpose: str) -> None:
    """Raise UsageError if any of some options was given."""
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name) is not None]
    if given:
        raise UsageError(f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} for {purpose}.")


def _for_each(pairs: list[tuple[Acquisition, str]], train: Callable[[Acquisition], None]) -> None:
    """Train for each distinct protocol of (protocol, subject) pairs, also if others fail.

    Raises
    ------
    InputError, UsageError
        If some were not trained. Causes are printed as they occur; with a single protocol, its error is raised.
    """
    subjects: dict[Acquisition, list[str]] = {}
    for protocol, subject in dict.fromkeys(pairs):
        subjects.setdefault(protocol, []).append(f"sub-{subject}")
    failures: list[InputError | UsageError] = []
    for protocol, names in subjects.items():
        try:
            train(protocol)
        except (InputError, UsageError) as error:
            if len(subjects) == 1:
                raise
            failures.append(error)
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            say_error("qmri", f"not trained for the protocol of {names[0]}{others}: {error}")
    if failures:
        kind = InputError if len(failures) < len(subjects) else type(failures[0])
        raise kind(f"{len(failures)} of {len(subjects)} protocols were not trained.")


def _check_shared(trained: Acquisition, protocol: Acquisition, folder: Path) -> None:
    """Raise UsageError if the weights for a protocol do not fit another that differs in gradient directions."""
    import numpy as np

    from qmri_bidsapp.core.acquisition import Diffusion
    from qmri_bidsapp.estimators.learned.weight_checks import check_turn

    if isinstance(trained, Diffusion) and isinstance(protocol, Diffusion):
        try:
            check_turn(folder, np.asarray(trained.direction), np.asarray(protocol.direction))
        except WeightsError as error:
            raise UsageError(f"{error} Name another folder, and a data set of its own.") from error


def _protocols(bids_dir: Path, model: SignalModel) -> list[tuple[Acquisition, str]]:
    """Return the protocol, as the model uses it, and the subject of each series that the model can be fitted to.

    Raises
    ------
    InputMissingError
        If there is none.
    """
    from qmri_bidsapp.bids.dataset import check_description, open_layout
    from qmri_bidsapp.bids.queries import find_inputs

    check_description(bids_dir)
    found = [
        (model.adapt(group.acquisition)[0], subject.subject)
        for subject in find_inputs(open_layout(bids_dir))
        for group in subject.groups
        if group.kind in model.bids_suffixes and group.acquisition is not None
    ]
    if not found:
        kinds = " or ".join(model.bids_suffixes) or "such"
        raise InputMissingError(
            f"{bids_dir} holds no {kinds} series, which model {model.name} needs; see `qmri models`."
        )
    return found


def _train(estimator: LearnedEstimator, protocol: Acquisition, arguments: argparse.Namespace) -> None:
    """Train and save, from a checkpoint if there is one, unless the folder holds equivalent weights.

    Weights are equivalent whatever version and device trained them, and if their directions differ by motion only. So
    no two folders hold weights for the same training and protocol, between which the app could not choose. Weights that
    this version cannot use are replaced.
    """
    from qmri_bidsapp.artifacts.weights import key_of

    folder, recipe = arguments.folder, estimator.recipe(protocol, arguments.seed)
    name = f"{estimator.model.name}-{estimator.name}"
    key = key_of({**estimator.identity(protocol), **recipe, "protocol": protocol.to_dict()})
    target = folder / f"{name}-{key[:12]}"
    for known in sorted(folder.glob(f"{name}-*")):
        try:
            notes = type(estimator)(estimator.model, weights=known).fit(protocol).notes_
        except WeightsError:
            continue
        if key_of({part: notes.get(part) for part in recipe}) == key_of(recipe):
            print(f"{known}: exists already")
            return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error}") from error

    def say(step: int, loss: float) -> None:
        print(f"\r{target.name}: step {step}, loss {loss:.4f} ", end="", flush=True)

    estimator.fit(protocol, seed=arguments.seed, progress=say, checkpoint=folder / f".{target.name}.checkpoint")
    estimator.save(target)
    print(f"\n{target}")
    for name, errors in estimator.notes_["validation"].items():
        rmse, coverage = errors["relative_rmse"], errors["coverage_of_95"]
        print(f"  {name}: error {rmse:.3f} of the prior's spread, 95 % intervals cover {100 * coverage:.1f} %")


def _prior(arguments: argparse.Namespace, model: SignalModel, fits: list[FoundFit]) -> Prior:
    """Return the requested training distribution."""
    from qmri_bidsapp.bids.earlier_fits import samples, tissue_of
    from qmri_bidsapp.core.prior import make_prior

    try:
        ranges = {name: (float(low), float(high)) for name, low, high in arguments.range or ()}
    except ValueError as error:
        raise UsageError(f"--range takes a name and two numbers: {error}.") from error
    name = arguments.prior or "uniform"
    if ranges and name not in ("uniform", "mixed"):
        raise UsageError(f"--range is for a uniform distribution; prior {name} has none.")
    known = [] if name == "uniform" else samples(fits, model, tissue_of(name))
    return make_prior(name, model.default_prior(ranges), known)


def _noise(arguments: argparse.Namespace, model: SignalModel, protocol: Acquisition) -> Any:
    """Return the requested noise."""
    from qmri_bidsapp.core.simulation import Noise
    from qmri_bidsapp.estimators.learned.examples import default_noise

    usual = default_noise(protocol)
    snr = arguments.snr or usual.snr
    return Noise(arguments.noise or usual.kind, (snr[0], snr[-1]))
