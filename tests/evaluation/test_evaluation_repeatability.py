"""Differences of two fits over their standard deviations: verdicts on errors of known size."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from qmri_bidsapp.bids.record import SeriesRecord
from qmri_bidsapp.evaluation.repeatability import _moved, summarise, z_scores

N = 20_000


def differences(claimed: float, *, correlation: float = 0.0) -> np.ndarray:
    """Return z-scores of two estimates with errors of 2 and of 3 units, of which `claimed` times as much is stated."""
    rng = np.random.default_rng(0)
    truth, common = 100 * rng.random(N), rng.standard_normal(N)
    first, second = (
        truth + std * (np.sqrt(correlation) * common + np.sqrt(1 - correlation) * rng.standard_normal(N))
        for std in (2, 3)
    )
    return z_scores(first, np.full(N, 2 * claimed), second, np.full(N, 3 * claimed))


@pytest.mark.parametrize(
    ("claimed", "verdict"),
    [(1.0, "ok"), (0.5, "std too small"), (2.0, "std too large")],
    ids=["right", "half", "twice"],
)
def test_the_spread_of_z_shows_the_error_of_the_standard_deviation(claimed: float, verdict: str) -> None:
    found = summarise(differences(claimed))
    assert found["sd_z"] == pytest.approx(1 / claimed, rel=0.03)
    assert abs(found["median_z"]) < 0.05 / claimed
    assert found["verdict"] == verdict


def test_right_standard_deviations_hold_95_percent() -> None:
    assert summarise(differences(1.0))["within"] == pytest.approx(95, abs=0.6)


def test_a_difference_that_is_systematic_is_a_wrong_standard_deviation() -> None:
    found = summarise(differences(1.0) + 1.5)
    assert found["verdict"] == "std too small"
    assert found["median_z"] == pytest.approx(1.5, abs=0.05)


def test_outliers_are_named_although_the_spread_is_right() -> None:
    z = differences(1.0)
    z[: N // 20] = 8.0
    found = summarise(z)
    assert found["sd_z"] < 1.15
    assert found["verdict"] == "outliers"


def test_correlated_errors_prove_nothing_but_too_large_ones_remain_a_fault() -> None:
    z = differences(1.0, correlation=0.5)
    assert summarise(z)["verdict"] == "std too large"
    assert summarise(z, are_independent=False)["verdict"] == "not independent"
    assert summarise(differences(0.5), are_independent=False)["verdict"] == "std too small"


def test_few_voxels_are_not_judged() -> None:
    assert summarise(differences(1.0)[:99])["verdict"] == "few voxels"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, SeriesRecord]]:
    """Preprocessed series of a head that lay still, moved by 1.5 mm, or was imaged on another grid."""
    folder, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    head = 100 + 900 * ndimage.gaussian_filter(rng.random((44, 44, 30)), 3)
    away = np.linalg.norm(
        (np.indices(head.shape) - np.array([[[[22]]], [[[22]]], [[[15]]]])) / [[[[18]]], [[[18]]], [[[12]]]], axis=0
    )
    head *= away < 1
    affine, other = np.diag([2.5, 2.5, 2.5, 1.0]), np.diag([2.5, 2.5, 2.5, 1.0])
    other[0, 3] = 2.0
    found = {}
    for name, values, place in (
        ("first", head, affine),
        ("still", head, affine),
        ("moved", ndimage.shift(head, (0.6, 0, 0), order=3), affine),
        ("elsewhere", head, other),
    ):
        noisy = np.abs(values + rng.standard_normal(head.shape)).astype(np.float32)
        nib.save(nib.Nifti1Image(noisy, place), folder / f"{name}.nii")
        nib.save(nib.Nifti1Image((values > 50).astype(np.uint8), place), folder / f"{name}_mask.nii")
        found[name] = SeriesRecord(name, "MESE", {}, (), preproc=f"{name}.nii", mask=f"{name}_mask.nii")
    return folder, found


def test_runs_are_compared_unless_the_head_moved(runs) -> None:
    folder, series = runs
    assert _moved(series["first"], series["still"], folder) is None
    assert _moved(series["first"], series["elsewhere"], folder) == "not compared, since their grids differ."
    reason = str(_moved(series["first"], series["moved"], folder))
    found = re.fullmatch(r"not compared, since the head moved by (.+) mm \(at most 0.62 mm\)\.", reason)
    assert found is not None, reason
    assert float(found[1]) == pytest.approx(1.5, abs=0.3)
