"""Models and estimators by name: built-ins and plug-ins, through the same entry points."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.errors import ProtocolError, UsageError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.models.base import SignalModel

MODEL_GROUP = "qmri_bidsapp.models"
ESTIMATOR_GROUP = "qmri_bidsapp.estimators"
AUTO = "auto"
#: Estimators in the order in which ``auto`` tries them: the closed form where there is one.
PREFERENCE = ("wls", "nlls")


@cache
def _load(group: str) -> dict[str, Any]:
    """Return name -> class of an entry-point group, sorted by name."""
    found: dict[str, Any] = {}
    for entry in sorted(entry_points(group=group), key=lambda item: (item.name, item.value)):
        if entry.name in found:
            raise UsageError(f"Two packages register {entry.name!r} under {group}; uninstall one of them.")
        found[entry.name] = entry.load()
    return found


def load_models() -> dict[str, type[SignalModel]]:
    """Return name -> model class, sorted by name."""
    return dict(_load(MODEL_GROUP))


def load_estimators() -> dict[str, type[Estimator]]:
    """Return name -> estimator class, sorted by name."""
    return dict(_load(ESTIMATOR_GROUP))


def get_model(name: str) -> SignalModel:
    """Return an instance of a model; UsageError if there is none of that name."""
    model: type[SignalModel] = _get(load_models(), name, "model")
    return model()


def get_estimator(name: str) -> type[Estimator]:
    """Return the class of an estimator; UsageError if there is none of that name."""
    estimator: type[Estimator] = _get(load_estimators(), name, "estimator")
    return estimator


def _get(known: dict[str, Any], name: str, what: str) -> Any:
    if name not in known:
        raise UsageError(f"There is no {what} named {name!r}; known: {', '.join(known)}.")
    return known[name]


def check_choice(models: tuple[str, ...], estimators: tuple[str, ...]) -> None:
    """Raise UsageError unless all names are known, have BIDS series, and every estimator fits a chosen model."""
    chosen = [get_model(name) for name in (load_models() if AUTO in models else models)]
    for model in chosen:
        if model.name in models and not model.bids_suffixes:
            raise UsageError(f"BIDS has no series for model {model.name}: it is for use from Python only.")
    for item in estimators:
        if item == AUTO:
            continue
        model_name, _, estimator_name = item.rpartition(":")
        estimator = get_estimator(estimator_name)
        candidates = [get_model(model_name)] if model_name else chosen
        if not any(estimator.supports(model) for model in candidates):
            names = ", ".join(model.name for model in candidates)
            raise UsageError(f"Estimator {estimator_name} cannot be used with {names}; see `qmri models`.")


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
        Why a model was left out.

    Raises
    ------
    ProtocolError
        If a model that was asked for by name cannot be fitted to this protocol.
    UsageError
        If a name is unknown.
    """
    pairs: list[tuple[str, str]] = []
    notes: list[str] = []
    for name in load_models() if AUTO in models else models:
        model = get_model(name)
        if kind not in model.bids_suffixes:
            continue
        try:
            model.check(model.adapt(acquisition)[0])
        except ProtocolError as error:
            if AUTO not in models:
                raise
            notes.append(str(error))
            continue
        pairs += [(name, estimator) for estimator in _estimators_for(model, estimators)]
    return tuple(pairs), tuple(notes)


def _estimators_for(model: SignalModel, chosen: tuple[str, ...]) -> list[str]:
    """Return the estimators to use with a model: named for it, else named for all, else the preferred one."""
    named = [item.rpartition(":") for item in chosen if item != AUTO]
    own = [estimator for name, _, estimator in named if name == model.name]
    general = [estimator for name, _, estimator in named if not name and get_estimator(estimator).supports(model)]
    if own or general:
        return own or general
    known = load_estimators()
    order = [
        *(name for name in PREFERENCE if name in known),
        *(name for name in known if name not in PREFERENCE),
    ]
    return [next(name for name in order if known[name].supports(model))]
