"""A fit of a series in chunks is the fit of its voxels."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.errors import InputError, UsageError
from qmri_bidsapp.evaluation.standards import shells, simulate, standard
from qmri_bidsapp.fitting import series
from qmri_bidsapp.fitting.noise import SeriesNoise
from qmri_bidsapp.fitting.series import fit_series, make_estimator, options_of
from qmri_bidsapp.images.volumes import open_series
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
    monkeypatch.setattr(series, "CHUNK_SIZE", 17)
    data, _ = open_series(file)
    known = SeriesNoise.of_series(data, mask, standard("t2"), measured=noise)
    maps = fit_series(get_estimator("nlls")(get_model("t2")), data, mask, standard("t2"), noise=known).maps
    whole = get_estimator("nlls")(get_model("t2")).fit(standard("t2"))
    expected = whole.predict(signals[mask], noise_std=None if noise is None else noise[mask])
    expected = moderate(expected, get_model("t2"), standard("t2"))
    np.testing.assert_allclose(maps.estimate, expected.estimate, rtol=1e-4)
    np.testing.assert_allclose(maps.std, expected.std, rtol=1e-3)
    np.testing.assert_array_equal(maps.status, expected.status)
    assert (maps.parameters, maps.std_kind) == (expected.parameters, expected.std_kind)


def test_a_noise_of_zero_is_unknown():
    """Denoising finds it next to voxels that a scanner has set to zero; what varies within shells is used then."""
    protocol, model = shells(4, (1000.0, 30)), get_model("tensor")
    signals = simulate(model, protocol, int(np.prod(SHAPE))).reshape(*SHAPE, -1)
    mask = np.ones(SHAPE, dtype=bool)
    noises = (
        SeriesNoise.of_series(signals, mask, protocol, measured=np.full(SHAPE, noise, dtype=np.float32))
        for noise in (0.0, np.nan)
    )
    first, second = (
        fit_series(get_estimator("wls")(model), signals, mask, protocol, noise=noise).maps for noise in noises
    )
    assert (first.std[:, 0] > 0).all()
    np.testing.assert_array_equal(first.std, second.std)


def test_empty_mask(image):
    with pytest.raises(InputError, match="The mask is empty"):
        fit_series(get_estimator("nlls")(get_model("t2")), image[1], np.zeros(SHAPE, dtype=bool), standard("t2"))


def test_a_misspelt_option_lists_those_that_exist():
    assert "training" in options_of(get_estimator("mlp"))
    with pytest.raises(UsageError, match=r"Estimator mlp has no option trainig; options: .*training"):
        make_estimator("t2", "mlp", options={"trainig": 3})


def test_an_estimator_of_other_models_is_refused():
    with pytest.raises(UsageError, match="Estimator wls cannot be used with model noddi"):
        make_estimator("noddi", "wls")
