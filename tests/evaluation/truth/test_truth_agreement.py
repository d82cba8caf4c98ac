"""The comparison itself, on simulated errors whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from qmri_bidsapp.evaluation.truth.agreement import MIN_VOXELS, Agreement, agreement, nearest_axis, nearest_turn

N = 40_000
#: 5th and 95th percentile of a standard Gaussian.
Z_90 = 1.6449


def compare(scale: float = 1.0, bias: float = 0.0, n: int = N) -> Agreement:
    """Return the agreement of estimates whose stated standard deviation is `scale` times the right one."""
    rng = np.random.default_rng(0)
    truth, std = rng.uniform(1, 2, n), rng.uniform(0.05, 0.2, n)
    estimate = truth + bias + std * rng.standard_normal(n)
    stated = scale * std
    return agreement(truth, estimate, stated, value_range=(estimate - Z_90 * stated, estimate + Z_90 * stated))


def test_right_errors_have_the_nominal_coverage() -> None:
    found = compare()
    assert found.n == found.n_interval == found.n_range == N
    assert found.interval_coverage == pytest.approx(0.95, abs=0.004)
    assert found.range_coverage == pytest.approx(0.90, abs=0.005)
    assert found.mean_z == pytest.approx(0, abs=0.02)
    assert found.robust_sd_z == pytest.approx(1, abs=0.02)
    assert found.median_bias == pytest.approx(0, abs=0.003)
    assert found.rmse == pytest.approx(np.sqrt(np.mean(np.random.default_rng(1).uniform(0.05, 0.2, N) ** 2)), rel=0.02)
    assert found.faults() == []


@pytest.mark.parametrize(("scale", "sd"), [(0.5, 2.0), (2.0, 0.5)], ids=["too small", "too large"])
def test_wrong_standard_deviations_are_faults(scale: float, sd: float) -> None:
    found = compare(scale)
    assert found.robust_sd_z == pytest.approx(sd, rel=0.02)
    assert [text.partition(" ")[0] for text in found.faults()] == ["range", "interval"]


def test_bias_shows_in_bias_rmse_and_z() -> None:
    found = compare(bias=0.3)
    assert found.median_bias == pytest.approx(0.3, abs=0.004)
    assert found.rmse is not None
    assert found.rmse > 0.3
    assert found.mean_z is not None
    assert found.mean_z > 2
    assert found.faults()


def test_few_voxels_are_not_judged() -> None:
    assert compare(0.5, n=MIN_VOXELS - 1).faults() == []
    assert not compare(n=MIN_VOXELS - 1).is_judged
    assert compare(0.5, n=MIN_VOXELS).faults()


def test_only_voxels_with_truth_and_estimate_count() -> None:
    truth, estimate = np.array([1.0, np.nan, 1.0, 1.0]), np.array([1.1, 1.0, np.nan, 1.2])
    found = agreement(truth, estimate, np.array([0.1, 0.1, 0.1, np.nan]))
    assert (found.n, found.n_interval, found.n_range) == (2, 1, 0)
    assert found.median_bias == pytest.approx(0.15)
    assert found.mean_z == pytest.approx(1.0)
    assert found.range_coverage is None


def test_nothing_to_compare_gives_none() -> None:
    found = agreement(np.array([np.nan]), np.array([1.0]), np.array([1.0]))
    assert found.to_dict() == {
        **dict.fromkeys(("median_bias", "rmse", "mean_z", "robust_sd_z", "interval_coverage")),
        **dict.fromkeys(("range_coverage", "limit_coverage")),
        **dict.fromkeys(("n", "n_interval", "n_range", "n_limit"), 0),
    }


def test_a_truth_at_a_limit_is_held_by_a_range_that_ends_there() -> None:
    """A fraction of zero, estimated as zero, without a standard deviation: the range is one-sided, in float32."""
    truth, estimate, std = np.zeros(3), np.zeros(3), np.full(3, np.nan)
    low, high = np.array([0.0, 1e-9, 0.01], np.float32), np.full(3, 0.05, np.float32)
    found = agreement(truth, estimate, std, value_range=(low, high))
    assert (found.n, found.n_interval, found.n_range) == (3, 0, 3)
    assert found.range_coverage == pytest.approx(2 / 3)


def test_truths_on_a_limit_are_judged_apart() -> None:
    """Estimates of zero water, cut off at zero: where they do not differ from it, the range begins there."""
    rng = np.random.default_rng(0)
    estimate = np.maximum(0.0, 0.1 * rng.standard_normal(N))
    std = np.where(estimate > 0, 0.1, np.nan)
    low = np.where(estimate > Z_90 * 0.1, estimate - Z_90 * 0.1, 0.0)
    found = agreement(np.zeros(N), estimate, std, value_range=(low, estimate + 0.1282), physical=(0.0, 1.0))
    assert (found.n_range, found.range_coverage, found.n_limit) == (0, None, N)
    assert found.limit_coverage == pytest.approx(0.95, abs=0.005)
    assert found.interval_coverage == pytest.approx(0.95, abs=0.005)
    assert found.faults() == []
    # A central range hardly ever contains the limit.
    central = agreement(np.zeros(N), estimate, std, value_range=(low + 1e-3, estimate + 0.2), physical=(0.0, 1.0))
    assert [text.partition(" holds")[0] for text in central.faults()] == ["range at the limit"]


def test_an_interval_of_the_estimator_replaces_that_of_the_standard_deviation() -> None:
    truth = np.full(4, 1.0)
    low, high = np.array([0.9, 0.9, 1.1, np.nan]), np.array([1.2, 1.0, 1.2, np.nan])
    found = agreement(truth, np.full(4, 1.1), np.full(4, 1e-3), interval=(low, high))
    assert found.n_interval == 3
    assert found.interval_coverage == pytest.approx(2 / 3)


def test_angles_are_compared_in_the_nearest_form() -> None:
    np.testing.assert_allclose(nearest_turn(np.array([179.0, -170.0]), np.array([-179.0, -171.0]), 360.0), [-181, -170])
    # Nearly horizontal axes, one written with the opposite sign.
    polar, azimuth = nearest_axis(
        np.array([89.0, 30.0]), np.array([10.0, 10.0]), np.array([88.0, 31.0]), np.array([-169.0, 12.0])
    )
    np.testing.assert_allclose(polar, [91.0, 30.0])
    np.testing.assert_allclose(azimuth, [-170.0, 10.0])
