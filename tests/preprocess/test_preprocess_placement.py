"""Volumes where they were acquired and back: geometry, and the error of interpolation against a finer truth."""

import nibabel as nib
import numpy as np
import pytest
from helpers.epi import SHAPE, as_seen, field, head, inside
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from qmri_bidsapp.preprocess.placement import Placement, interpolation_errors, resample_noise, resample_series

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])


def turned(degrees: float, shift: float) -> np.ndarray:
    """Return a rotation about the centre and a shift, voxels."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (degrees, -degrees, degrees), degrees=True).as_matrix()
    centre = (np.array(SHAPE) - 1) / 2
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre + shift
    return matrix


@pytest.mark.parametrize("displacement", [None, 0.05 * field()], ids=["moved", "moved-and-distorted"])
def test_as_acquired_is_the_inverse(displacement: np.ndarray | None) -> None:
    smooth = gaussian_filter(head(), 2.0)
    place = Placement(turned(3, 0.4), displacement)
    again = place.resample(place.as_acquired(smooth))
    inner = (slice(8, -8), slice(8, -8), slice(6, -6))
    assert np.abs(again - smooth)[inner].max() < 0.03 * smooth.max()


def test_as_acquired_distorts_as_a_scanner_does() -> None:
    smooth = gaussian_filter(head(), 1.5)
    shown = Placement(displacement=0.05 * field()).as_acquired(smooth)
    expected = as_seen(smooth, 0.05 * field())
    assert np.corrcoef(shown.ravel(), expected.ravel())[0, 1] > 0.999
    assert np.corrcoef(smooth.ravel(), expected.ravel())[0, 1] < 0.99


def test_errors_of_interpolation_are_at_edges_and_no_larger_than_the_true_ones() -> None:
    """Of a head with sharp edges that was moved once, and resampled."""
    truth = head()
    place = Placement(turned(2, 0.5))
    moved = place.as_acquired(truth)
    image = resample_series(nib.Nifti1Image(moved[..., None], AFFINE), [place])
    error = np.asarray(image.dataobj)[..., 0] - truth
    found = interpolation_errors(image, [place])[..., 0]
    edge = inside() & (np.linalg.norm(np.gradient(truth), axis=0) > 200)
    flat = inside() & (np.linalg.norm(np.gradient(truth), axis=0) < 100)
    # Content of the finest scale is lost in the first step; the second cannot show it.
    assert 0.3 < found[edge].std() / np.nanstd(error[edge]) < 1
    assert found[flat].std() < 0.5 * found[edge].std()


def test_a_series_that_stays_is_untouched() -> None:
    image = nib.Nifti1Image(np.stack([head()] * 2, axis=-1).astype(np.float32), AFFINE)
    still = [Placement()] * 2
    assert resample_series(image, still) is image
    assert not interpolation_errors(image, still).any()
    noise = nib.Nifti1Image(np.full(SHAPE, 2.0, np.float32), AFFINE)
    assert resample_noise(noise, still) is noise


def test_noise_grows_with_the_stretching() -> None:
    stretched = Placement(displacement=0.25 * np.indices(SHAPE)[1].astype(float))
    noise = nib.Nifti1Image(np.full(SHAPE, 2.0, np.float32), AFFINE)
    values = np.asarray(resample_noise(noise, [stretched, Placement()]).dataobj)
    expected = np.sqrt((2.5**2 + 2.0**2) / 2)
    assert values[:, 5:30, :] == pytest.approx(expected, rel=1e-3)
