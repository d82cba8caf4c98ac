"""Does the range of the truth hold it as often as it says, and is the expected bias right?"""

from __future__ import annotations

import numpy as np
import pytest
from helpers.toys import NOISE, PROTOCOL, SIGMA, Toy
from scipy.stats import truncnorm

from qmri_bidsapp.core.prior import Empirical, Prior
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.learned.mlp import MultilayerPerceptron
from qmri_bidsapp.estimators.learned.training import Training
from qmri_bidsapp.evaluation.standards import standard
from qmri_bidsapp.registry import get_estimator, get_model
from qmri_bidsapp.uncertainty.certificate import certify
from qmri_bidsapp.uncertainty.inverse import Trust
from qmri_bidsapp.uncertainty.ood import Reason
from qmri_bidsapp.uncertainty.ood_measures import measure
from qmri_bidsapp.uncertainty.simulation import pairs_of, simulate_pairs, simulate_voxels

N_NEW = 8000


def healthy() -> Prior:
    """White and grey matter of three subjects, about the means of Gyori et al. 2021, Table 2."""
    model, rng = get_model("smt"), np.random.default_rng(0)
    tissues = (([0.67, 2.2e-3], [0.06, 0.12e-3]), ([0.16, 1.14e-3], [0.05, 0.1e-3]))
    subjects = [
        np.concatenate(
            [rng.normal(mean, spread, (1500, 2)).clip([0.01, 1e-5], [0.99, 2.99e-3]) for mean, spread in tissues]
        )
        for _ in range(3)
    ]
    return Empirical(model.parameters[1:], subjects)


@pytest.fixture(scope="module")
def narrow() -> Estimator:
    """A network that has seen healthy tissue only, at an SNR of 5."""
    return MultilayerPerceptron(
        get_model("smt"),
        prior=healthy(),
        noise=Noise("gaussian", (5.0, 5.0)),
        training=Training(steps=800, batch_size=512),
        n_combinations=2**14,
    ).fit(standard("smt"), seed=1)


def coverage(
    estimator: Estimator,
    acquisition,
    snr: float,
    n: int,
    *,
    prior: Prior | None = None,
    kind: str = "gaussian",
    factor: float = 1.0,
) -> tuple[dict[str, float], np.ndarray]:
    """Return, per quantity, the part of new voxels whose truth is in range, and what the reading says of them.

    The noise of these is `factor` times that of the series.
    """
    noise = Noise(kind, (snr, snr))
    certificate = certify(estimator, acquisition, noise=noise, prior=prior, n=n)
    values = (prior or estimator.model.default_prior()).draw(N_NEW, np.random.default_rng(99))
    own = Noise(kind, (snr / factor, snr / factor))
    new = simulate_pairs(estimator, acquisition, values, own, seed=98, noise_is_known=True, covariates_are_known=False)
    reading = certificate.reader.read(new.estimate, new.std, snr=np.exp(new.conditions[:, 0]))
    given = np.isfinite(reading.lower).all(axis=1)
    assert given.mean() > 0.99
    held = (new.truth >= reading.lower) & (new.truth <= reading.upper)
    return dict(
        zip([p.name for p in certificate.space.parameters], held[given].mean(axis=0), strict=True)
    ), reading.trust


@pytest.mark.parametrize(
    ("name", "kind", "snr", "n", "noise"),
    [
        ("t2", "varpro", 50.0, 2**14, "gaussian"),
        ("t1", "nlls", 50.0, 2**15, "rician"),
        ("smt", "nlls", 25.0, 2**14, "gaussian"),
        ("smt", "nlls", 5.0, 2**14, "gaussian"),
        ("tensor", "wls", 25.0, 2**14, "gaussian"),
        ("noddi", "nlls", 25.0, 2**13, "gaussian"),
    ],
    ids=["t2-varpro", "t1-nlls-rician", "smt-nlls", "smt-nlls-noisy", "tensor-wls", "noddi-nlls"],
)
def test_the_range_holds_the_truth(name, kind, snr, n, noise):
    model = get_model(name)
    protocol, _ = model.adapt(standard(name))
    covered, _ = coverage(get_estimator(kind)(model).fit(protocol), protocol, snr, n, kind=noise)
    assert all(0.88 <= part <= 0.92 for part in covered.values()), covered


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_range_holds_the_truth_at_the_noise_of_the_voxel(factor):
    """Within a brain the noise, or what it is compared with, differs by more than that."""
    protocol = standard("smt")
    estimator = get_estimator("nlls")(get_model("smt")).fit(protocol)
    covered, _ = coverage(estimator, protocol, 25.0, 2**14, factor=factor)
    assert all(0.87 <= part <= 0.93 for part in covered.values()), covered


@pytest.mark.parametrize("stated", ["healthy", "uniform"])
def test_the_range_of_a_network_of_healthy_tissue_holds_the_truth(narrow, stated):
    prior = healthy() if stated == "healthy" else None
    covered, trust = coverage(narrow, standard("smt"), 5.0, 2**14, prior=prior)
    assert all(0.88 <= part <= 0.92 for part in covered.values()), covered
    # Of all tissue, most is taken for healthy with a small standard deviation; if all is healthy, that is right.
    wide = (trust == Trust.WIDE).mean()
    assert wide > 0.5 if stated == "uniform" else wide < 0.01


def test_reading_of_an_unbiased_estimate_is_the_posterior():
    """Of x uniform over 0 to 1, measured with Gaussian noise, the truth has a truncated normal distribution."""
    reader = certify(Toy(lambda ratio: ratio), PROTOCOL, noise=NOISE).reader
    x = np.array([-0.05, 0.05, 0.2, 0.5, 0.75, 0.9, 1.0])
    reading = reader.read(np.stack([np.full_like(x, 300.0), x], axis=1), snr=1 / SIGMA)
    truth = truncnorm(-x / SIGMA, (1 - x) / SIGMA, loc=x, scale=SIGMA)
    tolerance = 0.3 * SIGMA
    np.testing.assert_allclose(reading.bias[:, 1], x - truth.mean(), atol=tolerance)
    np.testing.assert_allclose(reading.lower[:, 1], truth.ppf(0.05), atol=tolerance)
    np.testing.assert_allclose(reading.upper[:, 1], truth.ppf(0.95), atol=tolerance)
    np.testing.assert_allclose(reading.bias[:, 0], 0, atol=0.1)


def test_a_known_bias_is_read():
    """An estimate that is 0.2 too large, and a scale that does not matter."""
    reader = certify(Toy(lambda ratio: 0.8 * ratio + 0.2), PROTOCOL, noise=NOISE).reader
    estimate = np.array([[1.0, 0.6], [5000.0, 0.6]])
    reading = reader.read(estimate, snr=1 / SIGMA)
    expected = 0.6 - 0.5
    np.testing.assert_allclose(reading.bias[:, 1], expected, atol=0.02)
    np.testing.assert_array_equal(reading.bias[0, 1], reading.bias[1, 1])


def test_an_estimate_unlike_any_is_not_read():
    reader = certify(Toy(lambda ratio: ratio.clip(0, 0.5)), PROTOCOL, noise=NOISE, n=4000).reader
    reading = reader.read(np.array([[1.0, 0.3], [1.0, 0.9], [np.nan, np.nan]]), np.full((3, 2), SIGMA), snr=1 / SIGMA)
    assert reading.trust.tolist() == [Trust.RANGE_GIVEN, Trust.UNLIKE, Trust.NO_ESTIMATE]
    assert np.isfinite(reading.lower[0]).all()
    assert np.isnan(reading.lower[1:]).all()
    assert np.isnan(reading.bias[1:]).all()
    assert reading.counts() == {"RANGE_GIVEN": 1, "UNLIKE": 1, "NO_ESTIMATE": 1}


@pytest.mark.parametrize(("std", "expected"), [(0.01, Trust.WIDE), (0.3, Trust.RANGE_GIVEN)], ids=["tight", "honest"])
def test_a_wide_range_is_flagged_only_where_the_standard_deviation_is_small(std, expected):
    """All truths give nearly the same estimate."""
    reader = certify(Toy(lambda ratio: 0.5 + 0.02 * (ratio - 0.5)), PROTOCOL, noise=NOISE, n=8000).reader
    reading = reader.read(np.array([[1.0, 0.5]]), np.full((1, 2), std), snr=1 / SIGMA)
    assert reading.trust.tolist() == [expected]


def test_a_wide_range_without_a_standard_deviation_is_told():
    reader = certify(Toy(lambda ratio: np.full_like(ratio, 0.5)), PROTOCOL, noise=NOISE, n=4000).reader
    reading = reader.read(np.array([[1.0, 0.5]]), np.full((1, 2), np.nan), snr=1 / SIGMA)
    assert reading.trust.tolist() == [Trust.WIDE]
    assert reading.is_wide.tolist() == [[False, True]]
    np.testing.assert_allclose([reading.lower[0, 1], reading.upper[0, 1]], [0.05, 0.95], atol=0.06)


def test_conformal_intervals_hold_where_the_voxel_is_not_flagged(narrow):
    """In distribution they do as stated; on an abnormality never, but all of its voxels are flagged."""
    model, protocol, noise = get_model("smt"), standard("smt"), Noise("gaussian", (25.0, 25.0))
    certificate = certify(narrow, protocol, noise=noise, prior=healthy(), n=16_000)
    (abnormality,) = (tissue for tissue in model.tissues if tissue.name == "Abnormality 1")
    sets = {
        "healthy": healthy().draw(4000, np.random.default_rng(5)),
        "abnormality": np.tile([abnormality.values[p.name] for p in model.parameters[1:]], (1000, 1)),
    }
    held, flagged = {}, {}
    for name, values in sets.items():
        options = {"noise_is_known": True, "covariates_are_known": False, "by_volume": True}
        voxels = simulate_voxels(narrow, protocol, values, noise, seed=7, **options)
        pairs = pairs_of(model, protocol, voxels)
        half = pairs.std * [certificate.conformal[p.name] for p in certificate.space.parameters]
        flags = certificate.out_of_distribution.flag(measure(narrow, protocol, voxels), voxels.noise_std)
        held[name] = (np.abs(pairs.estimate - pairs.truth) <= half)[:, 1:]
        flagged[name] = flags.reason > Reason.TYPICAL
    assert (np.abs(held["healthy"][~flagged["healthy"]].mean(axis=0) - 0.95) < 0.02).all()
    assert held["abnormality"].mean() < 0.01
    assert flagged["abnormality"].mean() > 0.99
