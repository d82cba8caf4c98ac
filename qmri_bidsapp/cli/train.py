"""``qmri train``: weights of learned estimators, for the protocols of a data set or for any."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.cli import train_spatial
from qmri_bidsapp.config import PRIORS, check_device, find_device
from qmri_bidsapp.errors import InputMissingError, ProtocolError, UsageError

if TYPE_CHECKING:
    from qmri_bidsapp.bids.fits import FoundFit
    from qmri_bidsapp.core.acquisition import Acquisition
    from qmri_bidsapp.core.prior import Prior
    from qmri_bidsapp.estimators.learned import LearnedEstimator
    from qmri_bidsapp.models.base import SignalModel


def add_parser(commands: Any) -> None:
    """Add ``train`` to the commands of ``qmri``."""
    train = commands.add_parser("train", help="train a learned estimator")
    train.add_argument("model", help="name of the model; 'qmri models' lists them")
    train.add_argument(
        "folder", type=Path, help="where the weights go; for voxelwise estimators one folder for each protocol"
    )
    train.add_argument("--estimator", default="mlp", metavar="NAME", help="learned estimator (default: %(default)s)")
    train.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    voxelwise = train.add_argument_group("voxelwise estimators")
    voxelwise.add_argument(
        "--bids-derivatives",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="output folders of qmri-bids in which the model was fitted: they tell the protocols and, for all priors "
        "but uniform, the parameters of healthy subjects",
    )
    voxelwise.add_argument(
        "--bids-dir", type=Path, metavar="DIR", help="data set whose protocols to train for, in place of those of fits"
    )
    voxelwise.add_argument(
        "--prior", choices=PRIORS, default="uniform", help="training distribution (default: %(default)s)"
    )
    voxelwise.add_argument(
        "--range",
        action="append",
        nargs=3,
        default=[],
        metavar=("NAME", "LOW", "HIGH"),
        help="range of a parameter in the uniform part, in its BIDS unit (default: its bounds); may be repeated",
    )
    voxelwise.add_argument(
        "--noise", choices=("gaussian", "rician"), help="default: rician, but gaussian for diffusion and signed series"
    )
    voxelwise.add_argument(
        "--snr", type=float, nargs="+", metavar="SNR", help="one signal-to-noise ratio, or lowest and highest"
    )
    voxelwise.add_argument(
        "--optimiser",
        metavar="NAME",
        help="adam, sgd, ftrl or proximal-adagrad; for polynomial exact or sdca (default: what works best)",
    )
    voxelwise.add_argument("--device", default="cpu", metavar="auto|cpu|cuda[:n]", help="default: %(default)s")
    train_spatial.add_options(train.add_argument_group("spatial networks (rim, resnet)"))
    train.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Train a spatial network, or a voxelwise estimator for every distinct protocol.

    What is there already is left as it is.

    Raises
    ------
    UsageError
        If the estimator is not learned, or an option does not suit the model.
    InputMissingError
        If there is no fit of the model.
    """
    check_device(arguments.device)

    from qmri_bidsapp.bids.fits import find_fits
    from qmri_bidsapp.estimators.learned import LearnedEstimator
    from qmri_bidsapp.estimators.spatial_network import SpatialNetwork
    from qmri_bidsapp.registry import get_estimator, get_model

    model, kind = get_model(arguments.model), get_estimator(arguments.estimator)
    if issubclass(kind, SpatialNetwork):
        train_spatial.run(arguments, model, kind)
        return
    if not issubclass(kind, LearnedEstimator):
        raise UsageError(f"Estimator {arguments.estimator} is not learned: there is nothing to train.")
    if not kind.supports(model):
        raise UsageError(f"Estimator {arguments.estimator} cannot be used with {model.name}; see `qmri models`.")
    if not arguments.bids_derivatives and arguments.bids_dir is None:
        raise UsageError(f"Estimator {kind.name} is trained for the protocols of --bids-dir or --bids-derivatives DIR.")
    if not arguments.bids_derivatives and arguments.prior != "uniform":
        raise UsageError(f"Prior {arguments.prior} is made from fits: name their folder with --bids-derivatives DIR.")
    options = kind.optimised_by(arguments.optimiser) if arguments.optimiser else {}
    fits = [fit for folder in arguments.bids_derivatives for fit in find_fits(folder, model)]
    prior = _prior(arguments, model, fits)
    found = [fit.acquisition for fit in fits] if arguments.bids_dir is None else _protocols(arguments.bids_dir, model)
    for protocol in dict.fromkeys(found):
        noise = _noise(arguments, model, protocol)
        estimator = kind(model, device=find_device(arguments.device), prior=prior, noise=noise, **options)
        _train(estimator, protocol, arguments.folder, arguments.seed)


def _protocols(bids_dir: Path, model: SignalModel) -> list[Acquisition]:
    """Return the protocols of a data set that a model can be fitted to, as the model uses them.

    Raises
    ------
    InputMissingError
        If there is none; with the reason where there are series of the right kind.
    """
    from qmri_bidsapp.bids.dataset import check_description, open_layout
    from qmri_bidsapp.bids.queries import find_inputs

    check_description(bids_dir)
    found, reason = [], "there is no such series"
    for subject in find_inputs(open_layout(bids_dir)):
        for group in subject.groups:
            if group.kind not in model.bids_suffixes or group.acquisition is None:
                continue
            protocol, _ = model.adapt(group.acquisition)
            try:
                model.check(protocol)
            except ProtocolError as error:
                reason = f"sub-{subject.subject}: {error}"
                continue
            found.append(protocol)
    if not found:
        kinds = " or ".join(model.bids_suffixes) or "such"
        raise InputMissingError(f"{bids_dir} holds no {kinds} series for model {model.name}: {reason}.")
    return found


def _train(estimator: LearnedEstimator, protocol: Acquisition, folder: Path, seed: int) -> None:
    """Train and save, going on from a checkpoint where there is one."""
    key = estimator.cache_key(protocol, seed)
    target = folder / f"{estimator.model.name}-{estimator.name}-{key[:12]}"
    if target.exists():
        print(f"{target}: there already")
        return
    folder.mkdir(parents=True, exist_ok=True)

    def say(step: int, loss: float) -> None:
        print(f"\r{target.name}: step {step}, loss {loss:.4f} ", end="", flush=True)

    estimator.fit(protocol, seed=seed, progress=say, checkpoint=folder / f".{target.name}.checkpoint")
    estimator.save(target)
    print(f"\n{target}")
    for name, errors in estimator.notes_["validation"].items():
        rmse, coverage = errors["relative_rmse"], errors["coverage_of_95"]
        print(f"  {name}: error {rmse:.3f} of the prior's spread, 95 % intervals cover {100 * coverage:.1f} %")


def _prior(arguments: argparse.Namespace, model: SignalModel, fits: list[FoundFit]) -> Prior:
    """Return the training distribution that was asked for."""
    from qmri_bidsapp.bids.fits import samples, tissue_of
    from qmri_bidsapp.core.prior import make_prior

    try:
        ranges = {name: (float(low), float(high)) for name, low, high in arguments.range}
    except ValueError as error:
        raise UsageError(f"--range takes a name and two numbers: {error}.") from error
    if ranges and arguments.prior not in ("uniform", "mixed"):
        raise UsageError(f"--range is for a uniform distribution; prior {arguments.prior} has none.")
    known = [] if arguments.prior == "uniform" else samples(fits, model, tissue_of(arguments.prior))
    return make_prior(arguments.prior, model.default_prior(ranges), known)


def _noise(arguments: argparse.Namespace, model: SignalModel, protocol: Acquisition) -> Any:
    """Return the noise that was asked for."""
    from qmri_bidsapp.core.simulation import Noise
    from qmri_bidsapp.estimators.learned import default_noise

    usual = default_noise(model, protocol)
    snr = arguments.snr or usual.snr
    if len(snr) > 2:
        raise UsageError(f"--snr takes one or two numbers, got {len(snr)}.")
    return Noise(arguments.noise or usual.kind, (snr[0], snr[-1]))
