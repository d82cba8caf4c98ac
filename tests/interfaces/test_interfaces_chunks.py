"""A fit of an image in chunks is the fit of its voxels."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.evaluation.standards import shells, simulate, standard
from qmri_bidsapp.interfaces import fitting
from qmri_bidsapp.registry import get_estimator, get_model
from qmri_bidsapp.uncertainty.moderation import moderate

SHAPE = (6, 5, 7)


@pytest.fixture
def image(tmp_path: Path) -> tuple[Path, np.ndarray]:
    signals = simulate(get_model("t2"), standard("t2"), int(np.prod(SHAPE))).reshape(*SHAPE, -1)
    nib.save(nib.Nifti1Image(signals, np.eye(4)), tmp_path / "x.nii")
    return tmp_path / "x.nii", signals


@pytest.mark.parametrize("known_noise", [True, False], ids=["known noise", "unknown noise"])
def test_chunks_change_nothing(image, monkeypatch, known_noise: bool):
    file, signals = image
    rng = np.random.default_rng(0)
    mask = rng.random(SHAPE) > 0.3
    noise = rng.uniform(10, 30, SHAPE).astype(np.float32) if known_noise else None
    monkeypatch.setattr(fitting, "CHUNK_SIZE", 17)
    maps = fitting.fit_volume(get_estimator("nlls")(get_model("t2")), file, mask, standard("t2"), noise_std=noise)
    whole = get_estimator("nlls")(get_model("t2")).fit(standard("t2"))
    expected = whole.predict(signals[mask], noise_std=None if noise is None else noise[mask])
    expected = moderate(expected, get_model("t2"), standard("t2"))
    np.testing.assert_allclose(maps.estimate, expected.estimate, rtol=1e-4)
    np.testing.assert_allclose(maps.std, expected.std, rtol=1e-3)
    np.testing.assert_array_equal(maps.status, expected.status)
    assert (maps.parameters, maps.std_kind) == (expected.parameters, expected.std_kind)


def test_a_noise_of_zero_is_not_known(tmp_path: Path):
    """As denoising finds it next to voxels that a scanner has set to zero; repeated b0 volumes tell it then."""
    protocol, model = shells(4, (1000.0, 30)), get_model("tensor")
    signals = simulate(model, protocol, int(np.prod(SHAPE))).reshape(*SHAPE, -1)
    nib.save(nib.Nifti1Image(signals, np.eye(4)), tmp_path / "x.nii")
    first, second = (
        fitting.fit_volume(
            get_estimator("wls")(model),
            tmp_path / "x.nii",
            np.ones(SHAPE, dtype=bool),
            protocol,
            noise_std=np.full(SHAPE, noise, dtype=np.float32),
        )
        for noise in (0.0, np.nan)
    )
    assert (first.std[:, 0] > 0).all()
    np.testing.assert_array_equal(first.std, second.std)


def test_empty_mask(image):
    with pytest.raises(InputError, match=r"brain mask of x\.nii is empty"):
        fitting.fit_volume(
            get_estimator("nlls")(get_model("t2")), image[0], np.zeros(SHAPE, dtype=bool), standard("t2")
        )
