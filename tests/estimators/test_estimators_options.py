"""Options of estimators: they act; senseless values and misspelt names are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qmri_bidsapp.core.acquisition import MultiEcho
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.estimators.likelihood.log_linear import WeightedLinearLeastSquares
from qmri_bidsapp.estimators.likelihood.mix import Mix
from qmri_bidsapp.evaluation.standards import simulate, standard
from qmri_bidsapp.fitting.series import make_estimator, options_of
from qmri_bidsapp.registry import get_estimator, get_model

ECHOES = MultiEcho((0.02, 0.04, 0.06, 0.08, 0.1))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nlls", ["max_iterations"]),
        ("varpro", ["max_iterations"]),
        ("wls", ["n_rounds"]),
        ("reduced", ["max_iterations", "prior_width"]),
        ("mix", ["max_iterations", "generations", "n_polished"]),
        ("map", ["max_iterations", "weight"]),
        ("grid", []),
        ("mlp", ["training", "hidden", "activation", "noise", "n_combinations"]),
    ],
)
def test_options_are_those_of_the_constructor_and_of_what_it_passes_on(name: str, expected: list[str]) -> None:
    assert options_of(get_estimator(name)) == expected


def test_a_misspelt_option_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UsageError, match="nlls has no option max_iteration; options: max_iterations"):
        make_estimator("t2", "nlls", options={"max_iteration": 5})


@pytest.mark.parametrize("name", ["nlls", "interior-point", "rician", "reduced"])
def test_a_search_of_one_step_does_not_converge(name: str) -> None:
    signals = 100 * np.exp(-np.array(ECHOES.echo_time) / 0.071) + np.random.default_rng(0).normal(0, 5, (50, 5))
    short, full = (
        make_estimator("t2", name, options=options).fit(ECHOES).predict(signals, noise_std=5.0)
        for options in ({"max_iterations": 1}, {})
    )
    assert (full.status == Status.OK).all()
    assert (short.status == Status.NOT_CONVERGED).any()


def test_a_narrow_prior_pulls_estimates_to_the_middle() -> None:
    model = get_model("t2")
    middle = sum(model.parameters[1].bounds) / 2
    signals = 100 * np.exp(-np.array([ECHOES.echo_time]) / 0.08)
    wide, narrow = (
        make_estimator(model, "reduced", options={"prior_width": width}).fit(ECHOES).predict(signals, noise_std=20.0)
        for width in (1.0, 1e-3)
    )
    assert abs(narrow.estimate[0, 1] - middle) < 0.1 * abs(wide.estimate[0, 1] - middle)


def test_rounds_of_weighting_act() -> None:
    acquisition = standard("tensor")
    signals = simulate(get_model("tensor"), acquisition, 20)
    once, often = (
        WeightedLinearLeastSquares(get_model("tensor"), n_rounds=n).fit(acquisition).predict(signals) for n in (1, 3)
    )
    assert (once.estimate != often.estimate).any()


def test_the_global_search_has_as_many_starts_as_are_polished() -> None:
    acquisition, _ = get_model("ivim").adapt(standard("ivim"))
    fitted = Mix(get_model("ivim"), generations=2, n_polished=3).fit(acquisition)
    target = torch.rand(4, acquisition.n_measurements)
    assert fitted.search.starts(target).shape[:2] == (3, 4)
    longer = Mix(get_model("ivim"), generations=4, n_polished=3).fit(acquisition)
    assert (longer.search.starts(target) != fitted.search.starts(target)).any()


@pytest.mark.parametrize(
    ("model", "name", "options", "cause"),
    [
        ("t2", "nlls", {"max_iterations": 0}, "at least one step"),
        ("t2", "reduced", {"prior_width": 0.0}, "positive width"),
        ("ivim", "mix", {"generations": 0}, "at least one generation"),
        ("t1", "map", {"weight": -1.0}, "positive weight"),
        ("tensor", "wls", {"n_rounds": 0}, "at least one round"),
    ],
)
def test_senseless_values_are_refused(model: str, name: str, options: dict[str, Any], cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        make_estimator(model, name, options=options)
