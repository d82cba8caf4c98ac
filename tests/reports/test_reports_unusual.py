"""Unusual regions in the report of a participant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from qmri_bidsapp.bids.record import FitRecord, MapRecord, SeriesRecord, SubjectRecord
from qmri_bidsapp.bids.usable_record import UsableRecord
from qmri_bidsapp.reports.unusual import unusual_text

SHAPE = (36, 42, 30)
AFFINE = np.array([[4.5, 0, 0, -78.75], [0, 4.5, 0, -92.25], [0, 0, 4.5, -65.25], [0, 0, 0, 1.0]])


def save(path: Path, data: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(data, AFFINE), path)


@pytest.fixture
def record(tmp_path: Path) -> SubjectRecord:
    """A head of white matter whose diffusivity is lower in a small region on the left."""
    distance = np.linalg.norm(np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")), axis=0)
    tissues = np.where(distance < 0.9, 2, 0).astype(np.uint8)
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.standard_normal(SHAPE), 2)
    values = 2.2e-3 * (1 + 0.05 * smooth / smooth.std()) + 0.12e-3 * rng.standard_normal(SHAPE)
    values[9:12, 18:22, 16:19] -= 0.45e-3
    save(tmp_path / "map.nii.gz", np.where(tissues, values, np.nan).astype(np.float32))
    save(tmp_path / "std.nii.gz", np.full(SHAPE, 0.12e-3, np.float32))
    save(tmp_path / "usable.nii.gz", (tissues > 0).astype(np.uint8))
    save(tmp_path / "tissues.nii.gz", tissues)
    item = MapRecord("diffusivity", "Intrinsic diffusivity", "mm2/s", None, "map.nii.gz", "std.nii.gz")
    series = SeriesRecord(name="dwi", kind="dwi", entities={}, files=("a.nii.gz",), tissues="tissues.nii.gz")
    fit = FitRecord(
        series="dwi",
        kind="dwi",
        model="smt",
        model_title="Spherical mean",
        model_reference="",
        estimator="nlls",
        estimator_title="Least squares",
        std_kind="",
        status="status.nii.gz",
        maps=(item,),
    )
    usable = UsableRecord("dwi", "smt", "nlls", "usable.nii.gz")
    return SubjectRecord("01", "0", series=(series,), fits=(fit,), usables=(usable,))


def test_a_region_is_named_with_map_place_size_and_difference(tmp_path: Path, record: SubjectRecord) -> None:
    text, (sentence,) = unusual_text(tmp_path, record)
    assert "unusual region of" in sentence
    assert "left" in sentence
    assert text.count("<tr>") == 2
    assert "<td>dwi, Spherical mean: Intrinsic diffusivity</td>" in text
    assert "<td>left" in text
    assert "µm²/ms</td><td>-0." in text
    assert "5% of heads" in text


def test_without_a_region_the_report_says_so(tmp_path: Path, record: SubjectRecord) -> None:
    image = nib.load(tmp_path / "map.nii.gz")
    values = image.get_fdata()
    values[9:12, 18:22, 16:19] += 0.45e-3
    save(tmp_path / "map.nii.gz", values)
    text, sentences = unusual_text(tmp_path, record)
    assert "No region is unusual" in text
    assert not sentences


def test_what_cannot_be_searched_is_named_with_the_reason(tmp_path: Path, record: SubjectRecord) -> None:
    alone = replace(record, series=(replace(record.series[0], tissues=None),))
    text, _ = unusual_text(tmp_path, alone)
    assert "Not searched: dwi smt diffusivity: there is no segmentation of tissues, which needs a T1w." in text
    assert "No region" not in text
    (tmp_path / "std.nii.gz").unlink()
    assert "not in the output folder: std.nii.gz" in unusual_text(tmp_path, record)[0]


def test_other_grids_are_named(tmp_path: Path, record: SubjectRecord) -> None:
    save(tmp_path / "tissues.nii.gz", np.ones((3, 3, 3), np.uint8))
    assert "one grid" in unusual_text(tmp_path, record)[0]


def test_amplitudes_are_not_searched(tmp_path: Path, record: SubjectRecord) -> None:
    fit = record.fits[0]
    amplitude = replace(fit, maps=(replace(fit.maps[0], parameter="s0", unit="arbitrary"),))
    assert unusual_text(tmp_path, replace(record, fits=(amplitude,))) == ("", [])
