"""Smooth fields: linear systems against numpy's dense ones, and T1 with the inversion times of the RIM's paper."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from qmri_bidsapp.core.acquisition import InversionRecovery
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.estimators.posterior.smooth_field import SmoothFieldPosterior
from qmri_bidsapp.estimators.posterior.smoothness import NeighbourPairs, SmoothnessPrior
from qmri_bidsapp.fitting.series import fit_series
from qmri_bidsapp.images.volumes import open_series
from qmri_bidsapp.models.conditional import conditional
from qmri_bidsapp.models.relaxometry import InversionRecoveryT1, SpinEchoT2

#: Sabidussi et al. 2021, Table 2, 31 inversion times.
SHORT = InversionRecovery(
    tuple(
        time / 1000
        for time in (
            *(139, 166, 193, 219, 246, 272, 299, 325, 352, 379, 405, 432, 458, 485, 511, 538),
            *(565, 591, 618, 644, 671, 697, 724, 751, 777, 804, 838, 857, 883, 915, 937),
        )
    )
)
LONG = InversionRecovery((0.05, 0.15, 0.3, 0.5, 0.8, 1.2, 1.8, 2.7, 4.2))
MODEL = InversionRecoveryT1()


def holes(seed: int = 0, shape: tuple[int, ...] = (7, 6, 4)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) > 0.25


def dense(neighbours: NeighbourPairs, weight: float) -> np.ndarray:
    matrix = np.zeros((neighbours.n_voxels, neighbours.n_voxels))
    for first, second, relative in neighbours.axes:
        for i, j in zip(first.tolist(), second.tolist(), strict=True):
            matrix[[i, j], [i, j]] += weight * relative
            matrix[[i, j], [j, i]] -= weight * relative
    return matrix


def test_pairs_share_a_face_and_count_by_their_distance() -> None:
    inside = np.ones((3, 2, 1), dtype=bool)
    inside[1, 1] = False
    neighbours = NeighbourPairs(inside, (1.0, 2.0, 5.0), "cpu")
    # In C order: (0,0), (0,1), (1,0), (2,0), (2,1).
    found = [sorted(zip(first.tolist(), second.tolist(), strict=True), key=str) for first, second, _ in neighbours.axes]
    assert found == [[(0, 2), (2, 3)], [(0, 1), (3, 4)]]
    assert [relative for *_, relative in neighbours.axes] == [1.0, 0.25]


def test_linear_algebra_agrees_with_numpy() -> None:
    neighbours = NeighbourPairs(holes(), (1.0, 1.0, 2.0), "cpu")
    prior, matrix = SmoothnessPrior(neighbours, 3.0), dense(neighbours, 3.0)
    rng = np.random.default_rng(1)
    field, right, precision = (rng.random(neighbours.n_voxels) for _ in range(3))
    precision[::3] = 1e-3
    assert prior.cost(torch.tensor(field)) == pytest.approx(field @ matrix @ field)
    np.testing.assert_allclose(prior.times(torch.tensor(field)).numpy(), matrix @ field)
    whole = np.diag(precision) + matrix
    found = prior.solve(torch.tensor(precision), torch.tensor(right)).numpy()
    np.testing.assert_allclose(found, np.linalg.solve(whole, right), rtol=1e-3)
    covariance = np.linalg.inv(whole)
    variance = prior.variance(torch.tensor(precision), n_draws=200, seed=0).numpy()
    np.testing.assert_allclose(variance, covariance.diagonal(), rtol=0.35)
    assert np.mean(variance / covariance.diagonal()) == pytest.approx(1, abs=0.05)
    determined = prior.n_determined(torch.tensor(precision), n_draws=200, seed=0)
    assert determined == pytest.approx(np.trace(np.diag(precision) @ covariance), rel=0.1)


def test_a_model_given_a_parameter_is_the_model() -> None:
    theta = torch.tensor([[100.0, 1.9, 1.2], [50.0, 1.7, 0.6]]).double()
    given = conditional(MODEL, 1, 1.9)
    reordered = theta[:, [0, 2, 1]]
    torch.testing.assert_close(given.signal(reordered, LONG), MODEL.signal(theta, LONG))
    torch.testing.assert_close(given.jacobian(reordered, LONG), MODEL.jacobian(theta, LONG)[..., [0, 2]])
    assert [p.name for p in given.parameters] == ["m0", "t1"]
    assert given.covariates[0].name == "inversion_factor"


def phantom(n: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Parameters (n_voxels, 3) of a head-like slice with a smooth field, and its mask (n, n, 1)."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(*[np.linspace(-1, 1, n)] * 2, indexing="ij")
    radius = np.hypot(x, y)
    t1 = np.full((n, n), 0.85)
    t1[radius < 0.75] = 1.35
    t1[(radius < 0.55) & (np.abs(np.sin(4 * np.arctan2(y, x))) > 0.3)] = 0.85
    t1[(np.abs(x) < 0.12) & (np.abs(y) < 0.35)] = 3.5
    t1 *= 1 + 0.05 * rng.standard_normal((n, n))
    m0 = 100 * np.where(t1 > 2.5, 1.0, np.where(t1 > 1.1, 0.85, 0.7))
    field = 1.9 - 0.12 * (x + 0.2) ** 2 - 0.1 * y**2 + 0.04 * x
    mask = radius < 0.95
    return np.stack([m0, field, t1], axis=-1)[mask], mask[..., None]


def measure(theta: np.ndarray, acquisition: InversionRecovery, noise: float, seed: int = 3) -> np.ndarray:
    clean = MODEL.signal(torch.tensor(theta), acquisition).numpy()
    return np.abs(clean + noise * np.random.default_rng(seed).standard_normal(clean.shape))


def test_a_smooth_field_makes_t1_precise_where_inversion_times_are_short() -> None:
    theta, mask = phantom()
    signals = measure(theta, SHORT, 2.0)
    error = {}
    for cls in (NonLinearLeastSquares, SmoothFieldPosterior):
        maps = cls(MODEL).fit(SHORT).predict_volume(signals, mask)
        error[cls] = np.median(np.abs(maps.estimate[:, 2] / theta[:, 2] - 1))
    assert error[NonLinearLeastSquares] > 0.10
    assert error[SmoothFieldPosterior] < 0.02
    assert (maps.status == Status.OK).mean() > 0.99
    # For a field smoother than the prior the intervals are wide, never narrow.
    covered = np.abs(maps.estimate[:, :3] - theta) < 1.96 * maps.std[:, :3]
    assert (covered.mean(axis=0) > 0.95).all()
    assert np.median(maps.std[:, 2] / theta[:, 2]) < 0.06


def drawn(width: float, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Parameters with a field drawn from the prior, differences of neighbours being `width` / sqrt(2) (in 2-D)."""
    mask = np.ones((n, n, 1), dtype=bool)
    prior = SmoothnessPrior(NeighbourPairs(mask, (1, 1, 1), "cpu"), width**-2)
    (field,) = prior.draws(torch.full((n * n,), 100.0).double(), n_draws=1, seed=5)
    rng = np.random.default_rng(2)
    columns = (np.full(n * n, 100.0), 1.9 + field.numpy(), rng.uniform(0.6, 1.6, n * n))
    return np.stack(columns, axis=1), mask


def test_intervals_hold_for_fields_like_the_prior_and_lambda_is_found() -> None:
    theta, mask = drawn(0.02)
    signals = measure(theta, LONG, 0.7)
    maps = SmoothFieldPosterior(MODEL).fit(LONG).predict_volume(signals, mask)
    z = (maps.estimate[:, :3] - theta) / maps.std[:, :3]
    covered = (np.abs(z) < 1.96).mean(axis=0)
    assert ((covered > 0.93) & (covered < 0.97)).all()
    assert ((z.std(axis=0) > 0.9) & (z.std(axis=0) < 1.1)).all()
    told = SmoothFieldPosterior(MODEL, weight=0.02**-2).fit(LONG).predict_volume(signals, mask)
    assert np.median(np.abs(maps.estimate[:, 1] - told.estimate[:, 1]) / told.std[:, 1]) < 0.1
    np.testing.assert_allclose(np.median(maps.std[:, 1]), np.median(told.std[:, 1]), rtol=0.1)


def test_the_weight_leads_from_voxelwise_least_squares_to_a_constant_field() -> None:
    theta, mask = drawn(0.02, n=16)
    signals = measure(theta, LONG, 0.5)
    single = NonLinearLeastSquares(MODEL).fit(LONG).predict(signals)
    none, full = (
        SmoothFieldPosterior(MODEL, weight=weight).fit(LONG).predict_volume(signals, mask) for weight in (1e-6, 1e9)
    )
    np.testing.assert_allclose(none.estimate, single.estimate, rtol=5e-3)
    assert np.ptp(full.estimate[:, 1]) < 1e-3
    assert np.ptp(single.estimate[:, 1]) > 0.05
    alone = SmoothFieldPosterior(MODEL).fit(LONG).predict(signals)
    np.testing.assert_array_equal(alone.estimate, single.estimate)


def test_bad_voxels_are_left_out_and_parts_that_do_not_touch_do_not_matter() -> None:
    theta, mask = drawn(0.02, n=12)
    signals = measure(theta, LONG, 0.5)
    estimator = SmoothFieldPosterior(MODEL, weight=2500.0).fit(LONG)
    spoilt = signals.copy()
    spoilt[5], spoilt[17] = np.nan, 0.0
    whole = estimator.predict_volume(spoilt, mask, noise_std=0.5)
    assert whole.status[[5, 17]].tolist() == [Status.INVALID_INPUT, Status.NO_SIGNAL]
    assert np.isnan(whole.estimate[[5, 17]]).all()
    assert np.isfinite(np.delete(whole.estimate, [5, 17], axis=0)).all()
    # A gap of one row: voxels behind it do not change.
    parted = mask.copy()
    parted[6] = False
    inside = parted[mask]
    near = np.arange(len(inside)) < 6 * 12
    first = estimator.predict_volume(signals[inside], parted, noise_std=0.5)
    second = estimator.predict_volume(signals[near], parted & (np.arange(12) < 6)[:, None, None], noise_std=0.5)
    np.testing.assert_allclose(first.estimate[: near.sum()], second.estimate, rtol=2e-3)


def test_voxels_without_neighbours_are_fitted_alone() -> None:
    theta, _ = drawn(0.02, n=4)
    mask = np.zeros((8, 8, 1), dtype=bool)
    mask[::2, ::2] = True
    signals = measure(theta, LONG, 0.5)
    maps = SmoothFieldPosterior(MODEL).fit(LONG).predict_volume(signals, mask)
    single = NonLinearLeastSquares(MODEL).fit(LONG).predict(signals)
    np.testing.assert_array_equal(maps.estimate, single.estimate)


def test_a_spatial_estimator_gets_the_whole_volume_and_its_spacing(tmp_path: Path) -> None:
    theta, _ = drawn(0.02, n=12)
    mask = holes(4, (12, 4, 3))
    signals = measure(theta, LONG, 0.5)[: mask.sum()]
    data = np.zeros((*mask.shape, LONG.n_measurements), dtype=np.float32)
    data[mask] = signals
    nib.save(nib.Nifti1Image(data, np.diag([2.0, 2.0, 6.0, 1.0])), tmp_path / "series.nii")
    read, spacing = open_series(tmp_path / "series.nii")
    maps = fit_series(SmoothFieldPosterior(MODEL), read, mask, LONG, spacing=spacing).maps
    expected, other = (
        SmoothFieldPosterior(MODEL).fit(LONG).predict_volume(data[mask], mask, spacing=spacing)
        for spacing in ((2.0, 2.0, 6.0), (2.0, 2.0, 2.0))
    )
    np.testing.assert_array_equal(maps.estimate, expected.estimate)
    assert not np.array_equal(maps.estimate, other.estimate)


def test_only_models_with_a_smooth_parameter_and_residuals() -> None:
    assert SmoothFieldPosterior.supports(MODEL)
    assert not SmoothFieldPosterior.supports(SpinEchoT2())
    with pytest.raises(ProtocolError, match="more measurements than"):
        SmoothFieldPosterior(MODEL).fit(InversionRecovery((0.1, 0.5, 2.0)))
