from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from qmri_bidsapp import registry
from qmri_bidsapp.core.acquisition import Diffusion, InversionRecovery, MultiEcho
from qmri_bidsapp.errors import ProtocolError, UsageError
from qmri_bidsapp.fitting import choice

AUTO = ("auto",)
AXES = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
HALF = 0.5**0.5
TABLE = (*AXES, (HALF, HALF, 0.0), (HALF, 0.0, HALF), (0.0, HALF, HALF))
ONE_SHELL = Diffusion((0.0,) + (1000.0,) * 6, ((0.0, 0.0, 0.0), *TABLE))
VECTORS = np.random.default_rng(0).standard_normal((30, 3))
SPHERE = tuple(map(tuple, (VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)).tolist()))
MANY_DIRECTIONS = Diffusion((0.0,) + (1000.0,) * 30 + (2000.0,) * 30, ((0.0, 0.0, 0.0), *SPHERE, *SPHERE))
LOW_B_VALUES = Diffusion(tuple(b for b in (0.0, 20.0, 50.0, 100.0, 200.0, 400.0, 800.0) for _ in TABLE), TABLE * 7)
TWO_SHELLS = Diffusion((0.0,) + (1000.0,) * 6 + (2500.0,) * 6, ((0.0, 0.0, 0.0), *TABLE, *TABLE))


def test_built_ins_are_registered_and_sorted() -> None:
    assert list(registry.load_models()) == sorted(registry.load_models())
    assert {"t1", "t2", "t2star", "smt", "tensor"} <= set(registry.load_models())
    assert {"nlls", "wls"} <= set(registry.load_estimators())
    for name in registry.load_models():
        assert registry.get_model(name).name == name
    for name in registry.load_estimators():
        assert registry.get_estimator(name).name == name


def test_unknown_names_list_what_is_known() -> None:
    with pytest.raises(UsageError, match=r"no model named 't3'; known: .*tensor"):
        registry.get_model("t3")
    with pytest.raises(UsageError, match=r"no estimator named 'magic'; known: .*nlls"):
        registry.get_estimator("magic")


def test_a_name_registered_twice_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [EntryPoint("t1", value, registry.MODEL_GROUP) for value in ("json:JSONDecoder", "json:JSONEncoder")]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    with pytest.raises(UsageError, match="Two packages register 't1'"):
        registry._load.__wrapped__(registry.MODEL_GROUP)


@pytest.mark.parametrize(
    ("kind", "acquisition", "expected"),
    [
        ("IRT1", InversionRecovery((0.1, 0.5, 2.0)), (("t1", "nlls"),)),
        ("MESE", MultiEcho((0.01, 0.02)), (("t2", "nlls"),)),
        ("MEGRE", MultiEcho((0.01, 0.02)), (("t2star", "nlls"),)),
        ("dwi", TWO_SHELLS, (("noddi", "nlls"), ("smt", "nlls"), ("tensor", "wls"))),
        ("dwi", MANY_DIRECTIONS, (("kurtosis", "wls"), ("noddi", "nlls"), ("smt", "nlls"), ("tensor", "wls"))),
        ("dwi", LOW_B_VALUES, (("ivim", "nlls"), ("tensor", "wls"))),
    ],
    ids=["t1", "t2", "t2star", "two-shells", "many-directions", "low-b-values"],
)
def test_auto_chooses_what_fits_the_series(kind, acquisition, expected) -> None:
    assert choice.choose(kind, acquisition, models=AUTO, estimators=AUTO)[0] == expected


def test_opt_in_models_are_fitted_only_when_named() -> None:
    timed = replace(TWO_SHELLS, small_delta=0.01, large_delta=0.03)
    automatic, notes = choice.choose("dwi", timed, models=AUTO, estimators=AUTO)
    assert not {"activeax", "zcd"} & set(dict(automatic))
    assert not [note for note in notes if "activeax" in note or "zcd" in note]
    named, _ = choice.choose("dwi", timed, models=("activeax", "zcd"), estimators=AUTO)
    assert named == (("activeax", "nlls"), ("zcd", "nlls"))
    both, _ = choice.choose("dwi", timed, models=(*AUTO, "zcd"), estimators=AUTO)
    assert dict(both) == {**dict(automatic), "zcd": "nlls"}
    with pytest.raises(ProtocolError, match="SmallDelta and BigDelta"):
        choice.choose("dwi", TWO_SHELLS, models=("activeax",), estimators=AUTO)


def test_auto_says_why_a_model_is_left_out() -> None:
    pairs, notes = choice.choose("dwi", ONE_SHELL, models=AUTO, estimators=AUTO)
    assert pairs == (("tensor", "wls"),)
    assert len(notes) == 4
    assert "ivim needs b = 0, at least 2 b-values up to 200" in notes[0]
    assert "kurtosis needs at least" in notes[1]
    assert "smt needs b = 0 and at least 2 shells" in notes[3]


def test_a_model_asked_for_by_name_must_fit() -> None:
    with pytest.raises(ProtocolError, match="at least 2 shells"):
        choice.choose("dwi", ONE_SHELL, models=("smt",), estimators=AUTO)


def test_models_of_other_series_are_passed_over() -> None:
    assert choice.choose("MESE", MultiEcho((0.01, 0.02)), models=("t1", "tensor"), estimators=AUTO) == (
        (),
        (),
    )


def test_an_estimator_may_be_named_for_one_model() -> None:
    pairs, _ = choice.choose("dwi", TWO_SHELLS, models=AUTO, estimators=("smt:nlls",))
    assert pairs == (("noddi", "nlls"), ("smt", "nlls"), ("tensor", "wls"))


@pytest.mark.parametrize(
    ("models", "estimators"),
    [
        (("t9",), AUTO),
        (("t2prep",), AUTO),
        (AUTO, ("magic",)),
        (("t1",), ("wls",)),
        (AUTO, ("t1:wls",)),
        (AUTO, ("t9:nlls",)),
        (("smt",), ("noddi:mix",)),
        (AUTO, ("activeax:mix",)),
    ],
    ids=[
        "model",
        "no-series",
        "estimator",
        "no-use",
        "no-use-for-this-model",
        "model-of-a-pair",
        "model-not-chosen",
        "model-by-request",
    ],
)
def test_choices_are_checked_before_the_work(models, estimators) -> None:
    with pytest.raises(UsageError):
        choice.check_choice(models, estimators)


def test_good_choices_pass() -> None:
    choice.check_choice(AUTO, AUTO)
    choice.check_choice(("t1", "tensor"), ("nlls", "tensor:wls"))
    choice.check_choice(("auto", "activeax"), ("activeax:mix",))
