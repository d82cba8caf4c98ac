"""The corruptions and the table of ``benchmarks/pipeline_coverage.py``."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import center_of_mass

PATH = Path(__file__).resolve().parents[3] / "benchmarks" / "pipeline_coverage.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("pipeline_coverage", PATH)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def ball(n: int) -> np.ndarray:
    x = np.indices((n, n, n)) - (n - 1) / 2
    return np.exp(-(x**2).sum(0) / (2 * (n / 12) ** 2))


def test_sum_of_squares_has_the_floor_of_its_coils(script):
    rng = np.random.default_rng(0)
    shape = (20, 20, 20, 2)
    found = script.magnitudes(np.zeros(shape), 3.0, script.SETTINGS["sum-of-squares"], rng)
    assert np.sqrt(np.mean(found**2)) == pytest.approx(3 * np.sqrt(2 * script.N_COILS), rel=0.02)
    found = script.magnitudes(np.full(shape, 1000.0), 3.0, script.SETTINGS["sum-of-squares"], rng)
    assert found.mean() == pytest.approx(1000, rel=1e-3)
    assert found.std() == pytest.approx(3, rel=0.03)


def test_sense_noise_varies_and_correlates(script):
    shape = (16, 16, 16, 400)
    found = script.magnitudes(np.full(shape, 1000.0), 3.0, script.SETTINGS["sense"], np.random.default_rng(0))
    assert found[0, 0, 0].std() == pytest.approx(3, rel=0.15)
    assert found[8, 8, 8].std() == pytest.approx(3 * script.CENTRE_GAIN, rel=0.15)
    expected = 2 * script.SHARED / (1 + script.SHARED**2)
    pairs = [np.corrcoef(found[x, 2, 4], found[x, 10, 4])[0, 1] for x in range(16)]
    assert np.mean(pairs) == pytest.approx(expected, abs=0.05)
    assert np.corrcoef(found[3, 2, 4], found[3, 3, 4])[0, 1] == pytest.approx(0, abs=0.2)


def test_partial_fourier_keeps_the_mean_and_removes_its_part_of_the_noise(script):
    setting = script.SETTINGS["partial-fourier"]
    found = script.magnitudes(np.full((16, 16, 16, 8), 1000.0), 3.0, setting, np.random.default_rng(0))
    assert found.mean() == pytest.approx(1000, rel=1e-3)
    # Of the noise in phase with the signal.
    assert found.std() == pytest.approx(3 * np.sqrt(script.PARTIAL), rel=0.05)


def test_truncation_keeps_the_mean_and_overshoots_at_an_edge(script):
    fine = np.zeros((64, 64, 2))
    fine[17:46, 18:47] = 1.0
    found = script.truncate(fine, 4)
    assert found.shape == (16, 16, 2)
    assert found.mean() == pytest.approx(fine.mean(), rel=1e-9)
    assert found.max() > 1.03
    assert found.min() < -0.03
    # A smooth image is that at the centres of the large voxels.
    x = (np.arange(64) + 0.5) / 64
    smooth = np.cos(2 * np.pi * x)[:, None, None] * np.ones((64, 64, 2))
    centre = np.cos(2 * np.pi * (np.arange(16) + 0.5) / 16)
    np.testing.assert_allclose(script.truncate(smooth, 4)[:, 3, 0], centre, atol=1e-9)


def test_motion_moves_and_turns_a_volume(script):
    rng = np.random.default_rng(0)
    pose = script.poses(3, rng)
    np.testing.assert_array_equal(pose[0][0], np.eye(3))
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    series = np.repeat(ball(24)[..., None], 2, axis=-1)
    moved = script.move(series, [(np.eye(3), np.zeros(3)), (np.eye(3), np.array([3.0, 0, -1.5]))], 1.5)
    np.testing.assert_allclose(moved[..., 0], series[..., 0], atol=1e-6)
    shift = np.subtract(center_of_mass(moved[..., 1]), center_of_mass(series[..., 1]))
    np.testing.assert_allclose(shift, [2, 0, -1], atol=0.02)
    # A point on the first axis goes to the second.
    off = np.roll(series, 4, axis=0)
    turned = script.move(off, [(quarter, np.zeros(3))] * 2, 1.5)
    np.testing.assert_allclose(center_of_mass(turned[..., 0]), [11.5, 15.5, 11.5], atol=0.02)


def row(script, head: int, coverage: float, n: int = 1000) -> dict:
    fit = {"setting": "snr10", "head": head, "model": "t2", "region": "WM", "parameter": "t2"}
    counts = {"n_voxels": n, "n_usable": n // 2, "n_interval": n // 2, "n_range": n // 2}
    return {**fit, **counts, "interval_coverage": coverage, "range_coverage": 0.9}


def test_table_pools_voxels(script):
    cells = script.table([row(script, 0, 0.95), row(script, 1, 0.85, n=3000)])
    assert cells == [("snr10", "2", "t2", "WM", "50.0", "87.5 to 87.5", "90.0 to 90.0", "1 of 1")]
    few = script.table([row(script, 0, 0.5, n=700)])
    assert few[0][-3:] == ("", "", "0 of 0")


def test_finished_heads_are_not_run_again(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "write_head", lambda *_: pytest.fail("ran again"))
    options = {"voxel": 6.0, "models": ["t2"]}
    (tmp_path / "check.json").write_text(json.dumps({"options": options, "maps": [{"n": 1}]}))
    assert script.run_head(tmp_path, 0, "snr10", 6.0, ["t2"]) == [{"n": 1}]
    with pytest.raises(SystemExit, match="name another --out"):
        script.run_head(tmp_path, 0, "snr10", 2.5, ["t2"])


def test_a_head_with_everything(script, tmp_path):
    import nibabel as nib

    script.write_head(tmp_path, 1, 12.0, script.Setting(noise="sense", ringing=True, partial=True, motion=True))
    dwi = tmp_path / "sub-01" / "dwi" / "sub-01_dwi"
    assert json.loads(dwi.with_suffix(".json").read_text())["PartialFourier"] == script.PARTIAL
    image = nib.load(dwi.with_suffix(".nii.gz"))
    assert image.shape[-1] == 140
    truth = tmp_path / "derivatives" / "truth" / "sub-01"
    labels = nib.load(truth / "anat" / "sub-01_dseg.nii.gz").get_fdata()
    assert image.get_fdata()[labels == 2][:, 0].mean() > 3 * image.get_fdata()[labels == 2][:, -1].mean()
    assert list(truth.rglob("*_model-smt_*"))
    assert not list(truth.rglob("*noddi*"))
