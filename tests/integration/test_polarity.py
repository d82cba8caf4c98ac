"""An inversion recovery with phase images, from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.bids.dataset import validate
from qmri_bidsapp.cli.app import run

SHAPE, VOXEL, NOISE = (24, 28, 6), 6.0, 8.0
TIMES = (0.2, 0.87, 1.6, 3.0)


@pytest.fixture(scope="module")
def t1() -> np.ndarray:
    """White matter, around it grey matter whose null is at one of the inversion times; zero outside."""
    x, y, _ = np.meshgrid(*(VOXEL * (np.arange(n) - (n - 1) / 2) for n in SHAPE), indexing="ij")
    distance = np.hypot(x / 55, y / 68)
    return np.where(distance < 0.6, 0.9, np.where(distance < 1, 1.3, 0.0))


@pytest.fixture(scope="module")
def bids(t1: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("polarity") / "bids"
    anat = root / "sub-01" / "anat"
    anat.mkdir(parents=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "polarity", "BIDSVersion": "1.10.0"}))
    (root / "README").write_text("Simulated for a test.")
    rng = np.random.default_rng(0)
    coil = np.exp(1j * np.linspace(-2, 2, SHAPE[0]))[:, None, None]
    affine = np.diag([VOXEL, VOXEL, VOXEL, 1])
    for number, time in enumerate(TIMES, start=1):
        signal = np.where(t1 > 0, 1000 * (1 - 1.95 * np.exp(-time / np.maximum(t1, 0.1))), 0) * coil
        signal = signal + NOISE * (rng.standard_normal(SHAPE) + 1j * rng.standard_normal(SHAPE))
        phase = np.floor(np.angle(signal) / np.pi * 4096).clip(-4096, 4095).astype(np.int16)
        parts = {"mag": (np.abs(signal).astype(np.float32), {}), "phase": (phase, {"Units": "arbitrary"})}
        for part, (data, fields) in parts.items():
            name = f"sub-01_inv-{number}_part-{part}_IRT1"
            nib.save(nib.Nifti1Image(data, affine), anat / f"{name}.nii.gz")
            (anat / f"{name}.json").write_text(json.dumps({"InversionTime": time, **fields}))
    return root


def start(bids: Path, folder: Path, *options: str) -> Path:
    arguments = [str(bids), str(folder / "out"), "participant", "-w", str(folder / "work")]
    assert run.main([*arguments, "--nprocs", "1", "--omp-nthreads", "1", "--device", "cpu", *options]) == 0
    return folder / "out"


def error(folder: Path, t1: np.ndarray) -> tuple[float, float]:
    """Median absolute error of T1, and standard deviation of the error over the stated one, where the null is hit."""
    found, std = (
        np.asarray(nib.load(folder / f"sub-01/anat/sub-01_{name}.nii.gz").dataobj)
        for name in ("T1map", "desc-nllsstd_T1map")
    )
    where = (t1 == 1.3) & np.isfinite(std)
    return float(np.median(np.abs(found - t1)[where])), float(np.std(((found - t1) / std)[where]))


def test_polarity_is_restored_and_named(bids: Path, tmp_path: Path, t1: np.ndarray, capsys) -> None:
    out = start(bids, tmp_path)
    printed = capsys.readouterr().out
    assert (
        "IRT1: 4 inversion times, 200 to 3000 ms, polarity from part-phase; mask from the series; t1 by nlls" in printed
    )
    anat = out / "sub-01" / "anat"
    signed = np.asarray(nib.load(anat / "sub-01_inv-1_part-real_desc-preproc_IRT1.nii.gz").dataobj)
    assert np.median(signed[t1 == 1.3]) == pytest.approx(1000 * (1 - 1.95 * np.exp(-0.2 / 1.3)), rel=0.01)
    sources = json.loads((anat / "sub-01_inv-1_part-real_desc-preproc_IRT1.json").read_text())["Sources"]
    assert sources == [f"bids:raw:sub-01/anat/sub-01_inv-1_part-{part}_IRT1.nii.gz" for part in ("mag", "phase")]
    assert len(json.loads((anat / "sub-01_T1map.json").read_text())["Sources"]) == 8
    assert "restored" in (out / "sub-01.html").read_text()
    assert [issue for issue in validate(out) if issue.severity == "error"] == []

    (tmp_path / "filter.json").write_text('{"irt1": {"part": "mag"}}')
    options = ("--no-certificate", "--bids-filter-file", str(tmp_path / "filter.json"))
    magnitude = start(bids, tmp_path / "magnitude", *options)
    assert error(out, t1)[0] < 0.75 * error(magnitude, t1)[0]
    assert error(out, t1)[0] < 0.03
