"""Choose which models and estimators to fit to a series."""

from __future__ import annotations

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.errors import ProtocolError, UsageError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.registry import PREFERENCE, get_estimator, get_model, load_estimators, load_models

AUTO = "auto"
CLEARED = "the app denoises diffusion series and removes their noise floor, so that their noise is not Rician"


def named_models(models: tuple[str, ...]) -> list[str]:
    """Return the names of the chosen models; ``auto`` stands for all but opt-in models."""
    if AUTO not in models:
        return list(models)
    return [name for name, model in load_models().items() if name in models or not model.opt_in]


def check_choice(models: tuple[str, ...], estimators: tuple[str, ...]) -> None:
    """Raise UsageError unless all names are known, have BIDS series, and every estimator is for a chosen model."""
    chosen = {name: get_model(name) for name in named_models(models)}
    for model in chosen.values():
        if model.name in models and not model.bids_suffixes:
            raise UsageError(f"BIDS has no series for model {model.name}: it is for use from Python only.")
    for item in estimators:
        if item == AUTO:
            continue
        model_name, _, estimator_name = item.rpartition(":")
        estimator = get_estimator(estimator_name)
        candidates = [get_model(model_name)] if model_name else list(chosen.values())
        if model_name and model_name not in chosen:
            raise UsageError(f"{item} has no effect: model {model_name} is not fitted; name it with --models as well.")
        supported = [model for model in candidates if estimator.supports(model)]
        names = ", ".join(model.name for model in candidates)
        if not supported:
            raise UsageError(f"Estimator {estimator_name} cannot be used with {names}; see `qmri models`.")
        if all(_needs_the_noise_floor(estimator, model) for model in supported):
            raise UsageError(f"Estimator {estimator_name} cannot be used with {names} in the app: {CLEARED}.")


def choose(
    kind: str, acquisition: Acquisition, *, models: tuple[str, ...], estimators: tuple[str, ...]
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Choose what to fit to a series.

    Parameters
    ----------
    kind : str
        BIDS suffix of the series.
    acquisition : Acquisition
        Its protocol.
    models : tuple of str
        ``("auto",)`` or names.
    estimators : tuple of str
        ``("auto",)``, or names, each for all models that it supports or, as ``model:estimator``, for one.

    Returns
    -------
    pairs : tuple of (str, str)
        Model and estimator.
    notes : tuple of str
        Why a model, or an estimator for one, was left out.

    Raises
    ------
    ProtocolError
        If a model that was asked for by name cannot be fitted to this protocol, or an estimator named for it not used.
    UsageError
        If a name is unknown.
    """
    pairs: list[tuple[str, str]] = []
    notes: list[str] = []
    for name in named_models(models):
        model = get_model(name)
        if kind not in model.bids_suffixes:
            continue
        protocol, _ = model.adapt(acquisition)
        try:
            model.check(protocol)
        except ProtocolError as error:
            if AUTO not in models:
                raise
            notes.append(str(error))
            continue
        chosen, reasons = _estimators_for(model, protocol, estimators)
        pairs += [(name, estimator) for estimator in chosen]
        notes += reasons
    return tuple(pairs), tuple(notes)


def _estimators_for(model: SignalModel, protocol: Acquisition, chosen: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the estimators of a model: those named for it, else those named for all, else the preferred; and notes."""
    named = [item.rpartition(":") for item in chosen if item != AUTO]
    own = [estimator for name, _, estimator in named if name == model.name]
    for estimator in own:
        if reason := _objection(get_estimator(estimator), model, protocol):
            raise ProtocolError(f"{model.name} cannot be fitted by {estimator}: {reason}")
    if own:
        return own, []
    supported = [estimator for name, _, estimator in named if not name and get_estimator(estimator).supports(model)]
    objections = {estimator: _objection(get_estimator(estimator), model, protocol) for estimator in supported}
    notes = [f"{model.name} is not fitted by {key}: {reason}" for key, reason in objections.items() if reason]
    general = [estimator for estimator, reason in objections.items() if not reason]
    if general:
        return general, notes
    return [preferred_estimator(model)], notes


def preferred_estimator(model: SignalModel) -> str:
    """Return the name of the estimator that ``auto`` uses for a model."""
    known = load_estimators()
    order = [*(name for name in PREFERENCE if name in known), *(name for name in known if name not in PREFERENCE)]
    return next(name for name in order if known[name].supports(model))


def _objection(estimator: type[Estimator], model: SignalModel, protocol: Acquisition) -> str:
    """Return why an estimator that supports a model cannot be used with a protocol, if so."""
    if _needs_the_noise_floor(estimator, model):
        return f"{CLEARED}."
    try:
        estimator.check(model, protocol)
    except ProtocolError as error:
        return str(error)
    return ""


def _needs_the_noise_floor(estimator: type[Estimator], model: SignalModel) -> bool:
    """Return whether an estimator needs the noise floor that the app removes from the series of a model."""
    return estimator.needs_raw_magnitudes and model.acquisition_type.noise_floor_removed
