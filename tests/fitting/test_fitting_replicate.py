"""Standard deviations of fits to denoised series are those of their errors, parameter by parameter."""

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from qmri_bidsapp.core.noise import add_rician
from qmri_bidsapp.evaluation.standards import shells
from qmri_bidsapp.fitting.noise import SeriesNoise
from qmri_bidsapp.fitting.replicate import Replicate, error_factors, rescale
from qmri_bidsapp.fitting.series import fit_series
from qmri_bidsapp.preprocess.dwi import Denoised, denoise
from qmri_bidsapp.registry import get_estimator, get_model
from qmri_bidsapp.uncertainty.inverse import normal_range
from qmri_bidsapp.uncertainty.space import Space

SHAPE = (20, 20, 14)
SIGMA = 12.0
PROTOCOL = shells(8, (1000.0, 30), (2500.0, 30))
MODEL = get_model("kurtosis")


def tissue(smoothness: float) -> np.ndarray:
    """Return noise-free magnitudes of tissue with two fibre populations and free water, (x, y, z, n)."""
    rng = np.random.default_rng(5)
    b, g = np.asarray(PROTOCOL.b_value), np.asarray(PROTOCOL.direction)
    size, share, *axes = (gaussian_filter(rng.standard_normal(SHAPE), smoothness, mode="wrap") for _ in range(5))
    axis = np.stack(axes, axis=-1) / np.linalg.norm(np.stack(axes, axis=-1), axis=-1, keepdims=True)
    share = 1 / (1 + np.exp(-3 * share / share.std()))[..., None]
    fibre = np.exp(-b * (0.3e-3 + 1.5e-3 * (axis @ g.T) ** 2))
    return (300 + 40 * size / size.std())[..., None] * (share * fibre + (1 - share) * np.exp(-b * 1.2e-3))


@pytest.fixture(scope="module")
def truth():
    return tissue(1.5)


def denoised(truth: np.ndarray, sigma: float) -> Denoised:
    series = nib.Nifti1Image(add_rician(truth, sigma, np.random.default_rng(0)).astype(np.float32), np.eye(4))
    return denoise(series, PROTOCOL, mask=nib.Nifti1Image(np.ones(SHAPE, np.uint8), np.eye(4)))


@pytest.fixture(scope="module")
def fits(truth):
    """Return the fit of the noise-free series, and of the denoised one with and without its replicate."""
    mask = np.ones(SHAPE, bool)
    found = denoised(truth, SIGMA)
    data = np.asarray(found.image.dataobj)
    noise = SeriesNoise(found.noise_std[mask], floor_removed=True)

    def fit(values, replicate=None):
        return fit_series(get_estimator("wls")(MODEL), values, mask, PROTOCOL, noise=noise, replicate=replicate).maps

    return fit(truth.astype(np.float32)), fit(data), fit(data, Replicate(found.errors, found.removed))


@pytest.mark.parametrize("name", ["s0", "fa", "md", "ad", "rd", "mk"])
def test_intervals_hold_the_truth(fits, name: str):
    true, before, after = fits
    column = [parameter.name for parameter in after.parameters].index(name)
    np.testing.assert_array_equal(before.estimate, after.estimate)
    z = (after.estimate - true.estimate)[:, column] / after.std[:, column]
    assert 0.91 < np.mean(np.abs(z) < 1.96) < 0.985


def test_denoising_makes_some_parameters_more_precise_and_others_not(fits):
    _, before, after = fits
    ratio = dict(zip((p.name for p in after.parameters), np.nanmedian(after.std / before.std, axis=0), strict=True))
    assert ratio["s0"] == pytest.approx(1, abs=0.12)
    assert ratio["fa"] < 0.7


def test_what_was_removed_makes_the_noise_white_again(truth):
    """Its size and its correlation between volumes are those before denoising."""
    found = denoised(truth, SIGMA)
    data = np.asarray(found.image.dataobj)
    inner = np.s_[2:-2, 2:-2, 2:-2]
    left, white = (values[inner] - truth[inner] for values in (data, data + found.removed))
    assert left.std() < 0.65 * SIGMA
    assert white.std() == pytest.approx(SIGMA, rel=0.06)
    correlation = np.corrcoef(white.reshape(-1, PROTOCOL.n_measurements).T)
    assert np.abs(correlation[np.triu_indices_from(correlation, 1)]).mean() < 0.03


def test_a_replicate_shows_what_denoising_loses_of_the_signal():
    """Of tissue that changes from voxel to voxel, weak components are taken for noise: an error, not noise alone."""
    truth = tissue(0.7)
    found = denoised(truth, 25.0)
    error = np.asarray(found.image.dataobj) - truth
    inner = np.s_[2:-2, 2:-2, 2:-2]
    assert found.errors[inner].std() / error[inner].std() == pytest.approx(1.01, abs=0.05)


def test_ranges_are_those_of_normal_errors():
    """But for estimates that do not differ from a physical limit: theirs begin there."""
    space = Space(get_model("smt"))
    estimate, std = np.array([[1.0, 0.5, 1.5e-3], [1.0, 0.05, 1.5e-3]]), np.array([[0.1, 0.1, 1e-4]] * 2)
    low, high = normal_range(space, estimate, std)
    np.testing.assert_allclose(low[0], estimate[0] - 1.645 * std[0], rtol=1e-3)
    np.testing.assert_allclose(high[0], estimate[0] + 1.645 * std[0], rtol=1e-3)
    assert low[1, 1] == 0
    assert high[1, 1] == pytest.approx(0.05 + 1.2816 * 0.1, rel=1e-3)


def test_what_is_not_known_is_left(fits):
    """Without a difference there is no factor of zero; a voxel that failed takes that of its neighbours."""
    _, maps, _ = fits
    mask = np.ones(SHAPE, bool)
    assert error_factors(maps, maps, mask).min() == pytest.approx(0.1)
    failed = maps.std.copy()
    failed[:] = np.nan
    unknown = rescale(maps, error_factors(rescale(maps, failed), maps, mask))
    np.testing.assert_array_equal(unknown.std, maps.std)
