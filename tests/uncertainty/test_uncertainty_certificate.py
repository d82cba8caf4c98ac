"""Bias, spread and sinks of estimators whose errors are known, and certificates on disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.toys import NOISE, PROTOCOL, SIGMA, Line, Toy

from qmri_bidsapp.core.prior import Uniform
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.errors import InputError, PriorError, UsageError
from qmri_bidsapp.evaluation.standards import standard
from qmri_bidsapp.registry import get_estimator, get_model, load_models
from qmri_bidsapp.uncertainty.certificate import ARRAYS, SUMMARY, Certificate, certify


def test_errors_are_those_of_the_estimator():
    """x + noise, shrunk by 0.6 towards 0.3: bias -0.4 (x - 0.3), standard deviation 0.6 sigma."""
    certificate = certify(Toy(lambda ratio: 0.3 + 0.6 * (ratio - 0.3)), PROTOCOL, noise=NOISE)
    errors = certificate.errors_by_bins(1)
    truth, bias, std, rmse = (np.array(errors[name]) for name in ("truth", "bias", "std", "rmse"))
    np.testing.assert_allclose(bias, -0.4 * (truth - 0.3), atol=0.01)
    # Within a bin the bias varies by 0.4 of the width, 1 / 20.
    np.testing.assert_allclose(std, np.hypot(0.6 * SIGMA, 0.4 / 20 / np.sqrt(12)), rtol=0.06)
    np.testing.assert_allclose(rmse, np.hypot(bias, std), rtol=1e-6)
    assert sum(errors["n"]) == 2**15


def test_what_failed_is_left_out_and_counted():
    toy = Toy(lambda ratio: np.where(ratio > 0.8, np.nan, ratio))
    certificate = certify(toy, PROTOCOL, noise=NOISE, n=5000)
    assert certificate.survey.n_failed == 5000 - len(certificate.survey)
    assert 0.15 < certificate.survey.n_failed / 5000 < 0.25
    assert certificate.survey.estimate.max() <= 1.5


def test_a_sink_is_found_where_there_is_one():
    def pulled(ratio):
        """Return what lies within 0.2 of 0.6, halfway to it, and the rest as it is."""
        return np.where(np.abs(ratio - 0.6) < 0.2, 0.6 + 0.4 * (ratio - 0.6), ratio)

    (sink,) = certify(Toy(pulled), PROTOCOL, noise=Noise("gaussian", (50.0, 50.0))).sinks
    assert sink.centre[0] == pytest.approx(0.6, abs=0.03)
    assert sink.share == pytest.approx(0.4, abs=0.1)
    assert sink.basin[0] == pytest.approx((0.42, 0.78), abs=0.04)
    assert sink.gathering > 2
    assert sink.pull == pytest.approx(0.6, abs=0.1)


@pytest.mark.parametrize(
    "function",
    [
        lambda ratio: ratio,
        lambda ratio: ratio + 0.05,
        lambda ratio: 0.5 + 0.98 * (ratio - 0.5),
        lambda ratio: ratio.clip(0, 1),
    ],
    ids=["unbiased", "shifted", "hardly shrunk", "within bounds"],
)
def test_no_sink_is_found_where_there_is_none(function):
    assert certify(Toy(function), PROTOCOL, noise=NOISE).sinks == []


def test_two_sinks_of_two_parameters():
    """Truths at four places of a plane, two of which draw what is around them."""
    from qmri_bidsapp.uncertainty.sinks import find_sinks

    rng = np.random.default_rng(0)
    truth = rng.random((20_000, 2))
    estimate = truth + 0.01 * rng.standard_normal(truth.shape)
    for centre in ([0.25, 0.3], [0.7, 0.75]):
        near = np.linalg.norm(truth - centre, axis=1) < 0.2
        estimate[near] = centre + 0.3 * (estimate[near] - centre)
    centres = sorted(sink.centre for sink in find_sinks(truth, estimate))
    np.testing.assert_allclose(centres, [[0.25, 0.3], [0.7, 0.75]], atol=0.03)


def test_survey_is_of_all_tissue_whatever_the_prior():
    model = Line()
    prior = Uniform(model.parameters[1:], {"x": (0.4, 0.5)})
    certificate = certify(Toy(lambda ratio: ratio), PROTOCOL, noise=NOISE, prior=prior, n=2000)
    assert 0.4 <= certificate.pairs.truth[:, 1].min() < certificate.pairs.truth[:, 1].max() <= 0.5
    assert np.ptp(certificate.survey.truth[:, 1]) > 0.9


def test_named_tissues_are_those_of_the_paper():
    model, protocol = get_model("smt"), standard("smt")
    certificate = certify(get_estimator("nlls")(model).fit(protocol), protocol, noise=Noise("gaussian", (100.0, 100.0)))
    assert list(certificate.tissues) == [tissue.name for tissue in model.tissues]
    found = certificate.tissues["Abnormality 1"]
    assert found["truth"]["diffusivity"] == pytest.approx(0.5e-3)
    estimates = found["estimates"]["diffusivity"]["percentiles"]
    assert estimates == sorted(estimates)
    assert estimates[2] == pytest.approx(0.5e-3, rel=0.1)
    arrows = certificate.arrows()
    assert len(arrows) == 144
    assert np.ptp([row["truth"] for row in arrows], axis=0) == pytest.approx([0.91, 0.91 * 3e-3], rel=0.05)


def test_tissues_are_parameters_of_their_models():
    models = [model for model in map(get_model, load_models()) if model.tissues]
    assert {"smt", "t1", "t2"} <= {model.name for model in models}
    for model in models:
        bounds = {p.name: p.bounds for p in model.parameters}
        for tissue in model.tissues:
            assert all(bounds[key][0] <= value <= bounds[key][1] for key, value in tissue.values.items()), tissue


@pytest.mark.parametrize("stated", [None, (0.2, 0.6)], ids=["default prior", "own prior"])
def test_saved_and_loaded(tmp_path, stated):
    model = Line()
    prior = Uniform(model.parameters[1:], {"x": stated}) if stated else None
    certificate = certify(Toy(lambda ratio: 0.5 * ratio), PROTOCOL, noise=NOISE, prior=prior, n=3000)
    certificate.save(tmp_path / "one")
    loaded = Certificate.load(tmp_path / "one", model)
    assert loaded.summary() == certificate.summary() == json.loads((tmp_path / "one" / SUMMARY).read_text())
    estimate = np.array([[1.0, 0.2]])
    first, second = (item.reader.read(estimate, snr=10.0).lower for item in (loaded, certificate))
    np.testing.assert_array_equal(first, second)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_same_seed_same_certificate_another_seed_another():
    toy = Toy(lambda ratio: ratio)
    first, second, third = (certify(toy, PROTOCOL, noise=NOISE, n=500, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.pairs.estimate, second.pairs.estimate)
    assert first.key == second.key != third.key
    assert not np.array_equal(first.pairs.estimate, third.pairs.estimate)


def test_damage_is_noticed(tmp_path):
    certificate = certify(Toy(lambda ratio: ratio), PROTOCOL, noise=NOISE, n=500)
    certificate.save(tmp_path / "one")
    with pytest.raises(InputError, match="no certificate of model t2"):
        Certificate.load(tmp_path / "one", get_model("t2"))
    (tmp_path / "one" / ARRAYS).write_bytes(b"PK")
    with pytest.raises(InputError, match="no readable certificate"):
        Certificate.load(tmp_path / "one", Line())


def test_what_cannot_be_certified_is_refused():
    t1 = get_model("t1")
    with pytest.raises(UsageError, match="map works on images"):
        certify(get_estimator("map")(t1).fit(standard("t1")), standard("t1"), noise=NOISE)
    for snr in ((10.0, 20.0), (np.inf, np.inf)):
        with pytest.raises(UsageError, match="one finite signal-to-noise ratio"):
            certify(Toy(lambda ratio: ratio), PROTOCOL, noise=Noise("gaussian", snr))
    with pytest.raises(PriorError, match="not of the parameters"):
        certify(Toy(lambda ratio: ratio), PROTOCOL, noise=NOISE, prior=t1.default_prior())
    with pytest.raises(InputError, match="could not estimate"):
        certify(Toy(lambda ratio: np.full_like(ratio, np.nan)), PROTOCOL, noise=NOISE, n=100)


def test_less_bias_costs_variance():
    """Estimates half way to the middle: bias and noise are half; E[truth | estimate] gives back most of both."""
    certificate = certify(Toy(lambda ratio: 0.5 + 0.5 * (ratio - 0.5)), PROTOCOL, noise=NOISE, n=8000)
    (bias, std, rmse) = (certificate.debiasing["x"][name] for name in ("bias", "std", "rmse"))
    assert bias[0] == pytest.approx(0.5 / np.sqrt(12), rel=0.05)
    assert std[0] == pytest.approx(0.5 * SIGMA, rel=0.05)
    assert bias[1] < 0.35 * bias[0]
    assert 1.5 * std[0] < std[1] < 2 * std[0] * 1.02
    assert rmse[1] < SIGMA < rmse[0]
