"""One definition says which voxels count."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.bids.usable_record import UsableRecord
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.fitting.usable import definition, unlike_voxels, usable_voxels
from qmri_bidsapp.interfaces.derivatives import SaveUsable
from qmri_bidsapp.uncertainty.inverse import Trust
from qmri_bidsapp.uncertainty.ood import Reason

#: One row for each voxel: status, trust, flag, and whether it is usable and unlike.
VOXELS = (
    (Status.OK, Trust.RANGE_GIVEN, Reason.TYPICAL, True, False),
    (Status.OK, Trust.WIDE, Reason.TYPICAL, True, False),
    (Status.OK, Trust.UNLIKE, Reason.TYPICAL, False, True),
    (Status.OK, Trust.RANGE_GIVEN, Reason.MISFIT, False, True),
    (Status.OK, Trust.NO_ESTIMATE, Reason.NO_ESTIMATE, False, False),
    (Status.AT_BOUND, Trust.RANGE_GIVEN, Reason.TYPICAL, False, False),
    (Status.NOT_CONVERGED, Trust.RANGE_GIVEN, Reason.TYPICAL, False, False),
    (Status.FAILED, Trust.NO_ESTIMATE, Reason.NO_ESTIMATE, False, False),
    (Status.OUTSIDE, Trust.OUTSIDE, Reason.OUTSIDE, False, False),
)
STATUS, TRUST, FLAG, USABLE, UNLIKE = (np.array(column) for column in zip(*VOXELS, strict=True))


def test_usable_voxels() -> None:
    np.testing.assert_array_equal(usable_voxels(STATUS, TRUST, FLAG), USABLE)
    np.testing.assert_array_equal(usable_voxels(STATUS), STATUS == Status.OK)
    np.testing.assert_array_equal(unlike_voxels(TRUST, FLAG), UNLIKE)


def test_the_node_writes_the_mask_with_its_definition_and_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {}
    for name, values in (("status", STATUS), ("trust", TRUST), ("flag", FLAG)):
        files[name] = str(tmp_path / f"{name}.nii")
        nib.save(nib.Nifti1Image(values.reshape(3, 3, 1).astype(np.uint8), np.eye(4)), files[name])
    common = {
        "out_dir": str(tmp_path / "out"),
        "record_file": str(tmp_path / "usables-0.json"),
        "sidecar": {"Description": "A"},
    }
    record = UsableRecord("MESE", "t2", "nlls", "x_mask.nii.gz")
    SaveUsable(**common, record=record, status=files["status"], trust=files["trust"], flags=[files["flag"], "p"]).run()
    mask = np.asarray(nib.load(tmp_path / "out" / "x_mask.nii.gz").dataobj)
    np.testing.assert_array_equal(mask.ravel(), USABLE)
    assert definition(has_certificate=True) in (tmp_path / "out" / "x_mask.json").read_text()
    assert '"n_voxels": 8' in (text := (tmp_path / "usables-0.json").read_text())
    assert '"n_usable": 2' in text
    assert '"n_unlike": 2' in text
    assert '"n_voxels": 1' in text.partition("clusters")[2]
    SaveUsable(**common, record=record, status=files["status"]).run()
    assert definition(has_certificate=False) in (tmp_path / "out" / "x_mask.json").read_text()
    assert '"n_unlike": null' in (tmp_path / "usables-0.json").read_text()
