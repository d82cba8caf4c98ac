"""Sidecars of standard deviations and the report say how they came about."""

from __future__ import annotations

import pytest

from qmri_bidsapp.bids.inputs import InputGroup
from qmri_bidsapp.core.acquisition import Acquisition, MultiEcho
from qmri_bidsapp.evaluation.standards import standard
from qmri_bidsapp.workflows.outputs import EXPECTED_ERROR, MODERATED, fit_outputs, series_outputs
from qmri_bidsapp.workflows.plan import SeriesPlan

BOUND = "Cramer-Rao bound at the estimate"


def said(
    kind: str, acquisition: Acquisition, model: str, estimator: str, *, by_voxel: bool = False
) -> tuple[str, dict[str, str]]:
    """What the report says of a fit, and parameter -> description of its standard deviation."""
    fits = ((model, estimator),)
    group = InputGroup(kind, "01", (), (f"/raw/sub-01_{kind}.nii",), acquisition)
    plan = SeriesPlan(group, fits, (), fits if by_voxel else ())
    record, sidecars = fit_outputs(plan, model, estimator, "/raw")
    names = [entry.parameter for entry in record.maps]
    texts = [sidecar["Description"] for sidecar in sidecars.stds]
    return record.std_kind, dict(zip(names, texts, strict=True))


@pytest.mark.parametrize(
    ("model", "rotated"),
    [("tensor", {"dxx", "dxy", "dyy", "dxz", "dyz", "dzz"}), ("noddi", {"theta", "phi"}), ("smt", set())],
)
def test_maps_that_rotate_name_their_axes(model: str, rotated: set[str]) -> None:
    group = InputGroup("dwi", "01", (), ("/raw/sub-01_dwi.nii",), standard("noddi"))
    estimator = "wls" if model == "tensor" else "nlls"
    record, sidecars = fit_outputs(SeriesPlan(group, ((model, estimator),)), model, estimator, "/raw")
    for kind in (sidecars.estimates, sidecars.stds):
        named = {entry.parameter for entry, own in zip(record.maps, kind, strict=True) if "ReferenceAxes" in own}
        assert named == rotated
    assert all("gradient table" in entry.description for entry in record.maps if entry.parameter in rotated)


def test_preprocessed_images_keep_what_still_holds() -> None:
    kept = (("EchoTime", 0.08), ("RepetitionTime", 3.0), ("PhaseEncodingDirection", "j-"))
    group = InputGroup("dwi", "01", (), ("/raw/sub-01_dwi.nii",), standard("noddi"), kept=kept)
    (sidecar,) = series_outputs(SeriesPlan(group, ()), "/raw", ())["preproc_sidecars"]
    assert sidecar | dict(kept) == sidecar


@pytest.mark.parametrize("estimator", ["nlls", "varpro"])
def test_noise_from_residuals_is_moderated(estimator: str) -> None:
    report, sidecars = said("MESE", standard("t2"), "t2", estimator)
    assert report == f"{BOUND}; {MODERATED}"
    assert sidecars["t2"].startswith(f"Standard deviation ({BOUND}; {MODERATED}) of: ")


def test_nothing_is_said_of_moderation_where_there_is_none() -> None:
    """No residuals; the posterior; a number of bundles of its own in each voxel."""
    report, sidecars = said("MESE", MultiEcho((0.01, 0.05)), "t2", "nlls")
    assert MODERATED not in report + "".join(sidecars.values())
    assert "Not known" in sidecars["t2"]
    report, sidecars = said("MESE", standard("t2"), "t2", "grid")
    assert MODERATED not in report + "".join(sidecars.values())
    report, sidecars = said("dwi", standard("noddi"), "noddi", "nlls", by_voxel=True)
    assert MODERATED not in report + "".join(sidecars.values())


def test_the_dispersion_index_has_the_expected_error() -> None:
    report, sidecars = said("dwi", standard("noddi"), "noddi", "nlls")
    assert report == f"{BOUND}; of odi: {EXPECTED_ERROR}; {MODERATED}"
    assert {name for name, text in sidecars.items() if EXPECTED_ERROR in text} == {"odi"}
    assert BOUND in sidecars["ndi"]
    assert BOUND not in sidecars["odi"]
