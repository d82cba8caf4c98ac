"""``qmri fit``: the Python face for people without Python."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import qmri_bidsapp as qmri
from qmri_bidsapp.cli import tools

ECHO_TIME = [0.0125, 0.025, 0.05]


@pytest.fixture
def echoes(tmp_path: Path) -> list[str]:
    rng, files = np.random.default_rng(0), []
    for k, time in enumerate(ECHO_TIME):
        data = 1000 * np.exp(-time / 0.08) + 10 * rng.standard_normal((6, 5, 4))
        nib.save(nib.Nifti1Image(data.astype(np.float32), np.eye(4)), tmp_path / f"echo{k}.nii.gz")
        files.append(str(tmp_path / f"echo{k}.nii.gz"))
    return files


def test_echoes_to_maps(echoes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = [str(time) for time in ECHO_TIME]
    assert tools.main(["fit", "t2", *echoes, "--echo-times", *times, "--out", str(tmp_path / "maps")]) == 0
    expected = qmri.fit("t2", echoes, echo_time=ECHO_TIME)
    image = nib.load(tmp_path / "maps" / "T2map.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), expected["t2"])
    assert (tmp_path / "maps" / "desc-nllst2flag_dseg.nii.gz").is_file()
    printed = capsys.readouterr().out
    assert "120 voxels (120 OK)" in printed
    assert "t2 " in printed
    assert "usable: 9" in printed


def test_without_a_certificate_there_are_no_flags(echoes: list[str], tmp_path: Path) -> None:
    words = ["fit", "t2", *echoes, "--echo-times", *map(str, ECHO_TIME), "--no-certificate", "--prefix", "sub-1_"]
    assert tools.main([*words, "--out", str(tmp_path / "maps")]) == 0
    names = sorted(path.name for path in (tmp_path / "maps").glob("*.nii.gz"))
    assert "sub-1_T2map.nii.gz" in names
    assert not any("flag" in name or "truth" in name for name in names)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 64, "Model t2 needs echo_time"),
        (["--echo-times", "0.01", "0.02"], 1, "has 3 images, but the protocol 2"),
        (["--echo-times", "0.01", "0.02", "0.03", "--covariate", "b1"], 64, "--covariate needs NAME=FILE, got 'b1'"),
        (["--echo-times", "0.01", "0.02", "0.03", "--mask", "absent.nii"], 1, "absent.nii cannot be read"),
    ],
    ids=["no times", "few times", "covariate", "mask"],
)
def test_errors_say_what_to_do(
    options: list[str], code: int, message: str, echoes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tools.main(["fit", "t2", *echoes, "--out", str(tmp_path / "maps"), *options]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "maps").exists()
