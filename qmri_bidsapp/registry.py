"""Models and estimators by name: built-ins and plug-ins, through the same entry points."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.errors import UsageError

if TYPE_CHECKING:
    from qmri_bidsapp.estimators.base import Estimator
    from qmri_bidsapp.models.base import SignalModel

MODEL_GROUP = "qmri_bidsapp.models"
ESTIMATOR_GROUP = "qmri_bidsapp.estimators"
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


def model_names() -> list[str]:
    """Return the names of all models, sorted; no model is imported."""
    return sorted({entry.name for entry in entry_points(group=MODEL_GROUP)})


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
