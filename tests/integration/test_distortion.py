"""A pair of diffusion files of opposite phase encoding through the app, with the truth known."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.epi import DIFFUSIVITY, field, head, inside, write_pair

from qmri_bidsapp.cli.app.run import main

OPTIONS = ("--models", "tensor", "--no-certificate", "--skip-bids-validation")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pair")
    write_pair(root / "raw")
    arguments = [str(root / "raw"), str(root / "out"), "participant", "--work-dir", str(root / "work"), *OPTIONS]
    assert main(arguments) == 0
    return root / "out" / "sub-01"


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_one_series_without_distortion(run: Path) -> None:
    series, raw = read(run / "dwi" / "sub-01_desc-preproc_dwi.nii.gz"), run.parents[1] / "raw" / "sub-01" / "dwi"
    assert series.shape == (*head().shape, 24)
    strong = inside() & (field() > 20)
    for first, name in ((0, "dir-AP"), (12, "dir-PA")):
        before = read(raw / f"sub-01_{name}_dwi.nii.gz")[..., 0][strong] - head()[strong]
        after = series[..., first][strong] - head()[strong]
        assert np.sqrt(np.nanmean(after**2)) < 0.45 * np.sqrt(np.mean(before**2))


def test_the_field_is_saved(run: Path) -> None:
    found = read(run / "fmap" / "sub-01_desc-preproc_fieldmap.nii.gz")
    strong = inside() & (field() > 20)
    assert np.median(np.abs(found - field())[strong]) < 5
    moved = read(run / "fmap" / "sub-01_desc-displacement_fieldmap.nii.gz")
    np.testing.assert_allclose(moved, -0.05 * found, atol=1e-4)
    sidecar = json.loads((run / "fmap" / "sub-01_desc-preproc_fieldmap.json").read_text())
    assert sidecar["Units"] == "Hz"


def test_what_was_joined_and_done_is_said(run: Path) -> None:
    sidecar = json.loads((run / "dwi" / "sub-01_desc-preproc_dwi.json").read_text())
    assert [source.rpartition("/")[2] for source in sidecar["Sources"]] == [
        "sub-01_dir-AP_dwi.nii.gz",
        "sub-01_dir-PA_dwi.nii.gz",
    ]
    assert sidecar["PreprocessingSteps"][0].startswith("Susceptibility distortion corrected")
    assert "PhaseEncodingDirection" not in sidecar
    report = (run.parent / "sub-01.html").read_text()
    assert "dir-AP_dwi and dir-PA_dwi are one series" in report
    assert "by the opposite phase encoding of its files" in report


def test_diffusivity_and_its_errors(run: Path) -> None:
    """Also where both images were distorted by three voxels."""
    estimate, std = (
        read(run / "dwi" / f"sub-01_model-tensor_param-md_desc-{name}_dwimap.nii.gz") for name in ("wls", "wlsstd")
    )
    inner = inside() & (read(run / "dwi" / "sub-01_desc-brain_mask.nii.gz") > 0)
    error = estimate[inner] - DIFFUSIVITY
    assert abs(np.nanmedian(error)) < 0.01 * DIFFUSIVITY
    z = error / std[inner]
    assert 0.93 < np.mean(np.abs(z[np.isfinite(z)]) < 1.96) < 0.99


def test_without_the_correction_files_stay_apart(tmp_path: Path) -> None:
    write_pair(tmp_path / "raw")
    arguments = [str(tmp_path / "raw"), str(tmp_path / "out"), "participant", "--work-dir", str(tmp_path / "work")]
    assert main([*arguments, *OPTIONS, "--skip", "distortion", "align"]) == 0
    made = {path.name for path in (tmp_path / "out" / "sub-01" / "dwi").glob("*preproc_dwi.nii.gz")}
    assert made == {"sub-01_dir-AP_desc-preproc_dwi.nii.gz", "sub-01_dir-PA_desc-preproc_dwi.nii.gz"}
    assert not (tmp_path / "out" / "sub-01" / "fmap").exists()
