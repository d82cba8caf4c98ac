"""Certificates and the maps that follow from them, on coarse simulated heads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import qmri_bidsapp as qmri
from qmri_bidsapp.bids.record_files import read_record, record_file
from qmri_bidsapp.cli.app import run
from qmri_bidsapp.uncertainty.inverse import Trust
from qmri_bidsapp.uncertainty.ood import LEVEL, Reason

#: Too few slices for an alignment, which voxels that differ from all others would lead astray.
SHAPE, VOXEL = (36, 44, 4), 4.0
ECHO_TIMES = (0.015, 0.03, 0.05, 0.08, 0.12, 0.2)
NOISE = 25.0


@pytest.fixture(scope="module")
def heads(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """Data set of two subjects of one protocol, and their true T2: any value from 20 to 300 ms."""
    bids = tmp_path_factory.mktemp("trust") / "bids"
    x, y, z = np.meshgrid(*(VOXEL * (np.arange(n) - (n - 1) / 2) for n in SHAPE), indexing="ij")
    inside = (x / 60) ** 2 + (y / 75) ** 2 + (z / 48) ** 2 < 1
    rng, truth = np.random.default_rng(0), {}
    for subject in ("01", "02"):
        truth[subject] = 0.02 * 15 ** rng.random(SHAPE)
        for index, time in enumerate(ECHO_TIMES, start=1):
            path = bids / f"sub-{subject}" / "anat" / f"sub-{subject}_echo-{index}_MESE.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Every voxel has the same signal in the first image, as the reference is in simulations.
            clean = np.where(inside, 1000 * np.exp(-(time - ECHO_TIMES[0]) / truth[subject]), 0)
            noise = rng.standard_normal((2, *SHAPE)) * NOISE
            affine = np.diag([VOXEL, VOXEL, VOXEL, 1.0])
            nib.save(nib.Nifti1Image(np.hypot(clean + noise[0], noise[1]).astype(np.float32), affine), path)
            fields = {"EchoTime": time, "RepetitionTime": 5.0}
            Path(str(path).replace(".nii.gz", ".json")).write_text(json.dumps(fields))
    (bids / "dataset_description.json").write_text(json.dumps({"Name": "trust", "BIDSVersion": "1.10.0"}))
    (bids / "README").write_text("Simulated for a test.")
    return bids, truth


def app(bids: Path, out: Path, *options: str) -> None:
    arguments = [str(bids), str(out), "participant", "-w", str(out.parent / "work"), "--models", "t2"]
    resources = ["--skip-bids-validation", "--nprocs", "1", "--device", "cpu"]
    assert run.main([*arguments, *resources, *options]) == 0


@pytest.fixture(scope="module")
def out(heads, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "out"
    app(heads[0], folder)
    return folder


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_maps_say_where_the_truth_is(heads, out):
    for subject, truth in heads[1].items():
        name = str(out / f"sub-{subject}" / "anat" / f"sub-{subject}_desc-nlls")
        estimate = load(Path(name.replace("_desc-nlls", "_T2map.nii.gz")))
        bias, low, high = (load(Path(f"{name}{key}_T2map.nii.gz")) for key in ("bias", "truthlow", "truthhigh"))
        trust = load(Path(f"{name}t2trust_dseg.nii.gz"))
        assert set(np.unique(trust)) <= {int(value) for value in Trust}
        np.testing.assert_array_equal(np.isfinite(low), np.isin(trust, (Trust.RANGE_GIVEN, Trust.WIDE)))
        read = np.isfinite(low) & np.isfinite(estimate)
        assert read.sum() > 1000
        held = (truth >= low) & (truth <= high)
        assert 0.86 < held[read].mean() < 0.94
        assert (np.abs(bias[read]) < 0.5 * estimate[read]).mean() > 0.95


def test_one_certificate_for_both_subjects(out):
    (file,) = (out / "logs" / "certificates").iterdir()
    certificate = json.loads(file.read_text())
    assert certificate["identity"]["noise"]["kind"] == "rician"
    # 1000 over 25, at the nearest step of the scale in logarithm.
    assert certificate["identity"]["noise"]["snr"] == pytest.approx([39.8, 39.8])
    assert set(certificate["tissues"]) == {"White matter", "Grey matter", "Cerebrospinal fluid"}
    assert len(list((out.parent / "work").glob("*/certificates/*/certificate.npz"))) == 1
    for subject in ("01", "02"):
        sidecar = json.loads((out / f"sub-{subject}" / "anat" / f"sub-{subject}_desc-nllsbias_T2map.json").read_text())
        assert sidecar["Certificate"] == f"bids::logs/certificates/{file.name}"
        assert sidecar["CertificatePrior"] == "uniform"
        assert sidecar["CertificateNoise"] == "rician, signal-to-noise ratio 9.95 to 159"
        assert sidecar["Units"] == "s"
        assert "Expected bias" in sidecar["Description"]


def test_the_fit_does_not_wait_for_its_certificate(heads, tmp_path):
    """Where certificates cannot be made the participant has failed, but its maps are there."""
    work = tmp_path / "work"
    app(heads[0], tmp_path / "out", "--participant-label", "01")
    (folder,) = work.glob("*/certificates")
    shutil.rmtree(folder)
    folder.write_text("no folder")
    for name in (tmp_path / "out" / "sub-01").rglob("*.nii.gz"):
        name.unlink()
    with pytest.raises(AssertionError):
        app(heads[0], tmp_path / "out", "--participant-label", "01")
    assert (tmp_path / "out" / "sub-01" / "anat" / "sub-01_T2map.nii.gz").is_file()
    assert not list((tmp_path / "out").rglob("*truthlow*.nii.gz"))
    record = read_record(record_file(tmp_path / "out", "01"))
    assert (len(record.fits), record.truths) == (1, ())
    # What was made before is made again where it is gone.
    folder.unlink()
    app(heads[0], tmp_path / "out", "--participant-label", "01")
    assert list((tmp_path / "out").rglob("*truthlow*.nii.gz"))


def test_what_an_earlier_run_said_is_not_left_beside_new_maps(heads, tmp_path):
    app(heads[0], tmp_path / "out", "--participant-label", "01")
    app(heads[0], tmp_path / "out", "--participant-label", "01", "--no-certificate")
    left = [path.name for path in (tmp_path / "out" / "sub-01").rglob("*")]
    assert not [name for name in left if "truth" in name or "trust" in name or "nllsbias" in name or "flag_" in name]


def test_flags_are_few_in_what_the_model_can_follow(out):
    for subject in ("01", "02"):
        folder = out / f"sub-{subject}" / "anat"
        flags, p_value = (load(folder / f"sub-{subject}_desc-nllst2flag_{name}.nii.gz") for name in ("dseg", "pvalue"))
        compared = np.isfinite(p_value)
        assert compared.sum() > 1000
        assert 0.01 < (flags[compared] > Reason.TYPICAL).mean() < 0.1
        np.testing.assert_array_equal(flags[compared] > Reason.TYPICAL, p_value[compared] <= LEVEL)
    page = (out / "sub-01.html").read_text()
    assert "Voxels unlike all simulated voxels" in page
    assert "of the voxels are unlike all simulated voxels; main reason" not in page


def test_debiased_maps_on_request(heads, out, tmp_path):
    app(heads[0], tmp_path / "out", "--participant-label", "01", "--debias")
    folder = tmp_path / "out" / "sub-01" / "anat"
    debiased = load(folder / "sub-01_desc-nllsdebiased_T2map.nii.gz")
    expected = load(folder / "sub-01_T2map.nii.gz") - load(folder / "sub-01_desc-nllsbias_T2map.nii.gz")
    np.testing.assert_allclose(debiased, expected, rtol=1e-5)
    cost = json.loads((folder / "sub-01_desc-nllsdebiased_T2map.json").read_text())["Debiasing"]
    assert set(cost) == {"bias", "std", "rmse"}
    assert not list(out.rglob("*debiased*"))


def test_nothing_of_it_on_request(heads, out, tmp_path):
    app(heads[0], tmp_path / "out", "--participant-label", "01", "--no-certificate")
    names = {path.name for path in tmp_path.rglob("*") if "work" not in path.parts}
    assert "sub-01_T2map.nii.gz" in names
    assert not [name for name in names if "bias" in name or "truth" in name or "trust" in name or "certificate" in name]
    assert not [name for name in names if "flag" in name]
    record = read_record(record_file(tmp_path / "out", "01"))
    assert record.truths == ()
    np.testing.assert_array_equal(
        load(tmp_path / "out" / "sub-01" / "anat" / "sub-01_T2map.nii.gz"),
        load(out / "sub-01" / "anat" / "sub-01_T2map.nii.gz"),
    )


def test_python_gives_the_numbers_of_the_app_to_the_bit(heads, out):
    """From the preprocessed images and the mask that the app wrote."""
    anat = out / "sub-01" / "anat"
    echoes = sorted(str(path) for path in anat.glob("*_desc-preproc_MESE.nii.gz"))
    maps = qmri.fit("t2", echoes, echo_time=ECHO_TIMES, mask=anat / "sub-01_desc-MESEbrain_mask.nii.gz")
    stem = str(anat / "sub-01_desc-nlls")
    expected = {
        "": maps["T2"],
        "std": maps.std["T2"],
        "bias": maps.bias["T2"],
        "truthlow": maps.truth_low["T2"],
        "truthhigh": maps.truth_high["T2"],
    }
    for ending, values in expected.items():
        name = f"{stem}{ending}_T2map.nii.gz" if ending else stem.replace("_desc-nlls", "_T2map.nii.gz")
        np.testing.assert_array_equal(load(Path(name)), values, err_msg=ending)
    np.testing.assert_array_equal(load(Path(f"{stem}t2status_dseg.nii.gz")), maps.status)
    np.testing.assert_array_equal(load(Path(f"{stem}t2flag_dseg.nii.gz")), maps.flag)
    np.testing.assert_array_equal(load(Path(f"{stem}t2usable_mask.nii.gz")) > 0, maps.usable)
    np.testing.assert_array_equal(load(Path(f"{stem}t2flag_pvalue.nii.gz")), maps.p_value)
