from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from qmri_bidsapp.group.regression import MIN_DEGREES, code_covariates, correct, regress

N = 40


@pytest.fixture
def cohort():
    """Return a table of two measures, and motion."""
    rng = np.random.default_rng(0)
    motion = pd.Series(rng.gamma(2.0, 0.4, N))
    values = 2.0 - 0.3 * motion.to_numpy()[:, None] + 0.1 * rng.standard_normal((N, 2))
    return pd.DataFrame(values, columns=["a", "b"]), motion


def test_values_are_adjusted_along_the_slope(cohort):
    measures, motion = cohort
    found = correct(measures, motion, np.arange(N))
    assert found.reference == motion.median()
    slope = found.lines["a"].slope
    np.testing.assert_allclose(found.adjusted["a"], measures["a"] - slope * (motion - motion.median()))
    at_zero = correct(measures, motion, np.arange(N), reference=0.0).adjusted["a"]
    np.testing.assert_allclose(at_zero, found.adjusted["a"] - slope * motion.median())


def test_units_and_order_change_nothing(cohort):
    measures, motion = cohort
    found = correct(measures, motion, np.arange(N)).slopes
    order = np.random.default_rng(1).permutation(N)
    small = correct(1e-9 * measures.iloc[order], motion.iloc[order], np.arange(N)[order]).slopes
    np.testing.assert_allclose(1e9 * small["slope"].astype(float), found["slope"].astype(float), rtol=1e-5)
    np.testing.assert_allclose(small["p_value"].astype(float), found["p_value"].astype(float), rtol=1e-4)


def test_repeating_every_session_tells_nothing_new(cohort):
    measures, motion = cohort
    once = correct(measures, motion, np.arange(N)).lines["a"]
    twice = correct(pd.concat([measures] * 2), pd.concat([motion] * 2), np.tile(np.arange(N), 2)).lines["a"]
    assert twice.standard_error == pytest.approx(once.standard_error, rel=1e-3)
    assert (twice.degrees, twice.n, twice.n_participants) == (once.degrees, 2 * N, N)


def test_missing_values_do_not_count(cohort):
    measures, motion = cohort
    measures.iloc[0, 0] = np.nan
    motion.iloc[1] = np.nan
    age = pd.DataFrame({"age": np.linspace(20, 60, N)})
    age.iloc[2, 0] = np.nan
    found = correct(measures, motion, np.arange(N), age)
    rows = found.slopes.set_index("measure")
    assert list(rows["n"]) == [N - 3, N - 2]
    assert rows.loc["a", "note"] == "1 rows without a known age are left out"
    assert rows.loc["a", "covariates"] == "age"
    assert list(found.adjusted["a"].isna()[:3]) == [True, True, False]


def test_the_spread_is_that_of_the_rows_that_count(cohort):
    measures, motion = cohort
    more = pd.concat([measures, measures.iloc[:1].sample(2 * N, replace=True)], ignore_index=True)
    found = correct(more, motion.reindex(more.index), np.arange(3 * N)).lines["a"]
    assert found == correct(measures, motion, np.arange(N)).lines["a"]
    assert found.spread == pytest.approx(stats.median_abs_deviation(measures["a"], scale="normal"))


def test_covariates_that_tell_nothing_are_left_out(cohort):
    measures, motion = cohort
    rng = np.random.default_rng(2)
    sex = rng.choice(["F", "M"], N)
    table = pd.DataFrame({"age": 30.0, "sex": sex, "site": np.where(sex == "F", "x", "y"), "empty": [None] * N})
    found = correct(measures, motion, np.arange(N), table)
    assert found.slopes["covariates"].iloc[0] == "sex"
    notes = "age is constant and is left out; empty is constant and is left out; "
    notes += "site is collinear with sex and is left out"
    assert found.slopes["note"].iloc[0] == notes
    alone = correct(measures, motion, np.arange(N), table[["sex"]])
    assert found.lines["a"] == alone.lines["a"]
    assert found.lines["a"].degrees == N - 3


def test_the_only_participant_of_a_site_tells_nothing(cohort):
    measures, motion = cohort
    site = pd.DataFrame({"site": ["only", *["other"] * (N - 1)]})
    measures.iloc[0] = 1e3
    found = correct(measures, motion, np.arange(N), site).lines["a"]
    rest = correct(measures[1:], motion[1:], np.arange(N - 1)).lines["a"]
    assert found.degrees == rest.degrees
    assert found.slope == pytest.approx(rest.slope, rel=0.05)
    assert found.standard_error == pytest.approx(rest.standard_error, rel=0.1)


def test_categories():
    table = pd.DataFrame({"age": [20.0, 30.0, np.nan], "site": ["b", "a", None], "sex": ["F", "F", "F"]})
    coded, used = code_covariates(table)
    assert used == ["age", "site"]
    assert code_covariates(pd.DataFrame({"site": list("abca")}))[1] == ["site", "site"]
    assert list(coded) == ["age", "site b"]
    np.testing.assert_array_equal(coded.to_numpy(), [[-5, 1], [5, 0], [np.nan, np.nan]])


NONE = np.zeros((N, 0))
ONES = np.ones(N)
RISING = np.linspace(0, 1, N)
ONE_MOVES = 2.0 * (np.arange(N) == 3)
SITES = np.arange(N) % 2 / 10
NOISE = np.random.default_rng(3).standard_normal(N)


@pytest.mark.parametrize(
    ("values", "motion", "covariates", "participants", "cause"),
    [
        (NOISE, ONES, NONE, np.arange(N), "all 40 motion scores are equal"),
        (NOISE, RISING, RISING[:, None] * 3, np.arange(N), "linear combination of the covariates"),
        (np.where(RISING < 0.7, 1, NOISE), RISING, NONE, np.arange(N), "more than half of the values are equal"),
        (RISING, RISING**2, RISING[:, None], np.arange(N), "no spread is left"),
        (2 + 3 * RISING, RISING, NONE, np.arange(N), "no spread is left"),
        (NOISE, RISING, np.eye(N)[:, :35], np.arange(N), "40 participants for 37 coefficients; at least 45 are needed"),
        (NOISE, RISING, NONE, np.arange(N) % (MIN_DEGREES + 1), "9 participants for 2 coefficients; at least 10"),
        ([], [], np.zeros((0, 0)), [], "no row has a value"),
        (NOISE, ONE_MOVES, NONE, np.arange(N), r"rests on one participant \(sub-3\)"),
        (NOISE, 0.1 + ONE_MOVES, NONE, np.arange(N), r"rests on one participant \(sub-3\)"),
        (NOISE, ONE_MOVES + np.roll(ONE_MOVES, 1) / 2, NONE, np.r_[:4, 3 : N - 1], r"participant \(sub-3\)"),
        (NOISE, SITES + ONE_MOVES, SITES[:, None], np.arange(N), r"rests on one participant \(sub-3\)"),
    ],
    ids=["still", "confounded", "equal", "covariate", "exact", "many covariates", "few participants", "empty",
         "one moves", "one moves more", "one moves in two sessions", "one moves within sites"],
)  # fmt: skip
def test_what_cannot_be_estimated_is_refused(values, motion, covariates, participants, cause):
    with pytest.raises(ValueError, match=cause):
        regress(values, motion, covariates, participants)


def test_a_refused_measure_has_no_numbers_and_does_not_count_for_the_others(cohort):
    measures, motion = cohort
    found = correct(measures.assign(flat=1.0), motion, np.arange(N))
    alone = correct(measures, motion, np.arange(N))
    refused = found.slopes.iloc[2]
    assert refused["note"] == "no slope: more than half of the values are equal"
    assert refused[["slope", "slope_low", "slope_high", "standard_error", "p_value", "p_fdr"]].isna().all()
    assert found.adjusted["flat"].isna().all()
    np.testing.assert_allclose(found.slopes["p_fdr"][:2].astype(float), alone.slopes["p_fdr"].astype(float))
