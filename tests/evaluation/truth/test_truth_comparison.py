"""Maps of an output folder against the truth of its data set."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.truth import AFFINE, SHAPE, save, write_output

from qmri_bidsapp.errors import InputMissingError, NotComparableError
from qmri_bidsapp.evaluation.truth.comparison import compare_run
from qmri_bidsapp.evaluation.truth.files import find_truth, true_map

VOXELS = int(np.prod(SHAPE))


def test_regions_flags_and_maps_without_truth(tmp_path: Path) -> None:
    out, data = write_output(tmp_path)
    truth = find_truth(out)
    assert truth == data.resolve() / "derivatives" / "truth"
    found = compare_run(out, truth)
    rows = {row.region: row for row in found.maps}
    # There is no fluid, and no true value in the region that no model describes.
    assert list(rows) == ["GM", "WM"]
    assert rows["GM"].n_voxels + rows["WM"].n_voxels == VOXELS - 27
    assert rows["GM"].n_usable == rows["GM"].n_voxels
    assert rows["WM"].n_usable == rows["WM"].n_voxels - 1
    assert found.failures == []
    assert found.is_judged
    flags = {row.region: (row.is_found, row.n_flagged) for row in found.flags}
    assert flags == {"GM": (False, 0), "WM": (False, 1), "CSF": (False, 0), "unmodelled": (True, 27)}
    assert found.without_truth == ("sub-01/anat/sub-01_R1map.nii.gz",)


def test_json_has_plain_numbers_and_no_nan(tmp_path: Path) -> None:
    out, _ = write_output(tmp_path)
    found = compare_run(out, find_truth(out)).to_dict()
    assert found["passed"] is True
    row = next(row for row in found["maps"] if row["region"] == "WM")
    assert row["share_usable"] == pytest.approx(row["n_usable"] / row["n_voxels"])
    assert row["range_coverage"] == pytest.approx(0.9, abs=0.03)
    assert next(row for row in found["flags"] if row["region"] == "CSF")["share_flagged"] is None


def test_wrong_standard_deviations_fail_in_both_tissues(tmp_path: Path) -> None:
    out, _ = write_output(tmp_path, scale=0.6)
    failures = compare_run(out, find_truth(out)).failures
    assert [text.split(": ")[0] for text in failures] == [f"sub-01, IRT1, t1, t1, {name}" for name in ("GM", "WM")]
    assert all("range holds" in text and "interval holds" in text for text in failures)


def test_a_participant_needs_maps_and_truth(tmp_path: Path) -> None:
    out, data = write_output(tmp_path)
    truth = data / "derivatives" / "truth"
    shutil.copytree(truth / "sub-01", truth / "sub-02")
    with pytest.raises(InputMissingError, match="sub-02 has no maps"):
        compare_run(out, truth)
    assert compare_run(out, truth, ("01",)).maps
    with pytest.raises(InputMissingError, match="sub-07 has no true maps"):
        compare_run(out, truth, ("07",))
    write_output(tmp_path, subject="03")
    shutil.rmtree(truth / "sub-03")
    with pytest.raises(InputMissingError, match="sub-03 has no true maps"):
        compare_run(out, truth, ("01", "03"))


def test_another_grid_is_refused(tmp_path: Path) -> None:
    out, data = write_output(tmp_path)
    name = data / "derivatives/truth/sub-01/anat/sub-01_T1map.nii.gz"
    values = np.asarray(nib.load(name).dataobj)
    save(name, values[:-1])
    with pytest.raises(NotComparableError, match="share a grid"):
        compare_run(out, find_truth(out))
    shifted = AFFINE.copy()
    shifted[0, 3] = 1.0
    save(name, values, shifted)
    with pytest.raises(NotComparableError, match=r"sub-01_T1map.nii.gz has .* another position"):
        compare_run(out, find_truth(out))


def test_an_unreadable_truth_is_named(tmp_path: Path) -> None:
    out, data = write_output(tmp_path)
    name = data / "derivatives/truth/sub-01/anat/sub-01_T1map.nii.gz"
    name.write_bytes(name.read_bytes()[:200])
    with pytest.raises(NotComparableError, match=r"sub-01_T1map.nii.gz cannot be read"):
        compare_run(out, find_truth(out))


def test_without_truth_or_maps(tmp_path: Path) -> None:
    out, data = write_output(tmp_path)
    (data / "derivatives/truth/sub-01/anat/sub-01_T1map.nii.gz").unlink()
    with pytest.raises(InputMissingError, match="no true map for any map"):
        compare_run(out, data / "derivatives" / "truth")
    shutil.rmtree(data / "derivatives")
    with pytest.raises(InputMissingError, match=r"has no derivatives.truth; name the folder .* --truth"):
        find_truth(out)
    with pytest.raises(InputMissingError, match="There is no folder"):
        compare_run(out, data / "derivatives" / "truth")
    (data / "derivatives" / "truth").mkdir(parents=True)
    with pytest.raises(InputMissingError, match="holds no maps"):
        compare_run(tmp_path / "empty", data / "derivatives" / "truth")
    with pytest.raises(InputMissingError, match="must name the data set"):
        find_truth(tmp_path / "empty")


def test_tissues_of_the_app_serve_where_the_truth_has_none(tmp_path: Path) -> None:
    out, data = write_output(tmp_path)
    (data / "derivatives/truth/sub-01/anat/sub-01_dseg.nii.gz").unlink()
    found = compare_run(out, find_truth(out))
    assert [row.region for row in found.maps] == ["brain"]
    assert found.is_judged


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sub-1/anat/sub-1_desc-nllst2_S0map.nii.gz", "sub-1/anat/sub-1_S0map.nii.gz"),
        ("sub-1/dwi/sub-1_run-1_param-md_desc-wls_dwimap.nii.gz", "sub-1/dwi/sub-1_run-1_param-md_dwimap.nii.gz"),
    ],
)
def test_name_of_the_truth_of_a_map(tmp_path: Path, name: str, expected: str) -> None:
    assert true_map(tmp_path, name) is None
    (tmp_path / expected).parent.mkdir(parents=True)
    (tmp_path / expected).touch()
    assert true_map(tmp_path, name) == tmp_path / expected
