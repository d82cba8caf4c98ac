from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.core.acquisition import Diffusion, MultiEcho
from qmri_bidsapp.estimators.likelihood.log_linear import WeightedLinearLeastSquares
from qmri_bidsapp.fitting.noise import SeriesNoise
from qmri_bidsapp.fitting.series import fit_series
from qmri_bidsapp.interfaces.fitting import Fit
from qmri_bidsapp.models.tensor import DiffusionTensor

NOISE = 2.0


def protocol(n_directions: int) -> Diffusion:
    directions = np.random.default_rng(0).standard_normal((n_directions, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rows = [(0.0, 0.0, 0.0)] * 2 + [tuple(row) for row in directions]
    return Diffusion((0.0, 0.0) + (1000.0,) * n_directions, tuple(rows))


@pytest.mark.parametrize("n_directions", [6, 40], ids=["nothing-repeats", "many-directions"])
def test_unknown_noise_comes_from_shells_or_leaves_the_std_open(n_directions: int) -> None:
    """Two voxels, the noise of the second being unknown; no standard deviation is ever zero."""
    acquisition = protocol(n_directions)
    clean = 100 * np.exp(-0.001 * np.array(acquisition.b_value))
    data = clean + NOISE * np.random.default_rng(1).standard_normal((2, 1, 1, len(clean)))
    data = data.astype(np.float32)
    noise = np.array([NOISE, np.nan], dtype=np.float32).reshape(2, 1, 1)
    mask = np.ones((2, 1, 1), dtype=bool)
    known = SeriesNoise.of_series(data, mask, acquisition, measured=noise)
    maps = fit_series(WeightedLinearLeastSquares(DiffusionTensor()), data, mask, acquisition, noise=known).maps
    mean_diffusivity = [p.name for p in maps.parameters].index("md")
    known, unknown = maps.std[:, mean_diffusivity]
    assert known > 0
    if n_directions == 6:
        assert np.isnan(unknown)
    else:
        assert unknown == pytest.approx(known, rel=0.4)


def test_maps_have_the_whole_geometry_of_the_mask(tmp_path: Path) -> None:
    """Units and codes of the header as well, which say what its coordinates are."""
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    acquisition = MultiEcho((0.01, 0.03, 0.09))
    data = 100 * np.exp(-np.array(acquisition.echo_time) / 0.08) * np.ones((2, 2, 2, 1))
    for name, values in (("series.nii", data.astype(np.float32)), ("mask.nii", np.ones((2, 2, 2), np.uint8))):
        image = nib.Nifti1Image(values, affine)
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, tmp_path / name)
    fit = Fit(in_file=tmp_path / "series.nii", in_mask=tmp_path / "mask.nii", model="t2", estimator="nlls")
    fit.inputs.acquisition = acquisition.to_dict()
    outputs = fit.run(cwd=str(tmp_path)).outputs
    for name in (*outputs.estimates, *outputs.stds, outputs.status):
        header = nib.load(name).header
        assert header.get_xyzt_units()[0] == "mm"
        assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)
        np.testing.assert_allclose(nib.load(name).affine, affine)


def test_a_posterior_adds_limits_and_evidence(tmp_path: Path) -> None:
    acquisition = MultiEcho((0.01, 0.02, 0.04, 0.06, 0.09, 0.12))
    data = 100 * np.exp(-np.array(acquisition.echo_time) / 0.08) * np.ones((2, 2, 2, 1))
    data += NOISE * np.random.default_rng(0).standard_normal(data.shape)
    nib.save(nib.Nifti1Image(data.astype(np.float32), np.eye(4)), tmp_path / "series.nii")
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "mask.nii")
    files = {"in_file": tmp_path / "series.nii", "in_mask": tmp_path / "mask.nii"}
    for estimator, expected in (("nlls", []), ("grid", ["s0", "t2", "r2"])):
        fit = Fit(**files, model="t2", estimator=estimator, acquisition=acquisition.to_dict())
        outputs = fit.run(cwd=str(tmp_path)).outputs
        names = [Path(name).name for name in outputs.posterior]
        endings = [f"{name}_{limit}.nii" for limit in ("low", "high") for name in expected]
        assert names == endings + (["log_evidence.nii"] if expected else [])
    low, high = (np.asarray(nib.load(tmp_path / f"t2_{limit}.nii").dataobj) for limit in ("low", "high"))
    estimate = np.asarray(nib.load(tmp_path / "t2.nii").dataobj)
    assert ((low < estimate) & (estimate < high)).all()
