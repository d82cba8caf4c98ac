"""The methods text says what was fitted, and how."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qmri_bidsapp import registry
from qmri_bidsapp.bids.inputs import InputGroup, SubjectInputs
from qmri_bidsapp.config import Config
from qmri_bidsapp.core.acquisition import MultiEcho
from qmri_bidsapp.evaluation.standards import standard
from qmri_bidsapp.models.relaxometry import SpinEchoT2
from qmri_bidsapp.registry import PREFERENCE, load_estimators, load_models
from qmri_bidsapp.reports.citation import resolve
from qmri_bidsapp.workflows.methods import bibliography, describe_methods
from qmri_bidsapp.workflows.plan import SubjectPlan, plan


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


def test_the_method_of_denoising_is_reported() -> None:
    found = describe_methods(replace(of(), denoise="patch2self"))
    assert "denoised by Patch2Self [@patch2self] and corrected" in found
    assert "denoised by MP-PCA" not in found
    assert "[@" not in resolve(found, bibliography(of()))[0]


def plans_of(config: Config, *kinds: str) -> tuple[SubjectPlan, ...]:
    files = {kind: (f"/raw/sub-01_{kind}.nii",) for kind in ("T1w", "MESE", "MEGRE", "dwi")}
    acquisitions = {
        "MESE": standard("t2"),
        "MEGRE": MultiEcho((0.004, 0.012, 0.02, 0.03)),
        "dwi": standard("noddi"),
        "T1w": None,
    }
    groups = tuple(InputGroup(kind, "01", (), files[kind], acquisitions[kind]) for kind in kinds)
    return plan(config, (SubjectInputs("01", groups),))


@pytest.mark.parametrize(
    ("kinds", "said", "unsaid"),
    [
        (("MESE",), ("T2 was estimated", "The mask came"), ("T2*", "iffusion", "MTsat", "T1-weighted", "[@jenkinson]")),
        (("T1w", "MEGRE"), ("T2*", "[@robex]"), ("[@mppca]", "multi-echo spin-echo", "[@otsu]")),
        (("dwi",), ("[@mppca]", "he diffusion tensor"), ("relaxometry series", "pseudodiffusivity", "variable flip")),
        (("T1w",), ("[@robex]",), ("[@marquardt]", "[@otsu]", "transferred")),
    ],
    ids=["t2", "t2star-with-t1w", "diffusion", "t1w-alone"],
)
def test_only_what_was_done_is_claimed(kinds: tuple[str, ...], said: tuple[str, ...], unsaid: tuple[str, ...]) -> None:
    config = of()
    plans = plans_of(config, *kinds)
    found = describe_methods(config, plans)
    assert not [part for part in said if part not in found]
    assert not [part for part in unsaid if part in found]
    assert "[@" not in resolve(found, bibliography(config, plans))[0]


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
