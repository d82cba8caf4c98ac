"""``qmri check-repeatability`` from end to end, on simulated echoes with known noise."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from qmri_bidsapp.cli import tools
from qmri_bidsapp.cli.app import run

SHAPE, AFFINE = (24, 24, 4), np.diag([3.0, 3.0, 3.0, 1.0])
ECHO_TIMES = 0.012 * np.arange(1, 13)
NOISE = 12.0


def write_echoes(bids: Path, name: str, *, n_echoes: int = len(ECHO_TIMES), seed: int = 0) -> None:
    """Write a block of tissue of T2 60 to 120 ms in a dark background, with Rician noise."""
    rng = np.random.default_rng(seed)
    t2 = 0.06 + 0.06 * np.linspace(0, 1, SHAPE[0])[:, None, None] * np.ones(SHAPE)
    inside = np.zeros(SHAPE)
    inside[3:-3, 3:-3] = 1
    folder = bids / "sub-01" / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    for index, time in enumerate(ECHO_TIMES[:n_echoes], start=1):
        noise = NOISE * rng.standard_normal((2, *SHAPE))
        magnitude = np.hypot(1000 * inside * np.exp(-time / t2) + noise[0], noise[1])
        stem = folder / f"sub-01_{name}echo-{index}_MESE"
        nib.save(nib.Nifti1Image(magnitude.astype(np.float32), AFFINE), f"{stem}.nii.gz")
        Path(f"{stem}.json").write_text(json.dumps({"EchoTime": float(time)}))


@pytest.fixture
def bids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bids"
    folder.mkdir()
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "test", "BIDSVersion": "1.10.0"}))
    monkeypatch.chdir(tmp_path)
    return folder


def check(bids: Path, *options: str) -> int:
    common = ["--skip-bids-validation", "--no-certificate", "--nprocs", "1", "--device", "cpu"]
    return tools.main(["check-repeatability", str(bids), "out", *common, *options])


def test_right_noise_meets_the_goals_and_half_of_it_does_not(bids, monkeypatch, capsys) -> None:
    for number in (1, 2):
        write_echoes(bids, f"run-{number}_", seed=number)
    assert check(bids) == 0
    table = pd.read_table("out/repeatability.tsv")
    assert set(table["series"]) == {"run-1_MESE", "run-2_MESE", "run-1_MESE and run-2_MESE"}
    assert set(table["parameter"]) == {"s0", "t2", "r2"}
    assert table["sd_z"].between(0.9, 1.15).all()
    assert table["within"].between(92, 98).all()
    assert (table["n_voxels"] > 1000).all()
    assert set(table["verdict"]) == {"ok"}
    assert set(json.loads(Path("out/repeatability.json").read_text())) == {*table.columns, "Notes"}
    printed = capsys.readouterr().out
    assert "9 of 9 parameters meet the goals" in printed

    def halve_afterwards(config) -> int:
        code = run_participants(config)
        for path in config.derivatives_dir.rglob("*std_*map.nii.gz"):
            image = nib.load(path)
            nib.save(nib.Nifti1Image(0.5 * image.get_fdata(), image.affine), path)
        return code

    run_participants = run.run_participants
    monkeypatch.setattr(run, "run_participants", halve_afterwards)
    assert check(bids) == 1
    assert set(pd.read_table("out/repeatability.tsv")["verdict"]) == {"std too small"}
    assert "0 of 9 parameters meet the goals" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("n_echoes", "options", "code", "cause"),
    [
        (3, (), 18, "There is nothing to compare: sub-01 MESE: 3 images are too few to split; it takes 4."),
        (12, ("--models", "smt"), 18, "No maps could be compared"),
        (12, ("--reports-only",), 64, "make no maps to compare"),
        (12, ("--n-fibres", "auto"), 64, "bundles have no order"),
        (12, ("--no-such-option",), 64, "no-such-option"),
    ],
    ids=["few", "no-model", "reports", "bundles", "unknown"],
)
def test_what_cannot_be_compared_is_named(bids, n_echoes, options, code, cause, capsys) -> None:
    write_echoes(bids, "", n_echoes=n_echoes)
    assert check(bids, *options) == code
    printed = capsys.readouterr()
    assert cause in printed.err
