from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.bids.dataset import validate
from qmri_bidsapp.core.acquisition import SphericalMean
from qmri_bidsapp.demo import signals
from qmri_bidsapp.demo.dataset import write_demo
from qmri_bidsapp.demo.phantom import ABNORMALITY_3, make_head
from qmri_bidsapp.registry import get_model


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo") / "bids", t1w_voxel=6, series_voxel=8)


def test_is_valid_bids(demo: Path) -> None:
    assert [issue for issue in validate(demo) if issue.severity == "error"] == []
    assert [issue for issue in validate(demo / "derivatives" / "truth") if issue.severity == "error"] == []


def test_seed_decides_everything(demo: Path, tmp_path: Path) -> None:
    again = write_demo(tmp_path / "again", t1w_voxel=6, series_voxel=8)
    other = write_demo(tmp_path / "other", seed=1, t1w_voxel=6, series_voxel=8)
    name = "sub-01/dwi/sub-01_dwi.nii.gz"
    assert (again / name).read_bytes() == (demo / name).read_bytes()
    assert (other / name).read_bytes() != (demo / name).read_bytes()


def test_protocol_is_that_of_the_paper(demo: Path) -> None:
    b_value = np.array((demo / "sub-01/dwi/sub-01_dwi.bval").read_text().split(), dtype=float)
    values, counts = np.unique(b_value, return_counts=True)
    assert dict(zip(values, counts, strict=True)) == {0: 12, 1000: 32, 2000: 32, 3500: 32, 5000: 32}


def test_powder_average_is_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise, averages over many directions agree with the spherical mean that the model predicts."""
    import torch

    monkeypatch.setattr(signals, "add_rician", lambda signal, sigma, rng: signal)
    head = make_head(1, 9.0, np.random.default_rng(0))
    acquisition = signals.gradient_table(np.random.default_rng(0))
    protocol, matrix = SphericalMean.from_diffusion(acquisition)
    means = signals.diffusion(head, acquisition, np.random.default_rng(1)) @ matrix
    inside = head.brain & (means[..., 0] > 50)
    theta = np.stack([means[..., 0], head.parameters["fraction"], head.parameters["diffusivity"]], axis=-1)[inside]
    expected = get_model("smt").signal(torch.tensor(theta), protocol).numpy()
    error = np.abs(means[inside] - expected) / theta[:, :1]
    assert np.median(error, axis=0).max() < 0.01


def test_second_head_holds_a_lesion_and_a_region_without_model() -> None:
    first, second = (make_head(index, 4.0, np.random.default_rng(0)) for index in (1, 2))
    assert not first.lesion.any()
    assert 20 < second.lesion.sum() < 100
    assert 20 < second.unmodelled.sum() < 100
    np.testing.assert_allclose(second.parameters["fraction"][second.lesion], ABNORMALITY_3[0])
    white = second.fractions["wm"]
    assert white[second.lesion].mean() > 0.5


def test_noise_is_at_the_stated_level(demo: Path) -> None:
    data = np.asarray(nib.load(demo / "sub-01/dwi/sub-01_dwi.nii.gz").dataobj).astype(float)
    labels = np.asarray(nib.load(demo / "derivatives/truth/sub-01/anat/sub-01_desc-series_dseg.nii.gz").dataobj)
    b_value = np.array((demo / "sub-01/dwi/sub-01_dwi.bval").read_text().split(), dtype=float)
    tissue = data[np.isin(labels, (1, 2))][:, b_value == 0]
    assert tissue.mean() / np.sqrt(tissue.var(axis=1, ddof=1).mean()) == pytest.approx(signals.SNR["dwi"], rel=0.05)
