"""Nodes of preprocessing on tiny images: each saves what its function returns, with the notes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.images.volumes import load_image
from qmri_bidsapp.interfaces import diffusion
from qmri_bidsapp.interfaces import preprocess as nodes
from qmri_bidsapp.preprocess.dwi import denoise
from qmri_bidsapp.preprocess.masks import series_mask

SHAPE = (10, 10, 6)
N_VOLUMES = 24
#: Volumes without weighting.
GRADIENTS = {"b_value": [0.0] * N_VOLUMES, "direction": [[0.0, 0.0, 0.0]] * N_VOLUMES}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A bright block in a series of images, a mask of it, and two images of the series."""
    rng = np.random.default_rng(0)
    block = np.zeros(SHAPE, np.float32)
    block[2:8, 2:8, 1:5] = 1
    series = 100 * block[..., None] + rng.normal(0, 2, (*SHAPE, N_VOLUMES)) + 10
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    images = {"series": series, "mask": block, "first": series[..., 0], "second": series[..., 1], "field": block + 1}
    for name, values in images.items():
        nib.save(nib.Nifti1Image(values.astype(np.float32), affine), tmp_path / f"{name}.nii")
    return {name: str(tmp_path / f"{name}.nii") for name in images}


def run(node: Any, tmp_path: Path) -> Any:
    folder = tmp_path / "node"
    folder.mkdir(exist_ok=True)
    return node.run(cwd=str(folder)).outputs


def read(path: str) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_images_are_imported_in_order(files: dict[str, str], tmp_path: Path) -> None:
    found = run(nodes.ImportImages(in_files=[files["second"], files["first"]], ndim=3), tmp_path)
    np.testing.assert_array_equal(read(found.out_file), read(files["series"])[..., [1, 0]])


def test_polarity_is_restored_from_imaginary_parts(files: dict[str, str], tmp_path: Path) -> None:
    names = [files["first"], files["second"]]
    found = run(
        nodes.RestorePolarity(in_files=names, complement=names, part="imag", inversion_time=[0.1, 0.9]), tmp_path
    )
    assert read(found.out_file).shape == (*SHAPE, 2)
    assert isinstance(found.notes, list)


def test_thin_series_are_not_aligned(files: dict[str, str], tmp_path: Path) -> None:
    found = run(nodes.AlignSeries(in_file=files["series"]), tmp_path)
    np.testing.assert_array_equal(read(found.out_file), read(files["series"]))
    assert found.motion == [[0.0] * 6] * N_VOLUMES
    assert "Alignment left out: 6 slices" in found.notes[0]
    assert found.steps == []


def test_diffusion_directions_come_with_the_alignment(files: dict[str, str], tmp_path: Path) -> None:
    direction = [[1.0, 0.0, 0.0]] * N_VOLUMES
    node = diffusion.AlignDiffusion(in_file=files["series"], b_value=[1000.0] * N_VOLUMES, direction=direction)
    found = run(node, tmp_path)
    assert found.direction == direction
    assert found.motion == [[0.0] * 6] * N_VOLUMES
    assert "Alignment left out" in found.notes[0]


def test_mask_is_that_of_the_function(files: dict[str, str], tmp_path: Path) -> None:
    found = run(nodes.SeriesMask(in_file=files["series"]), tmp_path)
    expected = series_mask(load_image(files["series"], ndim=4))
    np.testing.assert_array_equal(read(found.out_mask), np.asarray(expected.dataobj))


def test_denoising_saves_the_noise_beside_the_series(files: dict[str, str], tmp_path: Path) -> None:
    found = run(
        diffusion.DenoiseDiffusion(n_volumes=[N_VOLUMES], in_file=files["series"], in_mask=files["mask"], **GRADIENTS),
        tmp_path,
    )
    series, mask = load_image(files["series"], ndim=4), load_image(files["mask"], ndim=3)
    protocol = Diffusion(tuple(GRADIENTS["b_value"]), tuple(map(tuple, GRADIENTS["direction"])))
    expected = denoise(series, protocol, mask=mask)
    np.testing.assert_array_equal(read(found.out_file), np.asarray(expected.image.dataobj))
    np.testing.assert_array_equal(read(found.noise_std), expected.noise_std)
    assert found.floor_removed
    assert found.notes == []
    assert found.steps == ["Denoised by MP-PCA (Veraart et al. 2016); noise floor corrected (Koay and Basser 2006)"]


def test_the_method_of_denoising_is_named(files: dict[str, str], tmp_path: Path) -> None:
    inputs = {"in_file": files["series"], "in_mask": files["mask"], **GRADIENTS}
    node = diffusion.DenoiseDiffusion(n_volumes=[N_VOLUMES], method="patch2self", **inputs)
    found = run(node, tmp_path)
    assert found.steps == [
        "Denoised by Patch2Self (Fadnavis et al. 2020); noise floor corrected (Koay and Basser 2006)"
    ]
    assert np.isfinite(read(found.noise_std)[read(files["mask"]) > 0]).all()


def test_without_denoising_the_noise_is_measured_and_the_images_stay(files: dict[str, str], tmp_path: Path) -> None:
    node = diffusion.DenoiseDiffusion(
        n_volumes=[N_VOLUMES], in_file=files["series"], in_mask=files["mask"], skip=["denoise"], **GRADIENTS
    )
    found = run(node, tmp_path)
    np.testing.assert_array_equal(read(found.out_file), read(files["series"]))
    noise, mask = read(found.noise_std), read(files["mask"]) > 0
    # The series has noise of standard deviation 2; MP-PCA finds a little less.
    assert np.median(noise[mask]) == pytest.approx(2, rel=0.1)
    assert not found.floor_removed
    assert found.steps == []


def test_the_noise_floor_stays_on_request(files: dict[str, str], tmp_path: Path) -> None:
    inputs = {"in_file": files["series"], "in_mask": files["mask"], **GRADIENTS}
    corrected = read(run(diffusion.DenoiseDiffusion(n_volumes=[N_VOLUMES], **inputs), tmp_path).out_file)
    found = run(diffusion.DenoiseDiffusion(n_volumes=[N_VOLUMES], **inputs, skip=["noise-floor"]), tmp_path)
    assert not found.floor_removed
    # Magnitudes of 10 and 110 with noise of 2: the floor raises them by sigma^2 / (2 S).
    inside, difference = read(files["mask"]) > 0, (read(found.out_file) - corrected).mean(axis=3)
    assert difference[inside].mean() == pytest.approx(4 / 220, rel=0.3)


def test_small_images_are_not_unringed(files: dict[str, str], tmp_path: Path) -> None:
    found = run(
        diffusion.UnringDiffusion(in_file=files["series"], in_mask=files["mask"], is_denoised=True, **GRADIENTS),
        tmp_path,
    )
    np.testing.assert_array_equal(read(found.out_file), read(files["series"]))
    assert "Unringing left out: 10 x 10 voxels" in found.notes[0]


def test_field_is_brought_to_the_grid(files: dict[str, str], tmp_path: Path) -> None:
    node = nodes.ResampleFieldmap(in_file=files["field"], reference=files["series"], factor=1.0)
    found = run(node, tmp_path)
    np.testing.assert_allclose(read(found.out_file)[4, 4, 3], 2.0, rtol=1e-6)
