"""Unringing against the truth, against dipy's, and on what must not change."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.special import sici

from qmri_bidsapp.evaluation.truncation import averaged, ellipses, truncated
from qmri_bidsapp.preprocess.unringing import remove_ringing, shift_operators, unring_lines

SHARED = Path(__file__).parents[2].parent / "shared"


def error(image: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((image - truth)[truth > 0.1 * truth.max()] ** 2)))


def unringed(image: np.ndarray) -> np.ndarray:
    return remove_ringing(image[..., None].astype(np.float32))[..., 0]


def peer(image: np.ndarray) -> np.ndarray:
    from dipy.denoise.gibbs import gibbs_removal

    return gibbs_removal(image.astype(np.float32), inplace=False)


@pytest.fixture(scope="module")
def objects():
    """Return ringing magnitudes with a little noise, and what they should show."""
    fine = ellipses(360, 3)
    truth, rng = averaged(fine, 5), np.random.default_rng(1)
    noise = rng.standard_normal((2, *truth.shape)) * 0.005 * truth.max()
    return np.abs(truncated(fine, 5) + noise[0] + 1j * noise[1]), truth


def test_nearer_to_the_truth_than_dipy(objects):
    image, truth = objects
    assert error(unringed(image), truth) < 0.75 * error(image, truth)
    assert error(unringed(image), truth) < 0.75 * error(peer(image), truth)


def test_removes_what_dipy_removes(objects):
    """On the plateaus beside edges; at edges dipy's larger shifts sharpen as well."""
    image, truth = objects
    change = [method(image) - image for method in (unringed, peer)]
    flat = np.hypot(*np.gradient(truth, axis=(0, 1))) < 0.02 * truth.max()
    inside = flat & (truth > 0.1 * truth.max())
    assert np.corrcoef(change[0][inside], change[1][inside])[0, 1] > 0.8


@pytest.mark.parametrize("n", [48, 49])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_step_loses_its_ringing(n, axis):
    """A step sampled after truncation of k-space is 1/2 + Si(pi y) / pi at y voxels from the edge."""
    place = np.arange(n)
    line = 50 + 100 / np.pi * (sici(np.pi * (place - 14.1))[0] - sici(np.pi * (place - 33.9))[0])
    image = np.moveaxis(np.tile(line[:, None, None], (1, 40, 1)), 0, axis)
    plateau = (slice(None),) * axis + (slice(16, 33),)
    result = unringed(image)
    assert np.ptp(image[plateau]) > 8
    assert np.ptp(result[plateau]) < np.ptp(image[plateau]) / 6
    assert np.ptp(result, axis=1 - axis).max() < 1e-3


def test_shifts_are_exact_for_what_k_space_holds():
    n, frequency = 20, 3
    line = torch.cos(2 * torch.pi * frequency * torch.arange(n) / n)[:, None]
    for shift, operator in shift_operators(n):
        expected = np.cos(2 * np.pi * frequency * (np.arange(-4, n + 4) + shift) / n)
        np.testing.assert_allclose((operator @ line)[:, 0].numpy(), expected, atol=1e-5)


def test_flat_images_and_chunks_of_lines_change_nothing(monkeypatch, objects):
    np.testing.assert_allclose(unringed(np.full((34, 40, 2), 7.0)), 7, rtol=1e-5)
    lines = torch.from_numpy(objects[0].reshape(len(objects[0]), -1)).float()
    whole = unring_lines(lines, shift_operators(len(lines)))
    monkeypatch.setattr("qmri_bidsapp.preprocess.unringing.CHUNK", 10 * len(lines))
    np.testing.assert_allclose(unring_lines(lines, shift_operators(len(lines))), whole, atol=0.5)


def test_volumes_and_slices_do_not_influence_each_other(objects):
    image = objects[0]
    series = np.stack([image, 0.5 * image], axis=-1).astype(np.float32)
    together = remove_ringing(series)
    np.testing.assert_allclose(together[..., 1], 0.5 * together[..., 0], rtol=1e-3, atol=0.5)
    np.testing.assert_allclose(together[:, :, 1:2, :1], remove_ringing(series[:, :, 1:2, :1]), atol=0.5)


def test_a_head_comes_nearer_to_the_truth():
    path = SHARED / "data/bids-real/sub-head01/anat/sub-head01_T1w.nii.gz"
    if not path.exists():
        pytest.skip("needs ../shared/data/bids-real")
    head = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj, dtype=float)[2:-2, :, 60:130:10]
    truth, image = averaged(head, 3), np.abs(truncated(head, 3))
    assert error(unringed(image), truth) < 0.97 * error(image, truth)
    assert error(unringed(image), truth) < 0.7 * error(peer(image), truth)
