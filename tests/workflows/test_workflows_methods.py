"""The methods text says what was fitted, and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmri_bidsapp.config import Config
from qmri_bidsapp.registry import PREFERENCE, load_estimators, load_models
from qmri_bidsapp.reports.citation import resolve
from qmri_bidsapp.workflows.methods import _ESTIMATORS, _MODELS, describe_methods


def text(models: tuple[str, ...] = ("auto",), estimators: tuple[str, ...] = ("auto",)) -> str:
    options = {"models": models, "estimators": estimators}
    return describe_methods(Config(Path("/raw"), Path("/out"), "participant", "run", Path("/work"), **options))


def built_in(classes: dict[str, type]) -> set[str]:
    return {name for name, item in classes.items() if item.__module__.startswith("qmri_bidsapp.")}


def test_all_built_in_models_and_estimators_have_a_sentence() -> None:
    models = {name: model for name, model in load_models().items() if model.bids_suffixes}
    assert set(_MODELS) == built_in(models)
    assert set(_ESTIMATORS) == built_in(load_estimators()) - set(PREFERENCE)


def test_marks_are_in_the_bibliography() -> None:
    everything = text((*_MODELS,), (*_ESTIMATORS,))
    assert all(sentence in everything for sentence in (*_MODELS.values(), *_ESTIMATORS.values()))
    resolved, references = resolve(everything)
    assert "[@" not in resolved
    assert any("axon diameter" in reference for reference in references)


@pytest.mark.parametrize(
    ("models", "said"),
    [(("auto",), False), (("activeax",), True), (("auto", "activeax"), True), (("t1",), False)],
    ids=["auto", "alone", "beside-auto", "another"],
)
def test_opt_in_models_are_reported_when_named(models: tuple[str, ...], said: bool) -> None:
    found = text(models)
    assert ("ActiveAx" in found) == said
    assert "plug-ins" not in found


def test_a_model_of_a_plug_in_is_named() -> None:
    assert "Models of plug-ins were fitted as well: t9." in text(("t9",))


def test_estimators_are_said_when_named() -> None:
    assert "differential evolution" not in text()
    assert "differential evolution" in text(("noddi",), ("noddi:mix",))
