"""Phase encoding from sidecars: of real series, and with what BIDS allows to be missing."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.core.phase_encoding import PhaseEncoding
from qmri_bidsapp.errors import InputError

SHAPE = (72, 80, 39)
EPI = Path(__file__).resolve().parents[2].parent / "shared/data/bids-epi"
SIDECARS = sorted(p for p in EPI.glob("sub-*/*/*.json") if p.name.endswith(("_epi.json", "_dwi.json")))


@pytest.mark.parametrize(
    ("direction", "axis", "sign"),
    [("i", 0, 1), ("i-", 0, -1), ("j", 1, 1), ("j-", 1, -1), ("k", 2, 1), ("k-", 2, -1)],
)
def test_each_direction_gives_its_axis_and_sign(direction: str, axis: int, sign: int) -> None:
    found = PhaseEncoding.from_sidecar({"PhaseEncodingDirection": direction, "TotalReadoutTime": 0.05}, SHAPE)
    assert found == PhaseEncoding(axis, sign, 0.05)
    assert found.note is None


@pytest.mark.parametrize(
    ("fields", "readout", "words"),
    [
        ({"EffectiveEchoSpacing": 0.0006}, 0.0006 * 79, "size of the image"),
        ({"EffectiveEchoSpacing": 0.0006, "ReconMatrixPE": 72}, 0.0006 * 71, "ReconMatrixPE"),
        ({"BandwidthPerPixelPhaseEncode": 20.0, "ReconMatrixPE": 100}, 0.0495, "BandwidthPerPixelPhaseEncode"),
        ({"TotalReadoutTime": 0.05, "EffectiveEchoSpacing": 0.0006}, 0.05, "although EffectiveEchoSpacing"),
    ],
    ids=["echo-spacing", "recon-matrix", "bandwidth", "contradiction"],
)
def test_a_readout_time_that_is_not_stated_is_computed_and_said(fields: dict, readout: float, words: str) -> None:
    found = PhaseEncoding.from_sidecar({"PhaseEncodingDirection": "j", **fields}, SHAPE)
    assert found.readout == pytest.approx(readout)
    assert words in str(found.note)


def test_without_any_readout_time_fields_are_in_voxels() -> None:
    found = PhaseEncoding.from_sidecar({"PhaseEncodingDirection": "j-"}, SHAPE)
    assert found.readout is None
    assert "voxels" in str(found.note)
    np.testing.assert_allclose(found.displacement(np.array([1.5])), -1.5)


def test_displacement_is_sign_times_readout_times_field() -> None:
    np.testing.assert_allclose(PhaseEncoding(1, -1, 0.05).displacement(np.array([20.0])), -1.0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "PhaseEncodingDirection is missing"),
        ({"PhaseEncodingAxis": "j"}, "does not give the polarity"),
        ({"PhaseEncodingDirection": "AP"}, "got 'AP'"),
        ({"PhaseEncodingDirection": "j+"}, r"got 'j\+'"),
        ({"PhaseEncodingDirection": "j", "TotalReadoutTime": 47.6}, "milliseconds"),
        ({"PhaseEncodingDirection": "j", "EffectiveEchoSpacing": 0.6}, "EffectiveEchoSpacing .*milliseconds"),
        ({"PhaseEncodingDirection": "j", "TotalReadoutTime": 0}, "positive number, got 0"),
        ({"PhaseEncodingDirection": "j", "TotalReadoutTime": "0.05"}, "positive number, got '0.05'"),
    ],
    ids=["missing", "axis-only", "anatomical", "plus", "milliseconds", "spacing-in-ms", "zero", "text"],
)
def test_a_sidecar_that_cannot_be_right_is_refused(fields: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        PhaseEncoding.from_sidecar(fields, SHAPE)


def test_an_axis_of_one_voxel_is_refused() -> None:
    with pytest.raises(InputError, match="one voxel"):
        PhaseEncoding.from_sidecar({"PhaseEncodingDirection": "k"}, (64, 64, 1))


def test_opposite_means_same_axis_and_other_sign() -> None:
    assert PhaseEncoding(1, 1, 0.05).is_opposite(PhaseEncoding(1, -1, 0.03))
    assert not PhaseEncoding(1, 1).is_opposite(PhaseEncoding(1, 1))
    assert not PhaseEncoding(1, 1).is_opposite(PhaseEncoding(0, -1))


@pytest.mark.skipif(not SIDECARS, reason="needs ../shared/data/bids-epi")
@pytest.mark.parametrize("path", SIDECARS, ids=lambda p: p.stem)
def test_real_sidecars_agree_with_the_readout_time_that_they_state(path: Path) -> None:
    sidecar = json.loads(path.read_text())
    shape = nib.load(path.with_suffix(".nii.gz")).shape
    if "PhaseEncodingDirection" not in sidecar:
        with pytest.raises(InputError, match="PhaseEncodingDirection is missing"):
            PhaseEncoding.from_sidecar(sidecar, shape)
        return
    stated = PhaseEncoding.from_sidecar(sidecar, shape)
    assert stated.note is None
    assert stated.sign == (-1 if "dir-AP" in path.name else 1)
    del sidecar["TotalReadoutTime"]
    assert PhaseEncoding.from_sidecar(sidecar, shape).readout == pytest.approx(stated.readout, rel=1e-3)
