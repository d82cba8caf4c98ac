"""The lesion experiment: measures by hand, and a lesion that most voxels distinguish from white matter."""

from __future__ import annotations

import numpy as np
import pytest

from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.evaluation.lesion import lesion
from qmri_bidsapp.uncertainty.inverse import Reading

WHITE, ABNORMAL = (0.67, 2.2e-3), (0.60, 1.8e-3)


def brain(values=ABNORMAL, shape=(20, 20, 3)):
    everywhere = np.ones(shape, dtype=bool)
    is_lesion = np.zeros(shape, dtype=bool)
    is_lesion[5:15, 5:15] = True
    parameters = np.empty((*shape, 2))
    parameters[:] = WHITE
    parameters[is_lesion] = values
    return lesion.Brain(parameters, everywhere, everywhere & ~is_lesion, is_lesion)


def test_area_counts_pairs():
    assert lesion.area(np.array([0.0, 1.0]), np.array([0.5, 2.0])) == pytest.approx(3 / 4)
    assert lesion.area(np.array([1.0, 1.0]), np.array([1.0])) == pytest.approx(0.5)
    # What has no value is strangest.
    assert lesion.area(np.array([0.0, 9.0]), np.array([np.nan])) == pytest.approx(1.0)


def test_distance_is_in_standard_deviations_of_most_voxels():
    rng = np.random.default_rng(0)
    usual = np.array([0.6, 2e-3]) + rng.standard_normal((20_000, 2)) * [0.1, 3e-4]
    usual[:100] = 0.0
    found = lesion.distance(np.array([[0.6, 2e-3], [0.9, 2e-3], [0.6, 1.4e-3], [0.9, 1.4e-3]]), usual)
    np.testing.assert_allclose(found, [0, 3, 2, np.sqrt(13)], atol=0.1)


def test_numbers_of_known_voxels():
    """Two voxels of the lesion, then four of white matter; the bias hides half of the contrast."""
    truth = np.array([[0.6, 1.8e-3]] * 2 + [[0.7, 2.2e-3]] * 4)
    estimate = truth + np.array([[0.05, 0.2e-3]] * 2 + [[0.01, 0.1e-3], [-0.01, -0.1e-3]] * 2)
    bias = np.where(np.arange(6)[:, None] < 2, [[0.0, 0.05, 0.2e-3]], 0.0).astype(np.float32)
    low = np.full((6, 3), -1.0, dtype=np.float32)
    high = np.array([[9, 0.7, 1e-3]] + [[9, 0.7, 9]] * 5, dtype=np.float32)
    reading = Reading(bias, low, high, np.array([2, 1, 1, 1, 1, 1], dtype=np.uint8), np.zeros((6, 3), dtype=bool))
    p_value = np.array([0.01, 0.5, 0.9, 0.4, 0.03, 0.6], dtype=np.float32)
    found = lesion.LesionVoxels(truth, estimate, reading, p_value).numbers(slice(2), slice(2, 6), lambda values: values)
    assert found["cnr"]["v"] == pytest.approx((0.7 - 0.65) / 0.01)
    assert found["auroc"]["v debiased"] == 1
    assert found["auroc"]["flag"] == pytest.approx((4 + 2) / 8)
    assert found["coverage"] == {"v": 1.0, "lambda": 0.5, "both": 0.5}
    assert found["wide"] == {"lesion": 0.5, "white matter": 0.0}
    assert found["flagged"] == {"lesion": 0.5, "white matter": 0.25}


def test_regional_means_are_of_what_has_a_value():
    slab = brain(shape=(20, 20, 3))
    index = np.ravel_multi_index(([0, 0, 2, 9], [0, 1, 0, 9], [0, 0, 0, 1]), slab.brain.shape)
    values = np.array([[1.0, 10.0], [3.0, np.nan], [5.0, 50.0], [np.nan, 7.0]])
    found = slab.regional_mean(index, values)
    np.testing.assert_allclose(found, [[2, 10], [2, 10], [5, 50], [np.nan, 7]])


def test_a_lesion_shows_and_white_matter_does_not():
    numbers = {}
    for what, values in (("lesion", ABNORMAL), ("white", WHITE)):
        ((snr, name, outcome),) = lesion.evaluate(brain(values), ["nlls"], snrs=(12.0,), n_white=300, n_reference=2048)
        assert (snr, name) == (12.0, "nlls")
        assert all(values.shape == (400,) for values in outcome.maps.values())
        numbers[what] = outcome.numbers
    assert numbers["lesion"]["auroc"]["lambda"] > 0.7
    assert numbers["lesion"]["auroc"]["combined of regions"] > numbers["lesion"]["auroc"]["combined"] + 0.1
    assert 0.75 < numbers["lesion"]["coverage"]["lambda"] <= 1
    assert numbers["lesion"]["mean_estimate"]["lesion"] == pytest.approx(ABNORMAL, rel=0.03)
    for key, area in numbers["white"]["auroc"].items():
        # Regions overlap, so there are few independent ones, and the noise is larger.
        assert abs(area - 0.5) < (0.2 if "regions" in key else 0.08), key


def test_learned_estimators_are_named_with_what_they_are_trained_on():
    for name, word in (("mlp", "mlp:healthy"), ("nlls:healthy", "not trained"), ("rim", "single voxels")):
        with pytest.raises(UsageError, match=word):
            lesion.check(name)
    assert lesion.check("forest:mixed")[1] == "mixed"
