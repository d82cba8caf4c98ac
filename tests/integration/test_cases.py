"""What the planner does with the inputs of users that came out wrong once: ``../shared/cases``.

What is decided from the voxels, such as the unit of a phase, is tested where the voxels are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qmri_bidsapp.bids.dataset import open_layout
from qmri_bidsapp.bids.queries import find_inputs
from qmri_bidsapp.config import Config
from qmri_bidsapp.errors import NothingMatchedError
from qmri_bidsapp.workflows.plan import plan

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "cases"


def planned(folder: str, models: tuple[str, ...] = ("auto",), **labels: Any) -> tuple[str, dict[str, bool]]:
    """Return the printed plan of a case, and whether each participant has an error."""
    root = CASES / folder
    if not root.is_dir():
        pytest.skip("needs ../shared/cases, which is absent")
    config = Config(
        root,
        Path("/out"),
        "participant",
        "run",
        Path("/work"),
        models=models,
        no_certificate=True,
        no_motion_score=True,
    )
    found = plan(config, find_inputs(open_layout(root), **labels))
    text = "\n".join(line for item in found for line in item.describe())
    return text, {item.subject: bool(item.errors or item.inputs.has_errors) for item in found}


@pytest.mark.parametrize(
    ("folder", "options", "failed", "said"),
    [
        ("affine_rounding/bids", {}, [], ["MESE: 6 echoes", "t2 by nlls"]),
        ("appledouble_gradients/bids", {}, [], ["tensor by wls"]),
        (
            "b0_only_run_fails_participant/bids",
            {"models": ("tensor",)},
            [],
            ["dir-AP_dwi: 28 volumes", "tensor by wls", "note: Model tensor needs at least 7 measurements, got 4"],
        ),
        ("complex_nifti/bids", {}, ["01"], ["holds complex numbers (complex64)", "write the magnitude"]),
        (
            "dangling_sidecar/bids",
            {},
            ["02"],
            ["sub-02_echo-3_MESE.json is a link to a file that is not here: fetch it"],
        ),
        ("duplicate_echo_times/bids", {}, ["01"], ["echo-2_MEGRE.nii.gz", "has the same (EchoTime 0.004)"]),
        ("entity_like_folder_above_root/sub-02/bids", {}, [], ["sub-01\n", "sub-02\n", "sub-03\n"]),
        (
            "entity_like_folder_above_root/ses-2/data/bids",
            {},
            [],
            ["B1 from sub-01_ses-1_TB1map.nii.gz", "B1 from sub-01_ses-2_TB1map.nii.gz"],
        ),
        (
            "entity_like_folder_above_root/ses-2/data/bids",
            {"session_labels": ("1",)},
            [],
            ["B1 from sub-01_ses-1_TB1map.nii.gz"],
        ),
        ("hcp7t_b0_60/bids", {}, [], ["smt by nlls", "noddi by nlls"]),
        ("low_b_taken_as_zero/bids", {}, [], ["tensor by wls"]),
        (
            "mts_state_contradicts_name/bids",
            {},
            ["01"],
            ["flip-1_mt-off_MTS.nii.gz is mt-off by its name, but its sidecar has MTState True"],
        ),
        ("nothing_usable_says_check_labels/bids", {}, ["01"], ["have part-imag, part-real only, but magnitude images"]),
        ("one_bad_json_stops_all/bids", {}, [], ["sub-01\n  MESE", "sub-02\n  MESE"]),
        ("one_bad_json_stops_all/bids_bom", {}, [], ["sub-01\n  MESE", "sub-02\n  MESE"]),
        (
            "session_filter_drops_t1w/bids",
            {"session_labels": ("2",)},
            [],
            ["ses-2_MESE: 4 echoes, 12.5 to 100 ms; mask and tissues from ses-1_T1w", "gives mask and tissues: the"],
        ),
        # Decided from the voxels, in the run.
        ("ir_signed_unlabelled/bids", {}, [], ["t1 by nlls"]),
        ("phase_in_milliradian/bids", {}, [], ["polarity from part-phase"]),
        ("tb1map_in_degrees/bids", {}, [], ["B1 from sub-01_TB1map.nii.gz"]),
    ],
    ids=lambda value: value.replace("/", "-") if isinstance(value, str) else "",
)
def test_plan(folder: str, options: dict, failed: list[str], said: list[str]) -> None:
    text, errors = planned(folder, **options)
    assert [subject for subject, has_errors in errors.items() if has_errors] == failed
    for words in said:
        assert words in text


@pytest.mark.parametrize(
    ("folder", "cause"),
    [("bids_mpm", r"its images are MPM \(2\)"), ("bids_underscore", "a label holds letters and digits only")],
)
def test_nothing_to_work_on(folder: str, cause: str) -> None:
    with pytest.raises(NothingMatchedError, match=cause):
        planned(f"nothing_usable_says_check_labels/{folder}")
