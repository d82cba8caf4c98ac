"""Correction for motion on simulated cohorts: bias, coverage, false positives, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

from qmri_bidsapp.group.regression import correct, regress

SLOPE = -0.5


def draw(rng, n, *, slope=0.0, noise="normal", n_sessions=1, with_covariates=False):
    """Return values, motion, covariates and participants: few move much, sessions of a participant are alike."""
    participants = np.repeat(np.arange(n), n_sessions)
    own = rng.gamma(2.0, 0.4, n)[participants]
    motion = np.clip(own * rng.gamma(6.0, 1 / 6, own.size) if n_sessions > 1 else own, 0, 4)
    covariates = np.zeros((own.size, 0))
    if with_covariates:
        age, sex, site = rng.uniform(20, 80, n), rng.permutation(n) % 2, np.arange(n) % 3
        covariates = np.column_stack([age, sex, site == 1, site == 2])[participants].astype(float)
    spread = np.where(rng.random(n) < 0.1, 8.0, 1.0) if noise == "outliers" else np.ones(n)
    error = (spread * rng.standard_normal(n))[participants]
    if n_sessions > 1:
        error += 0.5 * rng.standard_normal(own.size)
    return (
        10 + slope * motion + covariates @ np.full(covariates.shape[1], 0.05) + error,
        motion,
        covariates,
        participants,
    )


@pytest.mark.parametrize(
    ("n", "options", "n_cohorts"),
    [
        (20, {}, 700),
        (20, {"with_covariates": True}, 500),
        (20, {"noise": "outliers"}, 500),
        (50, {"n_sessions": 2}, 300),
        (50, {"noise": "outliers", "with_covariates": True}, 400),
        (200, {"noise": "outliers"}, 150),
    ],
    ids=lambda value: "-".join(map(str, value)) or "plain" if isinstance(value, dict) else str(value),
)
def test_slopes_are_unbiased_and_intervals_cover(n, options, n_cohorts):
    rng = np.random.default_rng(1)
    found = [regress(*draw(rng, n, slope=SLOPE, **options)) for _ in range(n_cohorts)]
    slopes = np.array([line.slope for line in found])
    assert abs(slopes.mean() - SLOPE) < 4 * slopes.std() / n_cohorts**0.5
    covered = np.mean([line.low <= SLOPE <= line.high for line in found])
    error = (0.05 * 0.95 / n_cohorts) ** 0.5
    # With covariates and few participants the intervals are wider than they need be.
    assert 0.95 - 3.5 * error <= covered <= (0.985 if options else 0.95 + 3.5 * error)


@pytest.mark.parametrize(
    ("n", "options", "n_cohorts"),
    [
        (20, {}, 700),
        (20, {"noise": "outliers"}, 500),
        (50, {"n_sessions": 2, "with_covariates": True}, 300),
        (50, {"noise": "outliers"}, 500),
        (200, {"with_covariates": True}, 200),
    ],
    ids=lambda value: "-".join(map(str, value)) or "plain" if isinstance(value, dict) else str(value),
)
def test_five_percent_false_positives(n, options, n_cohorts):
    rng = np.random.default_rng(2)
    rate = np.mean([regress(*draw(rng, n, **options)).p_value < 0.05 for _ in range(n_cohorts)])
    error = (0.05 * 0.95 / n_cohorts) ** 0.5
    assert 0.015 < rate < 0.05 + 3 * error


@pytest.mark.parametrize("spread", [0.0, 1e-5, 0.01, 0.1])
@pytest.mark.parametrize("n_sessions", [1, 2])
def test_one_who_moves_gives_no_false_positives(spread, n_sessions):
    rng = np.random.default_rng(9)
    participants = np.repeat(np.arange(30), n_sessions)
    clear = []
    for _ in range(100):
        motion = pd.Series(0.1 + spread * rng.random(len(participants)) + 2.0 * (participants == 3))
        measures = pd.DataFrame({"measure": rng.standard_normal(len(participants))})
        clear.append(correct(measures, motion, participants).slopes["p_value"][0] < 0.05)
    assert np.mean(clear) <= 0.05


def test_outliers_cost_less_than_with_least_squares():
    rng = np.random.default_rng(3)
    robust, plain = [], []
    for _ in range(150):
        values, motion, covariates, participants = draw(rng, 50, slope=SLOPE, noise="outliers")
        robust.append(regress(values, motion, covariates, participants).slope)
        plain.append(np.polyfit(motion, values, 1)[0])
    assert np.std(robust) < 0.65 * np.std(plain)


@pytest.mark.parametrize("n_sessions", [1, 3])
def test_standard_error_is_that_of_leaving_participants_out(n_sessions):
    values, motion, covariates, participants = draw(
        np.random.default_rng(4), 60, slope=SLOPE, n_sessions=n_sessions, with_covariates=True
    )
    design = np.column_stack([np.ones_like(motion), covariates, motion])

    def fit(rows):
        return sm.RLM(values[rows], design[rows], M=sm.robust.norms.HuberT()).fit().params[-1]

    line = regress(values, motion, covariates, participants)
    assert line.slope == pytest.approx(fit(np.full(values.size, True)), rel=1e-6)
    without = np.array([fit(participants != one) for one in range(60)])
    jackknife = (59 / 60 * ((without - without.mean()) ** 2).sum()) ** 0.5
    assert 0.95 * jackknife < line.standard_error < 1.2 * jackknife


def cohort(rng, n, effect, motion_of_patients=0.0):
    """Return a table with one measure, motion and the diagnosis; motion lowers the measure."""
    patient = np.arange(n) % 2
    motion = np.clip(rng.gamma(2.0, 0.4, n) + motion_of_patients * patient, 0, 4)
    values = 10 + effect * patient + SLOPE * motion + 0.7 * rng.standard_normal(n)
    return pd.DataFrame({"measure": values}), pd.Series(motion), patient


def difference(values, patient):
    return stats.ttest_ind(values[patient == 1], values[patient == 0])


def test_an_effect_unrelated_to_motion_is_kept_with_its_power():
    rng = np.random.default_rng(5)
    raw, adjusted = [], []
    for _ in range(250):
        measures, motion, patient = cohort(rng, 60, effect=-0.5)
        values = correct(measures, motion, np.arange(60)).adjusted["measure"].to_numpy()
        raw.append(difference(measures["measure"].to_numpy(), patient).pvalue < 0.05)
        adjusted.append(
            (difference(values, patient).pvalue < 0.05, values[patient == 1].mean() - values[patient == 0].mean())
        )
    power, effect = np.mean(adjusted, axis=0)
    assert abs(effect - -0.5) < 0.04
    # Less spread between subjects: more power than before.
    assert power > np.mean(raw) + 0.03


def test_no_effect_arises_where_patients_only_move_more():
    rng = np.random.default_rng(6)
    raw, adjusted = [], []
    for _ in range(250):
        measures, motion, patient = cohort(rng, 60, effect=0.0, motion_of_patients=0.6)
        values = correct(measures, motion, np.arange(60)).adjusted["measure"].to_numpy()
        raw.append(difference(measures["measure"].to_numpy(), patient).pvalue < 0.05)
        adjusted.append(difference(values, patient).pvalue < 0.05)
    assert np.mean(raw) > 0.2
    assert np.mean(adjusted) < 0.07


def test_where_patients_move_more_the_diagnosis_as_covariate_keeps_its_effect():
    rng = np.random.default_rng(7)
    effects = []
    for _ in range(100):
        measures, motion, patient = cohort(rng, 80, effect=-0.8, motion_of_patients=0.8)
        diagnosis = pd.DataFrame({"diagnosis": np.where(patient, "patient", "control")})
        found = [correct(measures, motion, np.arange(80), table).adjusted["measure"] for table in (None, diagnosis)]
        effects.append([values[patient == 1].mean() - values[patient == 0].mean() for values in found])
    without, with_diagnosis = np.mean(effects, axis=0)
    assert abs(with_diagnosis - -0.8) < 0.06
    # The warning of the documentation: without it, part of the effect goes.
    assert without > -0.65


def test_false_discoveries_are_controlled():
    rng = np.random.default_rng(8)
    shares, uncorrected, found = [], [], []
    for _ in range(50):
        motion = pd.Series(rng.gamma(2.0, 0.4, 50))
        values = pd.DataFrame(rng.standard_normal((50, 20)))
        values[[0, 1]] -= 1.5 * motion.to_numpy()[:, None]
        slopes = correct(values, motion, np.arange(50)).slopes
        for share, name in ((shares, "p_fdr"), (uncorrected, "p_value")):
            clear = slopes["measure"][slopes[name] < 0.05]
            share.append((clear >= 2).sum() / max(1, len(clear)))
        found.append((slopes["p_fdr"][:2] < 0.05).mean())
    assert np.mean(shares) < 0.08 < 0.15 < np.mean(uncorrected)
    assert np.mean(found) > 0.9
