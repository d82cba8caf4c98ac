"""Diffusion series of several files, and what their distortion is corrected with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.datasets import SHAPE, write_image, write_sidecar

from qmri_bidsapp.bids.dataset import open_layout
from qmri_bidsapp.bids.inputs import InputGroup
from qmri_bidsapp.bids.queries import find_inputs

EPI = {"PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.05, "EchoTime": 0.07}
AP, PA = EPI, {**EPI, "PhaseEncodingDirection": "j"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a data set of diffusion series and field maps, name -> sidecar."""

    def make(series: dict[str, dict], maps: dict[str, dict] | None = None) -> Path:
        root = tmp_path / "bids"
        write_sidecar(root / "dataset_description.json", Name="test", BIDSVersion="1.10.0")
        for number, (name, fields) in enumerate(series.items()):
            place = root / "sub-01" / "dwi"
            write_image(place / f"sub-01_{name}.nii.gz", (*SHAPE, 8), value=number + 1.0)
            write_sidecar(place / f"sub-01_{name}.json", **fields)
            (place / f"sub-01_{name}.bval").write_text("0 0 " + f"{1000 * (number + 1)} " * 6)
            vectors = np.zeros((3, 8))
            vectors[:, 2:] = np.hstack([np.eye(3), np.eye(3)])
            np.savetxt(place / f"sub-01_{name}.bvec", vectors)
        for name, fields in (maps or {}).items():
            write_image(root / "sub-01" / "fmap" / f"sub-01_{name}.nii.gz", SHAPE)
            write_sidecar(root / "sub-01" / "fmap" / f"sub-01_{name}.json", **fields)
        return root

    return make


def series_of(root: Path, **options) -> list[InputGroup]:
    (subject,) = find_inputs(open_layout(root), **options)
    assert not subject.has_errors
    return list(subject.groups)


def source_of(root: Path, **options) -> tuple[str, list[str]] | None:
    (series,) = series_of(root, **options)
    source = series.epi.source
    return source and (source.kind, [Path(file).name[7:].split(".")[0] for file in source.all_files])


def test_opposite_phase_encodings_become_one_series(write: Callable[..., Path]) -> None:
    (series,) = series_of(write({"dir-AP_dwi": AP, "dir-PA_dwi": PA}))
    assert series.name == "dwi"
    assert [Path(file).name for file in series.files] == ["sub-01_dir-AP_dwi.nii.gz", "sub-01_dir-PA_dwi.nii.gz"]
    assert len(series.gradients) == 4
    assert series.shape == (*SHAPE, 16)
    assert series.acquisition.b_value == (0, 0, *[1000] * 6, 0, 0, *[2000] * 6)
    assert series.epi.n_volumes == (8, 8)
    assert [(e.axis, e.sign, e.readout) for e in series.epi.encodings] == [(1, -1, 0.05), (1, 1, 0.05)]
    assert series.epi.source.kind == "pair"
    # Fields that differ do not describe the whole.
    assert dict(series.kept) == {"EchoTime": 0.07, "TotalReadoutTime": 0.05}
    assert "dir-AP_dwi and dir-PA_dwi are one series" in " ".join(series.epi.notes)
    assert "by the opposite phase encoding of its files" in " ".join(series.epi.notes)


def test_runs_of_one_phase_encoding_become_one_series(write: Callable[..., Path]) -> None:
    """As where each run has a shell; their distortion is the same, so that it need not be known."""
    (series,) = series_of(write({"acq-a_run-1_dwi": {}, "acq-a_run-2_dwi": {}}))
    assert series.name == "acq-a_dwi"
    assert series.epi.source is None
    assert "not corrected: PhaseEncodingDirection is missing" in " ".join(series.epi.notes)


@pytest.mark.parametrize(
    ("series", "options", "reason"),
    [
        ({"dir-AP_dwi": AP, "dir-PA_dwi": {**PA, "EchoTime": 0.09}}, {}, None),
        ({"acq-a_dwi": AP, "acq-b_dwi": PA}, {}, None),
        ({"dir-AP_dwi": AP, "dir-PA_dwi": PA}, {"skip": ("join",)}, None),
        (
            {"dir-AP_dwi": AP, "dir-PA_dwi": PA},
            {"skip": ("distortion",)},
            "distortion is not corrected: it is left out",
        ),
        ({"dir-AP_dwi": {}, "dir-PA_dwi": {}}, {}, "PhaseEncodingDirection is missing"),
        ({"dir-AP_dwi": AP, "dir-LR_dwi": {**EPI, "PhaseEncodingDirection": "i"}}, {}, "their phase encoding differs"),
    ],
    ids=["echo-time", "acq", "skip-join", "skip-distortion", "unknown", "other-axis"],
)
def test_series_that_are_not_alike_stay_apart(
    write: Callable[..., Path], series: dict[str, dict], options: dict, reason: str | None
) -> None:
    found = series_of(write(series), **options)
    assert [group.name for group in found] == list(series)
    for group in found:
        notes = [note for note in group.epi.notes if "not joined" in note]
        assert len(notes) == (reason is not None)
        assert reason is None or reason in notes[0]


def test_another_geometry_is_another_series(write: Callable[..., Path]) -> None:
    root = write({"dir-AP_dwi": AP, "dir-PA_dwi": PA})
    path = root / "sub-01" / "dwi" / "sub-01_dir-PA_dwi.nii.gz"
    write_image(path, (*SHAPE, 8), affine=nib.affines.from_matvec(np.eye(3), (3.0, 0, 0)))
    found = series_of(root)
    assert len(found) == 2
    assert "differs from that of" in found[0].epi.notes[0]


GRE = {"EchoTime1": 0.005, "EchoTime2": 0.0075}
INTENDED = {"IntendedFor": ["bids::sub-01/dwi/sub-01_dwi.nii.gz"]}


@pytest.mark.parametrize(
    ("series", "maps", "expected"),
    [
        ({"dwi": AP}, {"dir-PA_epi": PA}, ("pair", ["dir-PA_epi"])),
        ({"dwi": AP}, {"dir-AP_epi": AP}, None),
        ({"dwi": AP}, {"dir-PA_epi": {**PA, "IntendedFor": ["func/other_bold.nii.gz"]}}, None),
        ({"dwi": AP}, {"dir-PA_epi": {**PA, **INTENDED}, "phasediff": {**GRE, **INTENDED}}, ("pair", ["dir-PA_epi"])),
        (
            {"dwi": AP},
            {"phasediff": {**GRE, **INTENDED}, "magnitude1": {}, "magnitude2": {}},
            ("phasediff", ["phasediff", "magnitude1"]),
        ),
        ({"dwi": AP}, {"phasediff": GRE, "magnitude1": {}}, None),
        ({"dwi": AP}, {"phasediff": INTENDED, "magnitude1": {}}, None),
        (
            {"dwi": AP},
            {"phase1": {"EchoTime": 0.005, **INTENDED}, "phase2": {"EchoTime": 0.0075, **INTENDED}, "magnitude1": {}},
            ("phases", ["phase1", "phase2", "magnitude1"]),
        ),
        (
            {"dwi": AP},
            {"fieldmap": {"Units": "Hz", **INTENDED}, "magnitude": {}},
            ("fieldmap", ["fieldmap", "magnitude"]),
        ),
        (
            {"dwi": {**AP, "B0FieldSource": "gre"}},
            {"dir-PA_epi": PA, "fieldmap": {"Units": "Hz", "B0FieldIdentifier": "gre"}},
            ("fieldmap", ["fieldmap"]),
        ),
        ({"dwi": {}}, {"dir-PA_epi": PA}, None),
    ],
    ids=[
        "epi-of-the-session",
        "same-direction",
        "for-others",
        "epi-before-phasediff",
        "phasediff",
        "not-intended",
        "no-echo-times",
        "phases",
        "fieldmap",
        "B0FieldSource",
        "unknown-encoding",
    ],
)
def test_field_comes_from_what_sidecars_name(
    write: Callable[..., Path], series: dict[str, dict], maps: dict[str, dict], expected: tuple | None
) -> None:
    root = write(series, maps)
    assert source_of(root) == expected
    assert source_of(root, ignore_fieldmaps=True) is None
    assert source_of(root, skip=("distortion",)) is None


def test_filters_choose_field_maps(write: Callable[..., Path]) -> None:
    root = write({"dwi": AP}, {"acq-a_dir-PA_epi": PA, "acq-b_dir-PA_epi": PA})
    assert source_of(root) == ("pair", ["acq-a_dir-PA_epi", "acq-b_dir-PA_epi"])
    assert source_of(root, filters={"epi": {"acquisition": "b"}}) == ("pair", ["acq-b_dir-PA_epi"])


def test_an_unusable_field_map_is_named(write: Callable[..., Path]) -> None:
    root = write({"dwi": AP}, {"dir-PA_epi": {**PA, "TotalReadoutTime": 50}})
    (subject,) = find_inputs(open_layout(root))
    assert subject.groups[0].epi.source is None
    (problem,) = subject.problems
    assert problem.severity == "note"
    assert "sub-01_dir-PA_epi.nii.gz is not used for the distortion of dwi: TotalReadoutTime gives" in problem.message
    assert "no images of opposite phase encoding" in json.dumps(subject.groups[0].epi.notes)
