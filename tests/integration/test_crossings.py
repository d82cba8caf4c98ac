"""Crossing fibres from end to end: blocks of voxels with 0 to 3 bundles of known directions."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from qmri_bidsapp.bids.dataset import validate
from qmri_bidsapp.cli.app import run
from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.core.noise import add_rician
from qmri_bidsapp.images.gradients import format_gradients
from qmri_bidsapp.models.directions import angles_of, unit_vector
from qmri_bidsapp.models.noddi import Noddi

SHAPE = (24, 14, 6)
#: Fractions of the bundles in each block along x. The first is grey matter, which has most of the isotropic voxels, as
#: in a brain: three bundles at right angles look isotropic to the tensor that separates the tissues.
BLOCKS = {(0, 9): (), (9, 14): (1.0,), (14, 19): (0.6, 0.4), (19, 24): (0.4, 0.33, 0.27)}
AXES = np.array([[0.36, 0.48, 0.8], [0.8, -0.6, 0.0], [0.48, 0.64, -0.6]])
FLUID_ROWS = 3


def protocol() -> Diffusion:
    vectors = np.random.default_rng(1).standard_normal((96, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    b_value = (0.0,) * 6 + (1000.0,) * 32 + (2500.0,) * 64
    return Diffusion(b_value, ((0.0, 0.0, 0.0),) * 6 + tuple(map(tuple, vectors)))


def signal(fractions: tuple[float, ...], tissue: tuple[float, ...]) -> np.ndarray:
    n = len(fractions)
    shares = [f / sum(fractions[i:]) for i, f in enumerate(fractions[:-1])]
    angles = angles_of(torch.tensor(AXES[:n])).flatten().tolist()
    theta = torch.tensor([1000.0, *tissue, *shares, *angles], dtype=torch.float64)
    return Noddi.with_bundles(n)().signal(theta, protocol()).numpy()


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("crossings") / "bids"
    folder = root / "sub-01" / "dwi"
    folder.mkdir(parents=True)
    acquisition = protocol()
    data = np.empty((*SHAPE, acquisition.n_measurements))
    for (first, last), fractions in BLOCKS.items():
        data[first:last] = signal(fractions, (0.05, 0.6, 0.08) if fractions else (0.0, 0.4))
    data[:, :FLUID_ROWS] = 1500 * np.exp(-np.array(acquisition.b_value) * 3e-3)
    # A determinant that is not negative: the x axis of the gradients is reversed against the voxels' (FSL).
    image = nib.Nifti1Image(
        add_rician(data, 1000 / 30, np.random.default_rng(0)).astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0])
    )
    nib.save(image, folder / "sub-01_dwi.nii.gz")
    bval, bvec = format_gradients(np.array(acquisition.b_value), np.array(acquisition.direction))
    (folder / "sub-01_dwi.bval").write_text(bval)
    (folder / "sub-01_dwi.bvec").write_text(bvec)
    (folder / "sub-01_dwi.json").write_text("{}")
    (root / "dataset_description.json").write_text(json.dumps({"Name": "crossings", "BIDSVersion": "1.10.0"}))
    return root


def start(bids: Path, folder: Path, *options: str) -> int:
    arguments = [str(bids), str(folder / "out"), "participant", "-w", str(folder / "work"), "--models", "noddi"]
    return run.main([*arguments, "--skip-bids-validation", "--nprocs", "1", "--device", "cpu", *options])


@pytest.fixture(scope="module")
def finished(bids: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert start(bids, folder, "--n-fibres", "auto") == 0
    return folder / "out"


def block(finished: Path, which: int, model: str, param: str, desc: str = "") -> np.ndarray:
    """The voxels of one block, without its borders, of a map."""
    path = finished / "sub-01" / "dwi" / f"sub-01_model-{model}_param-{param}{desc}_dwimap.nii.gz"
    first, last = list(BLOCKS)[which]
    values = np.asarray(nib.load(path).dataobj)[first + 1 : last - 1, FLUID_ROWS + 1 : -1]
    return values.reshape(-1, *values.shape[3:])


@pytest.mark.parametrize("n", range(4))
def test_number_directions_and_fractions(finished: Path, n: int) -> None:
    count = block(finished, n, "csd", "nfibres")
    assert np.mean(count == n) >= 0.9
    right = count == n
    found = block(finished, n, "csd", "direction").reshape(-1, 3, 3)[right]
    np.testing.assert_array_equal(np.isfinite(found).all(-1).sum(-1), n)
    fractions = list(BLOCKS.values())[n]
    for k, truth in enumerate(fractions):
        fraction = block(finished, n, "noddi", f"bundle{k + 1}fraction", "_desc-nlls")[right]
        assert np.median(fraction) == pytest.approx(truth, abs=0.05)
        angles = [block(finished, n, "noddi", f"{name}{k + 1}", "_desc-nlls")[right] for name in ("theta", "phi")]
        axis = unit_vector(torch.tensor(np.stack(angles, axis=-1))).numpy()
        cosine = np.abs(axis @ AXES[k]).clip(0, 1)
        assert np.median(np.rad2deg(np.arccos(cosine))) < 4
        unit = found[:, :n] / np.linalg.norm(found[:, :n], axis=-1, keepdims=True)
        assert np.median(np.rad2deg(np.arccos(np.abs(unit @ AXES[k]).max(-1).clip(0, 1)))) < 6
    for k in range(n, 3):
        assert np.isnan(block(finished, n, "noddi", f"bundle{k + 1}fraction", "_desc-nlls")[right]).all()
        assert np.isnan(block(finished, n, "noddi", f"theta{k + 1}", "_desc-nllsstd")[right]).all()
    density = block(finished, n, "noddi", "ndi", "_desc-nlls")[right]
    assert np.median(density) == pytest.approx(0.6 if n else 0.4, abs=0.05)


def test_output_is_valid_and_described(finished: Path) -> None:
    assert [issue for issue in validate(finished) if issue.severity == "error"] == []
    dwi = finished / "sub-01" / "dwi"
    sidecar = json.loads((dwi / "sub-01_model-csd_param-direction_dwimap.json").read_text())
    assert sidecar["ReferenceAxes"] == "bvec"
    assert sidecar["OrientationRepresentation"] == "3vector"
    assert nib.load(dwi / "sub-01_model-csd_param-direction_dwimap.nii.gz").shape == (*SHAPE, 9)
    used = json.loads((dwi / "sub-01_model-noddi_param-bundle2fraction_desc-nlls_dwimap.json").read_text())["Sources"]
    assert "bids::sub-01/dwi/sub-01_model-csd_param-direction_dwimap.nii.gz" in used
    assert not list(dwi.glob("*share*"))
    page = (finished / "sub-01.html").read_text()
    assert "sub-01_model-csd_param-nfibres_dwimap.nii.gz. Voxels of the brain by number of directions" in page
    assert "NODDI (Watson), 0 to 3 fibre directions" in page
    assert "multi-tissue constrained spherical deconvolution" in (finished / "logs" / "CITATION.md").read_text()


def test_one_bundle_is_the_default(bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(bids, tmp_path, "--boilerplate-only") == 0
    assert "bundles" not in capsys.readouterr().out
    assert "deconvolution" not in (tmp_path / "out" / "logs" / "CITATION.md").read_text()
