"""Parameters of an earlier run's voxels."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.bids.earlier_fits import FoundFit, samples
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.errors import InputMissingError
from qmri_bidsapp.evaluation.standards import standard
from qmri_bidsapp.registry import get_model


def test_fits_with_several_bundles_are_left_out(tmp_path):
    values = {"fwf": 0.1, "ndi": 0.5, "odi": 0.2, "theta": 30.0, "phi": 40.0, "status": float(Status.OK)}
    for name, value in values.items():
        nib.save(nib.Nifti1Image(np.full((2, 2, 1), value, np.float32), np.eye(4)), tmp_path / f"{name}.nii")
    maps = {name: f"{name}.nii" for name in values if name != "status"}
    fit = FoundFit(tmp_path, "01", standard("noddi"), "nlls", maps, "status.nii", None)
    crossing = replace(fit, maps={**dict(list(maps.items())[:3]), "theta1": "theta.nii", "phi1": "phi.nii"})
    found = samples([crossing, fit, replace(crossing, subject="02")], get_model("noddi"), None)
    assert len(found) == 1
    np.testing.assert_allclose(found[0], [[0.1, 0.5, 0.2, 30.0, 40.0]] * 4, rtol=1e-6)


def test_subjects_of_two_studies_are_different_ones(tmp_path):
    maps = {"t2": "t2.nii", "status": "status.nii"}
    for index, study in enumerate(("a", "b")):
        (tmp_path / study).mkdir()
        for name, value in (("t2", 0.1 + 0.1 * index), ("status", float(Status.OK))):
            nib.save(nib.Nifti1Image(np.full((2, 2, 1), value, np.float32), np.eye(4)), tmp_path / study / maps[name])
    fits = [
        FoundFit(tmp_path / study, "01", standard("t2"), estimator, {"t2": "t2.nii"}, "status.nii", None)
        for study in ("a", "b", "../" + tmp_path.name + "/a")
        for estimator in ("nlls", "varpro")
    ]
    found = samples(fits, get_model("t2"), None)
    np.testing.assert_allclose([part.mean() for part in found], [0.1, 0.2], rtol=1e-6)


def test_parameters_that_are_not_saved_have_no_distribution():
    with pytest.raises(InputMissingError, match=r"No maps of vxxxx, .* are written: use prior uniform for kurtosis"):
        samples([], get_model("kurtosis"), None)
