from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nipype.pipeline.engine import Workflow

from qmri_bidsapp.bids.derivatives import check_output_dir, relative_path, save_image, save_json, save_table
from qmri_bidsapp.errors import OutputError
from qmri_bidsapp.workflows.base import workflow_name


def test_names_follow_the_order_of_entities() -> None:
    name = relative_path(
        "01",
        {"run": "1", "ses": "a"},
        datatype="dwi",
        suffix="dwimap",
        extra={"desc": "nlls", "param": "fa", "model": "tensor"},
    )
    assert name == "sub-01/ses-a/dwi/sub-01_ses-a_run-1_model-tensor_param-fa_desc-nlls_dwimap.nii.gz"


def test_labels_may_hold_a_plus() -> None:
    """As BIDS allows since 1.9."""
    name = relative_path("1+2", {"acq": "a+b"}, datatype="anat", suffix="T1map")
    assert name == "sub-1+2/anat/sub-1+2_acq-a+b_T1map.nii.gz"
    assert Workflow(name=workflow_name("1+2")).name == "sub_1_2_wf"


@pytest.mark.parametrize("extra", [{"desc": "a-b"}, {"colour": "red"}], ids=["label", "entity"])
def test_bad_names_are_refused(extra: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"only letters|Unknown"):
        relative_path("01", {}, datatype="anat", suffix="T1map", extra=extra)


def test_an_unchanged_image_is_left_untouched(tmp_path: Path) -> None:
    source = tmp_path / "map.nii"
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.float32), np.eye(4)), source)
    out, name = tmp_path / "out", "sub-01/anat/sub-01_T1map.nii.gz"
    save_image(source, out, name, {"Units": "s", "Value": float("nan")})
    assert json.loads((out / name.replace(".nii.gz", ".json")).read_text()) == {"Units": "s", "Value": None}
    first = (out / name).stat()
    save_image(source, out, name, {"Units": "s", "Value": float("nan")})
    assert (out / name).stat().st_mtime_ns == first.st_mtime_ns
    assert np.asarray(nib.load(out / name).dataobj).sum() == 27
    assert not list(out.rglob(".tmp*"))


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_json({"a": 1}, tmp_path, "x.json")

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        save_json({"a": 2}, tmp_path, "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


def test_missing_table_cells(tmp_path: Path) -> None:
    save_table([{"a": None, "b": float("nan"), "c": 1.5}], tmp_path, "t.tsv")
    assert (tmp_path / "t.tsv").read_text() == "a\tb\tc\nn/a\tn/a\t1.5\n"


def test_output_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        check_output_dir(tmp_path / "file" / "out", tmp_path / "bids")
    (tmp_path / "bids").mkdir()
    with pytest.raises(OutputError, match="mix"):
        check_output_dir(tmp_path, tmp_path / "bids")
    check_output_dir(tmp_path / "bids" / "derivatives" / "qmri", tmp_path / "bids")
