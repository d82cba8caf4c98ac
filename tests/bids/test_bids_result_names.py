"""Names of results, from the entities of a series and the content of a file."""

from __future__ import annotations

import pytest

from qmri_bidsapp.bids.inputs import InputGroup
from qmri_bidsapp.bids.record import TruthMaps, TruthRecord
from qmri_bidsapp.bids.result_names import FitNames, companion, result_name
from qmri_bidsapp.bids.save_results import TruthSidecars, remove_images, save_truth
from qmri_bidsapp.registry import get_model

MESE = InputGroup("MESE", "01", (("ses", "a"),), ("/raw/x_MESE.nii.gz",))
DWI = InputGroup("dwi", "01", (("run", "1"),), ("/raw/x_dwi.nii.gz",))
T2 = {p.name: p for p in (*get_model("t2").parameters, *get_model("t2").derived)}
NODDI = {p.name: p for p in get_model("noddi").parameters}


def test_relaxometry_has_the_model_only_where_names_would_clash() -> None:
    alone, one_of_two = FitNames(MESE, "t2", "nlls", is_alone=True), FitNames(MESE, "t2", "nlls")
    clashing = FitNames(MESE, "t2", "nlls", is_alone=True, clashing=frozenset({"T2map"}))
    stem = "sub-01/ses-a/anat/sub-01_ses-a_"
    assert alone.of(T2["t2"], "estimate") == f"{stem}T2map.nii.gz"
    assert one_of_two.of(T2["t2"], "estimate") == f"{stem}desc-nlls_T2map.nii.gz"
    assert clashing.of(T2["t2"], "estimate") == f"{stem}desc-nllst2_T2map.nii.gz"
    assert alone.of(T2["t2"], "truth_low") == f"{stem}desc-nllstruthlow_T2map.nii.gz"
    assert alone.status == f"{stem}desc-nllst2status_dseg.nii.gz"
    assert alone.usable == f"{stem}desc-nllst2usable_mask.nii.gz"
    assert (alone.flag, alone.p_value) == (f"{stem}desc-nllst2flag_dseg.nii.gz", f"{stem}desc-nllst2flag_pvalue.nii.gz")


def test_diffusion_has_the_model_as_an_entity() -> None:
    names = FitNames(DWI, "noddi", "nlls", is_alone=True)
    stem = "sub-01/dwi/sub-01_run-1_model-noddi_"
    assert names.of(NODDI["odi"], "std") == f"{stem}param-{NODDI['odi'].label}_desc-nllsstd_dwimap.nii.gz"
    assert names.trust == f"{stem}desc-nllstrust_dseg.nii.gz"
    assert names.usable == f"{stem}desc-nllsusable_mask.nii.gz"
    assert names.log_evidence == f"{stem}desc-nlls_logevidence.nii.gz"


def test_every_map_of_a_certificate_may_be_out_of_date() -> None:
    names = FitNames(MESE, "t2", "nlls", is_alone=True)
    further = names.further([T2["t2"]])
    written = {names.of(T2["t2"], what) for what in ("estimate", "std")} | {names.status, names.log_evidence}
    assert further.isdisjoint(written)
    assert {names.trust, names.flag, names.p_value, names.of(T2["t2"], "debiased")} <= further
    assert len(further) == 6 + 3


def test_a_parameter_without_a_suffix_has_no_name_in_relaxometry() -> None:
    with pytest.raises(ValueError, match="needs a BIDS suffix, got None"):
        FitNames(MESE, "noddi", "nlls").of(NODDI["odi"], "estimate")


def test_companions() -> None:
    assert companion(result_name(MESE, "dseg"), ".tsv") == "sub-01/ses-a/anat/sub-01_ses-a_dseg.tsv"


def test_without_a_certificate_the_maps_of_an_earlier_run_go(tmp_path) -> None:
    record = TruthRecord(
        *("MESE", "t2", "nlls"),
        maps=(TruthMaps("t2", "bias.nii.gz", "low.nii.gz", "high.nii.gz"),),
        trust="trust.nii.gz",
        flag="flag.nii.gz",
        p_value="p.nii.gz",
    )
    kept = ("map.nii.gz", "map.json")
    for name in (*record.files, "bias.json", "trust.tsv", *kept):
        (tmp_path / name).touch()
    sidecars = TruthSidecars([], {}, {}, {})
    found = save_truth(
        record, sidecars, maps=[], trust="", flags=[], certificate="", training={}, out_dir=str(tmp_path)
    )
    assert found == TruthRecord("MESE", "t2", "nlls")
    assert {path.name for path in tmp_path.iterdir()} == set(kept)
    remove_images(["absent.nii.gz"], str(tmp_path))
