"""The app from end to end, on coarse simulated heads without T1w."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.bids.dataset import validate
from qmri_bidsapp.bids.record_files import read_record, record_file
from qmri_bidsapp.cli import tools
from qmri_bidsapp.cli.app import run
from qmri_bidsapp.demo.dataset import write_demo


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_demo(tmp_path_factory.mktemp("demo") / "bids", t1w_voxel=12, series_voxel=7)
    for path in sorted(root.glob("sub-*/anat/*_T1w.*")):
        path.unlink()
    # Half of the volumes: all b-values remain, and denoising takes a sixth of the time.
    for path in sorted(root.glob("sub-*/dwi/*_dwi.nii.gz")):
        image = nib.load(path)
        nib.save(image.__class__(np.asarray(image.dataobj)[..., ::2], image.affine), path)
        for name in (str(path).replace(".nii.gz", suffix) for suffix in (".bval", ".bvec")):
            np.savetxt(name, np.atleast_2d(np.loadtxt(name))[:, ::2], fmt="%g")
    # sub-03 has nothing for us.
    (root / "sub-03" / "func").mkdir(parents=True)
    shutil.copy(
        root / "sub-01" / "anat" / "sub-01_echo-1_MESE.nii.gz",
        root / "sub-03" / "func" / "sub-03_task-a_bold.nii.gz",
    )
    return root


@pytest.fixture(scope="module")
def finished(bids: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with out/ and work/ of a successful run."""
    folder = tmp_path_factory.mktemp("run")
    assert start(bids, folder) == 0
    return folder


def start(bids: Path, folder: Path, *options: str, level: str = "participant") -> int:
    """Run the app without certificates, which take a third of the time; `test_trust` has them."""
    arguments = [str(bids), str(folder / "out"), level, "-w", str(folder / "work"), "--skip-bids-validation"]
    arguments += ["--no-certificate"]
    return run.main([*arguments, "--nprocs", "2", "--omp-nthreads", "1", "--device", "cpu", *options])


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def steps(printed: str, which: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("[") and which in line]


def test_maps_agree_with_the_truth(bids: Path, finished: Path) -> None:
    truth, out = bids / "derivatives" / "truth" / "sub-02", finished / "out" / "sub-02"
    tissue = np.isin(read(truth / "anat" / "sub-02_desc-series_dseg.nii.gz"), (1, 2))
    smt = "dwi/sub-02_model-smt_param-{}{}_dwimap.nii.gz"
    names = {
        "anat/sub-02_T1map.nii.gz": ("anat/sub-02_T1map.nii.gz", 0.05),
        "anat/sub-02_T2map.nii.gz": ("anat/sub-02_T2map.nii.gz", 0.05),
        smt.format("intrafraction", ""): (smt.format("intrafraction", "_desc-nlls"), 0.20),
        smt.format("diffusivity", ""): (smt.format("diffusivity", "_desc-nlls"), 0.20),
    }
    for true_name, (name, tolerance) in names.items():
        # The region that no model describes has no true value.
        where = tissue & np.isfinite(read(truth / true_name))
        expected, found = read(truth / true_name)[where], read(out / name)[where]
        inside = np.isfinite(found)
        assert inside.mean() > 0.9, name
        error = np.median(np.abs(found[inside] - expected[inside]) / expected[inside])
        assert error < tolerance, (name, error)


def test_every_map_has_a_standard_deviation_a_unit_and_a_reference(finished: Path) -> None:
    record = read_record(record_file(finished / "out", "02"))
    assert {fit.model for fit in record.fits} == {"t1", "t2", "smt", "tensor", "kurtosis", "noddi"}
    kurtosis = next(fit for fit in record.fits if fit.model == "kurtosis")
    assert {"mk", "ak", "rk", "fa"} <= {item.parameter for item in kurtosis.maps}
    assert "vxxxx" not in {item.parameter for item in kurtosis.maps}
    for fit in record.fits:
        assert sum(fit.status_counts.values()) > 1000
        for item in fit.maps:
            sidecar = json.loads((finished / "out" / item.estimate.replace(".nii.gz", ".json")).read_text())
            assert sidecar["Units"] == item.unit
            assert sidecar["EstimationReference"]
            assert sidecar["Sources"][0].startswith("bids:raw:sub-02/")
            assert (np.nan_to_num(read(finished / "out" / item.std)) >= 0).all()


def test_output_is_valid_bids(finished: Path) -> None:
    assert [issue for issue in validate(finished / "out") if issue.severity == "error"] == []


def test_every_desc_is_described(finished: Path) -> None:
    lines = (finished / "out" / "descriptions.tsv").read_text().splitlines()
    described = {line.split("\t")[0].removeprefix("desc-") for line in lines[1:]}
    names = [path.name for path in (finished / "out").glob("sub-*/[ad]*/*")]
    used = {part.removeprefix("desc-") for name in names for part in name.split("_") if part.startswith("desc-")}
    assert len(used) > 5
    assert used <= described


def test_report_shows_every_map_and_works_offline(finished: Path) -> None:
    page = (finished / "out" / "sub-01.html").read_text()
    record = read_record(record_file(finished / "out", "01"))
    for fit in record.fits:
        for item in fit.maps:
            assert item.estimate in page
    assert "No T1w: the mask comes from the series" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    for name in (finished / "out" / "sub-01" / "figures").glob("*.svg"):
        assert name.name in page
    assert "No step failed" in page


def test_a_second_run_computes_nothing(bids: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "out" / "sub-01" / "anat").iterdir()}
    assert start(bids, finished) == 0
    printed = capsys.readouterr().out
    again = [line for line in steps(printed, "") if "unchanged" not in line and "save" not in line]
    assert again == []
    assert {path: path.stat().st_mtime_ns for path in (finished / "out" / "sub-01" / "anat").iterdir()} == before


def test_steps_left_out_leave_the_images_as_they_are_and_are_named(
    bids: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the work folder of a run that had them: nothing of it is reused."""
    folders = [str(bids), str(tmp_path / "out"), "participant", "-w", str(finished / "work")]
    options = [
        "--skip-bids-validation",
        "--no-certificate",
        "--device",
        "cpu",
        "--models",
        "tensor",
        "--participant-label",
        "01",
    ]
    assert run.main([*folders, *options, "--skip", "denoise", "unring", "align"]) == 0
    printed, out = capsys.readouterr().out, tmp_path / "out"
    assert "note: Left out on request (--skip): denoising of diffusion series" in printed
    assert not any(step in printed for step in ("dwi denoising", "dwi alignment", "unringing   "))
    names = ("sub-01_desc-preproc_dwi", "sub-01_model-tensor_param-fa_desc-wls_dwimap")
    for sidecar in (json.loads((out / "sub-01" / "dwi" / f"{name}.json").read_text()) for name in names):
        assert sidecar["SkippedSteps"] == ["denoise", "unring", "align"]
    raw, found = bids / "sub-01" / "dwi" / "sub-01_dwi.nii.gz", out / "sub-01" / "dwi" / f"{names[0]}.nii.gz"
    np.testing.assert_array_equal(read(found), read(raw).astype(np.float32))
    np.testing.assert_allclose(
        np.loadtxt(str(found).replace(".nii.gz", ".bvec")), np.loadtxt(str(raw).replace(".nii.gz", ".bvec")), atol=2e-6
    )
    fa = [read(folder / "sub-01" / "dwi" / f"{names[1]}.nii.gz") for folder in (out, finished / "out")]
    assert np.nanmedian(np.abs(fa[0] - fa[1])) > 0.001
    for file in ("sub-01.html", "logs/CITATION.md"):
        text = (out / file).read_text()
        assert "not denoised or cleared of Gibbs ringing" in text
    assert "Left out on request (--skip)" in (out / "sub-01.html").read_text()


def test_a_changed_option_computes_what_depends_on_it(
    bids: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another set of models with the same work folder: preprocessing is not repeated."""
    options = ("--models", "t2", "--participant-label", "01")
    arguments = [
        str(bids),
        str(tmp_path / "out"),
        "participant",
        "-w",
        str(finished / "work"),
        "--skip-bids-validation",
    ]
    assert run.main([*arguments, "--nprocs", "2", "--device", "cpu", *options]) == 0
    printed = capsys.readouterr().out
    assert [line for line in steps(printed, "alignment") if "unchanged" not in line] == []
    assert (tmp_path / "out" / "sub-01" / "anat" / "sub-01_T2map.nii.gz").exists()
    assert not (tmp_path / "out" / "sub-01" / "anat" / "sub-01_T1map.nii.gz").exists()


def test_reports_can_be_rebuilt_and_group_tables_made(bids: Path, finished: Path) -> None:
    (finished / "out" / "sub-01.html").unlink()
    assert start(bids, finished, "--reports-only") == 0
    assert (finished / "out" / "sub-01.html").exists()
    assert start(bids, finished, level="group") == 0
    table = (finished / "out" / "group_T1map.tsv").read_text().splitlines()
    header = table[0].split("\t")
    rows = [dict(zip(header, line.split("\t"), strict=True)) for line in table[1:]]
    assert [row["participant_id"] for row in rows] == ["sub-01", "sub-02"]
    values = read(finished / "out" / "sub-01" / "anat" / "sub-01_T1map.nii.gz")
    usable = read(finished / "out" / "sub-01" / "anat" / "sub-01_desc-nllst1usable_mask.nii.gz") > 0
    assert float(rows[0]["median"]) == pytest.approx(np.median(values[usable]), rel=1e-4)
    assert int(rows[0]["n_voxels"]) == usable.sum()
    assert "T1map" in (finished / "out" / "group_report.html").read_text()


def test_one_corrupt_subject_fails_alone(bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "bids"
    shutil.copytree(bids, broken, ignore=shutil.ignore_patterns("dwi", "derivatives"))
    path = broken / "sub-01" / "anat" / "sub-01_inv-3_IRT1.nii.gz"
    path.write_bytes(path.read_bytes()[:5000])
    (broken / "sub-02" / "anat" / "sub-02_echo-2_MESE.json").unlink()
    assert start(broken, tmp_path) == 1
    printed = capsys.readouterr().out
    assert "sub-01_inv-3_IRT1.nii.gz cannot be read" in printed
    assert "needs EchoTime" in printed
    out = tmp_path / "out"
    assert not (out / "sub-01" / "anat" / "sub-01_T1map.nii.gz").exists()
    assert (out / "sub-01" / "anat" / "sub-01_T2map.nii.gz").exists()
    assert (out / "sub-02" / "anat" / "sub-02_T1map.nii.gz").exists()
    assert "the file may be truncated" in (out / "sub-01.html").read_text()
    assert "needs EchoTime" in (out / "sub-02.html").read_text()
    assert not list(out.rglob(".tmp*"))


def test_legacy_layout_and_clean_work_folder(bids: Path, tmp_path: Path) -> None:
    options = ("--models", "t2", "--participant-label", "02", "--output-layout", "legacy", "--clean-workdir")
    assert start(bids, tmp_path, *options) == 0
    assert (tmp_path / "out" / "qmri_bidsapp" / "sub-02" / "anat" / "sub-02_T2map.nii.gz").exists()
    assert not list((tmp_path / "work").rglob("sub_02_wf"))


def test_demo_refuses_a_full_folder(bids: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tools.main(["demo", str(bids)]) == 73
    assert "not empty" in capsys.readouterr().err


@pytest.mark.slow
def test_real_data(real: Path, tmp_path: Path) -> None:
    """All subjects of the real data set, with the validator."""
    arguments = [str(real), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work")]
    assert run.main(arguments) == 0
    assert [issue for issue in validate(tmp_path / "out") if issue.severity == "error"] == []
    expected = read(real / "derivatives/reference/sub-irbrain/anat/sub-irbrain_desc-RDNLSPR_T1map.nii.gz")
    mask = read(real / "derivatives/reference/sub-irbrain/anat/sub-irbrain_desc-brain_mask.nii.gz") > 0
    found = read(tmp_path / "out/sub-irbrain/anat/sub-irbrain_T1map.nii.gz")
    assert np.nanmedian(np.abs(found - expected)[mask]) < 5e-3


@pytest.mark.slow
def test_real_crops(crops: Path, tmp_path: Path) -> None:
    """Both series of a real head, a slab of five slices, from raw data to valid derivatives."""
    options = ["--participant-label", "prisma", "--models", "tensor", "--no-certificate", "--nprocs", "2"]
    assert run.main([str(crops), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work"), *options]) == 0
    assert [issue for issue in validate(tmp_path / "out") if issue.severity == "error"] == []
    name = "sub-prisma_dir-PA_model-tensor_param-fa_desc-wls_dwimap.nii.gz"
    found = read(tmp_path / "out" / "sub-prisma" / "dwi" / name)
    scanner = read(crops / "derivatives/scanner/sub-prisma/dwi/sub-prisma_dir-PA_desc-scanner_FA.nii.gz") / 1000
    both = np.isfinite(found) & (scanner > 0)
    assert both.sum() > 0.9 * (scanner > 0).sum()
    assert abs(np.median(found[both] - scanner[both])) < 0.02


def test_interrupt_stops_workers(bids: Path, tmp_path: Path) -> None:
    import signal
    import sys
    import time

    import psutil

    command = [sys.executable, "-m", "qmri_bidsapp.cli.app.run", str(bids), str(tmp_path / "out"), "participant"]
    command += ["-w", str(tmp_path / "work"), "--skip-bids-validation", "--nprocs", "2"]
    # Where the tests run in the background of a shell, SIGINT is ignored, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("["):
            break
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in error
    time.sleep(0.5)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
