"""MP-PCA against dipy's and against the truth; noise of magnitudes; series whose noise it cannot find."""

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from qmri_bidsapp.core.noise import add_rician
from qmri_bidsapp.evaluation.standards import shells
from qmri_bidsapp.preprocess.dwi import denoise
from qmri_bidsapp.preprocess.mppca import mppca, sigma_of_magnitudes

SHAPE = (14, 14, 12)
SIGMA = 10.0
PROTOCOL = shells(6, (1000.0, 30), (2500.0, 30))


def smooth_series(scale: float = 300.0) -> np.ndarray:
    """Return noise-free magnitudes whose diffusion tensors change slowly over space."""
    rng = np.random.default_rng(3)
    b, g = np.asarray(PROTOCOL.b_value), np.asarray(PROTOCOL.direction)
    fields = [gaussian_filter(rng.standard_normal(SHAPE), 3, mode="wrap") for _ in range(4)]
    size, *axis = (field / field.std() for field in fields)
    axis = np.stack(axis, axis=-1) / np.linalg.norm(np.stack(axis, axis=-1), axis=-1, keepdims=True)
    diffusivity = 0.5e-3 + 1.2e-3 * (axis @ g.T) ** 2
    return scale * (1 + 0.2 * size[..., None]) * np.exp(-b * diffusivity)


@pytest.fixture(scope="module")
def series():
    truth = smooth_series()
    return truth, add_rician(truth, SIGMA, np.random.default_rng(1)).astype(np.float32)


def error(values: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((values - truth)[2:-2, 2:-2, 2:-2] ** 2)))


def test_as_good_as_dipy(series):
    from dipy.denoise.localpca import mppca as peer

    truth, noisy = series
    inside = np.ones(SHAPE, bool)
    ours = mppca(noisy, inside).series
    theirs = peer(noisy, mask=inside, patch_radius=2, suppress_warning=True)
    assert error(ours, truth) < 1.02 * error(theirs, truth)
    assert error(ours, truth) < 0.6 * error(noisy, truth)


def test_noise_of_real_and_imaginary_part(series):
    """Magnitudes of low signals vary less, by a third where there is none."""
    for scale in (300.0, 60.0):
        noisy = add_rician(smooth_series(scale), SIGMA, np.random.default_rng(2)).astype(np.float32)
        denoised, noise_std, _ = mppca(noisy, np.ones(SHAPE, bool))
        inner = np.s_[2:-2, 2:-2, 2:-2]
        assert np.median(sigma_of_magnitudes(denoised, noise_std)[inner]) == pytest.approx(SIGMA, rel=0.03)
    assert np.median(noise_std[inner]) < 0.92 * SIGMA


def test_outside_is_left_and_what_is_inside_does_not_depend_on_it(series):
    _, noisy = series
    inside = np.zeros(SHAPE, bool)
    inside[4:8, 4:8, 4:8] = True
    denoised, noise_std, _ = mppca(noisy, inside)
    assert not denoised[~inside].any()
    assert not noise_std[~inside].any()
    np.testing.assert_allclose(denoised[6, 6, 6], mppca(noisy, np.ones(SHAPE, bool))[0][6, 6, 6], rtol=1e-5)


def test_interpolated_images_are_not_denoised():
    """Noise that is correlated between voxels has no flat spectrum: MP-PCA takes most of it for signal."""
    noise = np.random.default_rng(4).standard_normal((*SHAPE, PROTOCOL.n_measurements))
    correlated = gaussian_filter(noise, (0.9, 0.9, 0.9, 0))
    image = nib.Nifti1Image((smooth_series() + SIGMA * correlated / correlated.std()).astype(np.float32), np.eye(4))
    mask = nib.Nifti1Image(np.ones(SHAPE, np.uint8), np.eye(4))
    found = denoise(image, PROTOCOL, mask=mask)
    assert found.noise_std is None
    assert "noise is correlated between voxels" in str(found.note)
    np.testing.assert_array_equal(found.image.dataobj, image.dataobj)
    white = nib.Nifti1Image((smooth_series() + SIGMA * noise).astype(np.float32), np.eye(4))
    found = denoise(white, PROTOCOL, mask=mask)
    assert found.note is None
    assert np.nanmedian(found.noise_std) == pytest.approx(SIGMA, rel=0.05)
