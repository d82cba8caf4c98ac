"""The methods text says what was fitted, and how."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qmri_bidsapp import registry
from qmri_bidsapp.config import Config
from qmri_bidsapp.models.relaxometry import SpinEchoT2
from qmri_bidsapp.registry import PREFERENCE, load_estimators, load_models
from qmri_bidsapp.reports.citation import resolve
from qmri_bidsapp.workflows.methods import bibliography, describe_methods


def of(models: tuple[str, ...] = ("auto",), estimators: tuple[str, ...] = ("auto",)) -> Config:
    options = {"models": models, "estimators": estimators}
    return Config(Path("/raw"), Path("/out"), "participant", "run", Path("/work"), **options)


def text(models: tuple[str, ...] = ("auto",), estimators: tuple[str, ...] = ("auto",)) -> str:
    return describe_methods(of(models, estimators))


def test_every_model_and_estimator_has_a_sentence() -> None:
    assert {name for name, model in load_models().items() if not model.methods} == set()
    # The text describes the default estimators for all fits.
    assert {name for name, estimator in load_estimators().items() if not estimator.methods} == set(PREFERENCE)


def test_no_estimator_inherits_its_sentence() -> None:
    sentences = [item.methods for item in (*load_models().values(), *load_estimators().values()) if item.methods]
    assert len(set(sentences)) == len(sentences)


def test_everything_that_is_cited_has_a_reference() -> None:
    models = {name: model for name, model in load_models().items() if model.bids_suffixes}
    config = of((*models,), (*load_estimators(),))
    everything = describe_methods(config)
    sentences = [item.methods for item in (*models.values(), *load_estimators().values())]
    assert all(sentence in everything for sentence in sentences)
    resolved, references = resolve(everything, bibliography(config))
    assert "[@" not in resolved
    assert any("axon diameter" in reference for reference in references)


def test_built_in_models_keep_their_order() -> None:
    found = text()
    titles = ["inversion-recovery", "multi-echo spin-echo", "pseudodiffusivity", "mean, axial and radial kurtosis"]
    assert sorted(titles, key=found.index) == titles


@pytest.mark.parametrize(
    ("models", "said"),
    [(("auto",), False), (("activeax",), True), (("auto", "activeax"), True), (("t1",), False)],
    ids=["auto", "alone", "beside-auto", "another"],
)
def test_opt_in_models_are_reported_when_named(models: tuple[str, ...], said: bool) -> None:
    found = text(models)
    assert ("ActiveAx" in found) == said
    assert "plug-ins" not in found


@pytest.mark.parametrize(
    ("step", "gone", "said"),
    [
        ("denoise", "denoised by MP-PCA", "not denoised"),
        ("noise-floor", "[@koay]", "not corrected for the noise floor"),
        ("unring", "[@gibbs]", "not cleared of Gibbs ringing"),
        ("align", "[@bmatrix]", "not aligned"),
        ("bias-field", "[@n4]", "not corrected for the bias field"),
        ("register", "by rigid registration", "without registration"),
    ],
)
def test_steps_left_out_are_not_claimed(step: str, gone: str, said: str) -> None:
    whole = describe_methods(of())
    found = describe_methods(replace(of(), skip=(step,)))
    assert gone in whole
    assert said not in whole
    assert gone not in found
    assert said in found
    assert "[@" not in resolve(found, bibliography(of()))[0]


class Plugin(SpinEchoT2):
    name = "t9"
    methods = "T9 was estimated [@nine]."
    bibliography = """
    @article{nine,
      author = {Nine N},
      year = {2009},
      title = {T9},
      journal = {Journal of Nines}
    }
    """


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the plug-in to the registered models."""
    known = {registry.MODEL_GROUP: {**load_models(), "t9": Plugin}, registry.ESTIMATOR_GROUP: load_estimators()}
    monkeypatch.setattr(registry, "_load", known.get)


def test_a_model_of_a_plug_in_is_described_and_cited(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    config = of()
    assert "T9 was estimated [@nine]." in describe_methods(config)
    _, references = resolve(describe_methods(config), bibliography(config))
    assert "Nine N (2009). T9. Journal of Nines" in references


def test_a_model_without_a_sentence_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plugin, "methods", "")
    register(monkeypatch)
    assert "Models of plug-ins were fitted as well: t9." in text(("t9",))


def test_estimators_are_said_when_named() -> None:
    assert "differential evolution" not in text()
    assert "differential evolution" in text(("noddi",), ("noddi:mix",))
