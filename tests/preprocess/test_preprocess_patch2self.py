"""Patch2Self against regressions of scikit-learn, and on series that allow none."""

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.core.noise import add_rician
from qmri_bidsapp.evaluation.standards import shells
from qmri_bidsapp.preprocess.dwi import denoise
from qmri_bidsapp.preprocess.patch2self import patch2self

SHAPE, SIGMA = (14, 14, 12), 10.0
PROTOCOL = shells(6, (1000.0, 30), (2500.0, 30))


@pytest.fixture(scope="module")
def series():
    """Return noise-free and noisy magnitudes of tensors that vary at random."""
    rng = np.random.default_rng(3)
    b, g = np.asarray(PROTOCOL.b_value), np.asarray(PROTOCOL.direction)
    axis = rng.standard_normal((*SHAPE, 3))
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    truth = rng.uniform(200, 400, (*SHAPE, 1)) * np.exp(-b * (0.5e-3 + 1.2e-3 * (axis @ g.T) ** 2))
    return truth, add_rician(truth, SIGMA, np.random.default_rng(1)).astype(np.float32)


def test_each_volume_is_its_regression_on_the_others(series):
    from sklearn.linear_model import LinearRegression

    _, noisy = series
    inside = np.ones(SHAPE, bool)
    inside[:3] = False
    found = patch2self(noisy, inside, PROTOCOL)
    values = noisy[inside].astype(float)
    for kind, volume in ((range(6), 2), (range(6, 66), 40)):
        others = [i for i in kind if i != volume]
        expected = LinearRegression().fit(values[:, others], values[:, volume]).predict(values[:, others])
        np.testing.assert_allclose(found[inside][:, volume], np.maximum(expected, 0), rtol=1e-4, atol=1e-3)
    assert not found[~inside].any()


def test_removes_noise(series):
    truth, noisy = series
    found = patch2self(noisy, np.ones(SHAPE, bool), PROTOCOL)
    assert np.sqrt(np.mean((found - truth) ** 2)) < 0.7 * np.sqrt(np.mean((noisy - truth) ** 2))


def test_single_empty_and_equal_volumes():
    rng = np.random.default_rng(0)
    noisy = rng.uniform(50, 100, (6, 6, 6, 6)).astype(np.float32)
    noisy[..., 2] = 0
    noisy[..., 4] = noisy[..., 3]
    protocol = Diffusion((0.0, *(1000.0,) * 5), ((0.0, 0.0, 0.0), *((1.0, 0.0, 0.0),) * 5))
    found = patch2self(noisy, np.ones((6, 6, 6), bool), protocol)
    np.testing.assert_allclose(found[..., 0], noisy[..., 0])
    np.testing.assert_allclose(found[..., 2], 0, atol=1e-3)
    np.testing.assert_allclose(found[..., 3], noisy[..., 3], rtol=1e-3)
    assert np.isfinite(found).all()


def test_the_noise_is_still_measured_and_errors_come_from_a_replicate(series):
    truth, noisy = series
    image, mask = nib.Nifti1Image(noisy, np.eye(4)), nib.Nifti1Image(np.ones(SHAPE, np.uint8), np.eye(4))
    found = denoise(image, PROTOCOL, mask=mask, method="patch2self")
    usual = denoise(image, PROTOCOL, mask=mask)
    assert found.is_denoised
    assert np.nanmedian(found.noise_std) == pytest.approx(SIGMA, rel=0.05)
    inner = np.s_[2:-2, 2:-2, 2:-2]
    error = np.asarray(found.image.dataobj)[inner] - truth[inner]
    assert np.std(found.errors[inner]) == pytest.approx(np.std(error), rel=0.2)
    assert np.abs(np.asarray(found.image.dataobj) - np.asarray(usual.image.dataobj)).max() > 1
