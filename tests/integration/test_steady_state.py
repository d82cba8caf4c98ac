"""VFA and MTS series with a map of the transmit field, from end to end, on a coarse simulated head."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from qmri_bidsapp.bids.dataset import validate
from qmri_bidsapp.cli.app import run
from qmri_bidsapp.core.acquisition import SpoiledGradientEcho
from qmri_bidsapp.models.steady_state import MagnetizationTransferSaturation, VariableFlipAngleT1

SHAPE, VOXEL, NOISE = (20, 24, 14), 7.0, 0.002
VFA = SpoiledGradientEcho((3.0, 10.0, 20.0), (0.02,) * 3)
MTS = SpoiledGradientEcho((6.0, 20.0, 6.0), (0.028, 0.018, 0.028), (False, False, True))
MTS_NAMES = ("flip-1_mt-off", "flip-2_mt-off", "flip-1_mt-on")


def affine(voxel: float, shape: tuple[int, ...]) -> np.ndarray:
    """Centred on the origin."""
    matrix = np.diag([voxel, voxel, voxel, 1.0])
    matrix[:3, 3] = -voxel * (np.array(shape) - 1) / 2
    return matrix


def radius(voxel: float, shape: tuple[int, ...]) -> np.ndarray:
    """Distance from the centre, 1 at the rim of the head."""
    x, y, z = np.meshgrid(*(voxel * (np.arange(n) - (n - 1) / 2) for n in shape), indexing="ij")
    return np.sqrt((x / 55) ** 2 + (y / 70) ** 2 + (z / 42) ** 2)


def transmit_field(voxel: float, shape: tuple[int, ...]) -> np.ndarray:
    """High in the centre, low at the rim, as at 3 T."""
    return 1.15 - 0.3 * radius(voxel, shape) ** 2


def write(path: Path, data: np.ndarray, voxel: float, **fields) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine(voxel, data.shape)), path)
    Path(str(path).replace(".nii.gz", ".json")).write_text(json.dumps(fields))


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    """Maps on the grid of the series: white matter inside, grey matter around it."""
    distance = radius(VOXEL, SHAPE)
    white = distance < 0.6
    return {
        "head": distance < 1,
        "inside": distance < 0.85,
        "t1": np.where(white, 0.9, 1.5),
        "mtsat": np.where(white, 3.2, 1.6),
        "m0": np.where(white, 7000.0, 8000.0),
        "b1": transmit_field(VOXEL, SHAPE),
    }


@pytest.fixture(scope="module")
def bids(truth: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("steady") / "bids"
    root.mkdir()
    (root / "dataset_description.json").write_text(json.dumps({"Name": "steady state", "BIDSVersion": "1.10.0"}))
    (root / "README").write_text("Simulated for a test.")
    rng = np.random.default_rng(0)

    def simulated(model, protocol: SpoiledGradientEcho, *names: str) -> np.ndarray:
        columns = torch.tensor(np.stack([truth[name] for name in (*names, "b1")], axis=-1))
        signal = model.signal(columns, protocol).numpy() * truth["head"][..., None]
        return np.abs(signal + NOISE * signal.max() * rng.standard_normal(signal.shape))

    anat = root / "sub-01" / "anat"
    series = simulated(VariableFlipAngleT1(), VFA, "m0", "t1")
    for i, angle in enumerate(VFA.flip_angle):
        fields = {"FlipAngle": angle, "RepetitionTimeExcitation": 0.02, "PulseSequenceType": "SPGR"}
        write(anat / f"sub-01_flip-{i + 1}_VFA.nii.gz", series[..., i], VOXEL, **fields)
    series = simulated(MagnetizationTransferSaturation(), MTS, "m0", "t1", "mtsat")
    for i, name in enumerate(MTS_NAMES):
        fields = {
            "FlipAngle": MTS.flip_angle[i],
            "RepetitionTimeExcitation": MTS.repetition_time[i],
            "MTState": MTS.mt_pulse[i],
        }
        write(anat / f"sub-01_{name}_MTS.nii.gz", series[..., i], VOXEL, **fields)
    # On another grid, in percent.
    shape = (17, 19, 13)
    write(root / "sub-01" / "fmap" / "sub-01_TB1map.nii.gz", 100 * transmit_field(9.0, shape), 9.0, Units="percent")
    return root


@pytest.fixture(scope="module")
def finished(bids: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return start(bids, tmp_path_factory.mktemp("run"))


def start(bids: Path, folder: Path, *options: str) -> Path:
    arguments = [str(bids), str(folder / "out"), "participant", "-w", str(folder / "work")]
    assert run.main([*arguments, "--nprocs", "2", "--omp-nthreads", "1", "--device", "cpu", *options]) == 0
    return folder / "out"


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.parametrize(
    ("name", "parameter", "tolerance"),
    [
        ("desc-nllsvfa_T1map", "t1", 0.03),
        ("desc-nllsvfa_M0map", "m0", 0.03),
        ("desc-nllsmtsat_T1map", "t1", 0.03),
        ("MTsat", "mtsat", 0.04),
    ],
)
def test_maps_agree_with_the_truth(truth, finished: Path, name: str, parameter: str, tolerance: float) -> None:
    found, expected = read(finished / f"sub-01/anat/sub-01_{name}.nii.gz"), truth[parameter]
    error = np.abs(found - expected)[truth["inside"]] / expected[truth["inside"]]
    assert np.median(error) < tolerance
    assert np.percentile(error, 90) < 3 * tolerance


def test_rate_is_the_inverse_of_the_time(finished: Path) -> None:
    t1, r1 = (read(finished / f"sub-01/anat/sub-01_desc-nllsvfa_{name}.nii.gz") for name in ("T1map", "R1map"))
    np.testing.assert_allclose(r1[np.isfinite(t1)], 1 / t1[np.isfinite(t1)], rtol=1e-4)


def test_without_the_transmit_field_t1_is_wrong_and_said_to_be(
    truth, bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The test of the correction itself: what it removes is larger than the tolerance above."""
    (tmp_path / "filter.json").write_text('{"tb1map": {"acquisition": "none"}, "mts": {"acquisition": "none"}}')
    out = start(bids, tmp_path, "--no-certificate", "--bids-filter-file", str(tmp_path / "filter.json"))
    # A single model writes T1 without the model's name.
    biased = read(out / "sub-01/anat/sub-01_T1map.nii.gz") / truth["t1"]
    centre = radius(VOXEL, SHAPE) < 0.3
    assert np.median(biased[centre]) == pytest.approx(1.15**2, rel=0.05)
    assert "no TB1map: the transmit field is assumed to be 1" in capsys.readouterr().out
    assert "no TB1map: the transmit field is assumed to be 1" in (out / "sub-01.html").read_text()


def test_sources_units_and_notes(finished: Path) -> None:
    anat = finished / "sub-01" / "anat"
    sidecar = json.loads((anat / "sub-01_desc-nllsvfa_T1map.json").read_text())
    assert sidecar["Sources"][-1] == "bids:raw:sub-01/fmap/sub-01_TB1map.nii.gz"
    assert len(sidecar["Sources"]) == 4
    assert json.loads((anat / "sub-01_MTsat.json").read_text())["Units"] == "arbitrary"
    std = json.loads((anat / "sub-01_desc-nllsstd_MTsat.json").read_text())
    assert "as many parameters as images" in std["Description"]
    assert np.isnan(read(anat / "sub-01_desc-nllsstd_MTsat.nii.gz")).all()
    assert np.isfinite(read(anat / "sub-01_desc-nllsvfastd_T1map.nii.gz")).sum() > 500
    preproc = json.loads((anat / "sub-01_flip-1_mt-on_desc-preproc_MTS.json").read_text())
    assert preproc["FlipAngle"] == 6
    assert preproc["RepetitionTimeExcitation"] == 0.028
    assert preproc["MTState"] is True
    page = (finished / "sub-01.html").read_text()
    assert "sub-01/fmap/sub-01_TB1map.nii.gz" in page


def test_plan_names_the_transmit_field(bids: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(bids, finished.parent)
    printed = capsys.readouterr().out
    assert "VFA: 3 images, flip angles 3, 10, 20 degree; B1 from sub-01_TB1map.nii.gz; mask from the series" in printed
    assert "MTS: 3 images, flip angles 6, 20, 6 degree, the last 1 with MT pulse; B1 from sub-01_TB1map" in printed


def test_output_is_valid_bids(finished: Path) -> None:
    assert [issue for issue in validate(finished) if issue.severity == "error"] == []
