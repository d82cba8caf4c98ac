"""Series of a head: lost slices are replaced, drift is divided out, and a sound series is left alone."""

import nibabel as nib
import numpy as np
import pytest
from helpers.epi import SHAPE, head

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.evaluation.standards import shells
from qmri_bidsapp.preprocess.drift import correct_drift
from qmri_bidsapp.preprocess.outliers import replace_lost_slices

SIGMA = 15.0
PROTOCOL = shells(6, (1000.0, 24))


def clean() -> np.ndarray:
    b, g = np.asarray(PROTOCOL.b_value), np.asarray(PROTOCOL.direction)
    axis = np.array([0.6, 0.64, 0.48])
    return head()[..., None] * np.exp(-b * (0.5e-3 + 1e-3 * (g @ axis) ** 2))


@pytest.fixture(scope="module")
def noisy() -> np.ndarray:
    rng = np.random.default_rng(0)
    signal = clean()
    return np.hypot(*(signal * part + SIGMA * rng.standard_normal(signal.shape) for part in (1, 0)))


def series(data: np.ndarray) -> nib.Nifti1Image:
    return nib.Nifti1Image(data.astype(np.float32), np.diag([3.0, 3.0, 3.0, 1.0]))


def test_a_sound_series_is_left_alone(noisy: np.ndarray) -> None:
    image = series(noisy)
    same, lost, note = replace_lost_slices(image, PROTOCOL)
    assert same is image
    assert not lost.any()
    assert not note
    assert correct_drift(image, PROTOCOL)[0] is image


def test_lost_slices_are_replaced(noisy: np.ndarray) -> None:
    weighted = np.flatnonzero(np.asarray(PROTOCOL.b_value) > 0)
    true = {(8, int(weighted[3])), (12, int(weighted[10])), (9, int(weighted[17]))}
    broken = noisy.copy()
    for level, volume in true:
        broken[:, :, level, volume] *= 0.4
    found, lost, note = replace_lost_slices(series(broken), PROTOCOL)
    assert {tuple(map(int, place)) for place in np.argwhere(lost)} == true
    assert note.startswith("3 of ")
    inside = head() > 300
    for level, volume in true:
        where = inside[:, :, level]
        error = (np.asarray(found.dataobj)[:, :, level, volume] - clean()[:, :, level, volume])[where]
        assert np.sqrt(np.mean(error**2)) < 1.5 * SIGMA
        before = (broken[:, :, level, volume] - clean()[:, :, level, volume])[where]
        assert np.sqrt(np.mean(before**2)) > 5 * SIGMA


def test_few_volumes_are_not_judged() -> None:
    few = Diffusion(PROTOCOL.b_value[:9], PROTOCOL.direction[:9])
    image = series(np.full((*SHAPE, 9), 100.0))
    same, _, note = replace_lost_slices(image, few)
    assert same is image
    assert "no shell has 8 volumes" in note


def test_drift_is_divided_out(noisy: np.ndarray) -> None:
    """With the b0s spread over the series, as they are acquired for it."""
    order = np.argsort(np.concatenate([np.linspace(0, 1, 6), np.linspace(0.01, 0.99, 24)]), kind="stable")
    protocol = PROTOCOL.select(order)
    falling = 1 - 0.06 * np.linspace(0, 1, 30)
    corrected, drift = correct_drift(series(noisy[..., order] * falling), protocol)
    assert drift.is_corrected
    ratio = np.asarray(corrected.dataobj) / noisy[..., order]
    np.testing.assert_allclose(np.median(ratio[head() > 300], axis=0), 1, atol=0.006)
