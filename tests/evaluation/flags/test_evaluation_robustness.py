"""Minor faults: each does what it says, and silent failures are counted as they are defined."""

from __future__ import annotations

import numpy as np
import pytest

from qmri_bidsapp.core.acquisition import MultiEcho
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.evaluation.flags import robustness
from qmri_bidsapp.evaluation.flags.areas import settings
from qmri_bidsapp.evaluation.flags.variations import Variation, variations_of, without
from qmri_bidsapp.evaluation.standards import AMPLITUDE
from qmri_bidsapp.registry import get_estimator, get_model

UNCHANGED = {"none", "an image taken out"}


def drawn(name, variation, n=64):
    return robustness.draw(settings(name)[-1], variation, n, seed=1)


@pytest.mark.parametrize("name", robustness.MODELS)
def test_every_variation_changes_the_signals(name):
    _, usual, noise = drawn(name, Variation())
    setting = settings(name)[-1]
    for what, variation in variations_of(setting.model, setting.series).items():
        truth, measured, believed = drawn(name, variation)
        assert truth.shape == (64, len(get_model(name).parameters))
        if not variation.protocol:
            np.testing.assert_allclose(believed, variation.scale * noise, rtol=1e-6)
        assert np.isfinite(measured).all()
        assert np.array_equal(measured, usual) == (what in UNCHANGED), what


def test_faults_are_of_the_size_that_they_say():
    """Echo times, without noise to speak of: single ones differ, all differ by 3 %, an intercept is added."""
    series = settings("t2")[-1].series
    found = variations_of(get_model("t2"), series)
    rng = np.random.default_rng(0)
    jitter = [found["echo times jitter by 3 %"].protocol(series, rng).echo_time for _ in range(500)]
    ratio = np.array(jitter) / series.echo_time
    assert ratio.mean() == pytest.approx(1, abs=0.003)
    np.testing.assert_allclose(ratio.std(axis=0), 0.03, rtol=0.15)
    assert abs(np.corrcoef(ratio.T)[0, 1]) < 0.15
    np.testing.assert_allclose(
        np.array(found["all echo times +3 %"].protocol(series, rng).echo_time) / series.echo_time, 1.03
    )
    clean = AMPLITUDE * np.ones((500, 6))
    assert (found["intercept of 2 %"].after(clean, series, rng) == 1.02 * AMPLITUDE).all()
    assert ((found["an image of zeros"].after(clean, series, rng) == 0).sum(axis=1) == 1).all()
    air = found["mask shifted: air"].change(clean, series, rng)
    assert 0.1 <= air.min() / AMPLITUDE < 0.12
    rounded = found["float16"].after(clean * np.pi, series, rng)
    assert 0 < np.abs(rounded / clean / np.pi - 1).max() < 2**-11


def test_motion_mixes_voxels_in_some_images_alike_in_all_of_a_series():
    series = settings("smt")[-1].series
    clean = np.random.default_rng(0).uniform(1, 2, (200, series.n_measurements))
    change = variations_of(get_model("smt"), series)["10 to 30 % of another voxel in some images"].change
    moved = (change(clean, series, np.random.default_rng(3)) != clean).mean(axis=0)
    assert set(moved.round(1)) == {0.0, 1.0}
    assert np.abs(np.diff(moved.round())).sum() <= 2


def test_a_protocol_without_an_image():
    series = settings("noddi")[-1].series
    rest, kept = without(series, 20)
    assert rest.n_measurements == series.n_measurements - 1
    assert 20 not in kept
    assert rest.direction == tuple(series.direction[i] for i in kept)
    assert rest.b_value == tuple(series.b_value[i] for i in kept)


def test_what_counts_as_silent():
    """Right; off; off and marked; off, but within the range; without a standard deviation."""
    estimate, std = np.array([0.1, 0.2, 0.2, 0.2, 0.9]), np.array([0.02, 0.02, 0.02, 0.02, np.nan])
    marked, inside = np.array([0, 0, 1, 0, 0], dtype=bool), np.array([1, 0, 0, 1, 0], dtype=bool)
    rates = robustness.rates_of(np.full(5, 0.1), estimate, std, marked, inside)
    assert rates == robustness.Rates(off=0.6, silent=0.4, silent_outside=0.2, no_std=0.2, marked=0.2)


def test_series_with_and_without_faults():
    """A fit with many images is off as often as normal errors are; a common error of all times is never marked."""
    found = dict(robustness.evaluate("t1", "varpro", n=2000, n_reference=2**12))
    usual, scaled, zeros = (found[key] for key in ("none", "all inversion times +3 %", "an image of zeros"))
    # 0.27 % of normal errors, 0.6 % of 28 degrees of freedom; counts of 2,000 scatter by 0.2 %.
    assert usual["t1"].off < 0.015
    assert usual["t1"].marked < 0.15
    assert scaled["t1"].silent > 2 * usual["t1"].silent
    assert scaled["t1"].marked < usual["t1"].marked + 0.03
    assert zeros["t1"].silent < 0.005
    assert zeros["t1"].marked > 0.8
    assert found["intensities x1000"]["t1"].off == pytest.approx(usual["t1"].off, abs=0.006)


def test_learned_estimators_are_not_used_for_another_protocol(monkeypatch):
    monkeypatch.setattr(get_estimator("polynomial"), "default_combinations", 2**12)
    found = dict(robustness.evaluate("t2", "polynomial", n=200, n_reference=2000))
    assert [what for what, rates in found.items() if rates is None] == ["an image taken out"]


def test_spatial_estimators_are_refused():
    with pytest.raises(UsageError, match="single voxels of model t1"):
        robustness.estimators_of(get_model("t1"), ["rim"])
    assert "rim" not in robustness.estimators_of(get_model("t1"), None)


def test_standard_deviations_are_moderated_by_series(monkeypatch):
    """Two series, one with four times the noise: intervals hold in both, and not if all voxels are taken for one."""
    rng, n = np.random.default_rng(1), 8000
    echoes = MultiEcho((0.0125, 0.025, 0.05, 0.08, 0.12, 0.2))
    time = rng.uniform(0.04, 0.12, n)
    truth = np.column_stack([np.full(n, 100.0), time, 1 / time])
    noise = np.repeat([1.0, 4.0], n // 2)
    measured = 100 * np.exp(-np.array(echoes.echo_time) / time[:, None])
    measured += noise[:, None] * rng.standard_normal(measured.shape)
    seen = []
    monkeypatch.setattr(robustness, "rates_of", lambda _, estimate, std, *__: seen.append((estimate, std)))
    monkeypatch.setattr(robustness, "N_SERIES", 2)
    estimator = get_estimator("varpro")(get_model("t2")).fit(echoes)
    instrument = robustness.Instrument(estimator, echoes, Noise("gaussian", (50.0, 50.0)), 2000, 0)

    def covered():
        seen.clear()
        instrument.rates(truth, measured, np.ones(n))
        estimate, std = seen[0]
        inside = np.abs(estimate - time) < 1.96 * std
        return inside.reshape(2, -1).mean(axis=1)

    np.testing.assert_allclose(covered(), 0.95, atol=0.015)
    monkeypatch.setattr(robustness, "_series", lambda n: [slice(0, n)])
    quiet, loud = covered()
    assert loud < 0.92 < 0.98 < quiet
