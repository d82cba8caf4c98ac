"""Against answers that others gave: a reference T1 map, dipy's tensor, scipy's minima."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from qmri_bidsapp.bids.kinds import load_kinds
from qmri_bidsapp.bids.sidecars import volumes_protocol
from qmri_bidsapp.core.acquisition import Acquisition, Diffusion, InversionRecovery, MultiEcho, SphericalMean
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.estimators.spatial.estimators import RecurrentInference
from qmri_bidsapp.registry import get_estimator, get_model


def read_series(folder: Path, suffix: str, field: str) -> tuple[tuple[float, ...], np.ndarray]:
    sidecars = sorted(folder.glob(f"*_{suffix}.json"))
    times = tuple(json.loads(path.read_text())[field] for path in sidecars)
    images = [np.asarray(nib.load(path.with_suffix(".nii.gz")).dataobj, dtype=float) for path in sidecars]
    return times, np.stack(images, axis=-1)


def diffusion_of(stem: Path, n_volumes: int) -> Acquisition:
    bval, bvec = f"{stem}.bval", f"{stem}.bvec"
    return volumes_protocol(load_kinds()["dwi"], f"{stem}.nii.gz", {}, n_volumes, bval=bval, bvec=bvec)


def reference(real: Path, name: str) -> np.ndarray:
    return np.asarray(nib.load(real / "derivatives" / "reference" / name).dataobj)


def test_t1_agrees_with_a_reference_map(real: Path) -> None:
    times, data = read_series(real / "sub-irbrain" / "anat", "IRT1", "InversionTime")
    mask = reference(real, "sub-irbrain/anat/sub-irbrain_desc-brain_mask.nii.gz") > 0
    expected = reference(real, "sub-irbrain/anat/sub-irbrain_desc-RDNLSPR_T1map.nii.gz")[mask]
    maps = get_estimator("nlls")(get_model("t1")).fit(InversionRecovery(times)).predict(data[mask])
    assert np.median(np.abs(maps.estimate[:, 2] - expected)) < 2e-3


def test_the_shipped_network_differs_from_a_reference_map_by_the_noise_of_that(real: Path) -> None:
    """The reference is a voxelwise fit: its standard deviation, 0.1 s, is far above what the network averages away."""
    times, data = read_series(real / "sub-irbrain" / "anat", "IRT1", "InversionTime")
    mask = reference(real, "sub-irbrain/anat/sub-irbrain_desc-brain_mask.nii.gz") > 0
    expected = reference(real, "sub-irbrain/anat/sub-irbrain_desc-RDNLSPR_T1map.nii.gz")[mask]
    model, acquisition = get_model("t1"), InversionRecovery(times)
    found = RecurrentInference(model).fit(acquisition).predict_volume(data[mask], mask).estimate[:, 2]
    std = get_estimator("nlls")(model).fit(acquisition).predict(data[mask]).std[:, 2]
    tissue = (expected > 0.4) & (expected < 2) & np.isfinite(std)
    assert tissue.mean() > 0.75
    # 0.67 if it were the truth.
    assert np.median((np.abs(found - expected) / std)[tissue]) < 0.95


def test_t2_of_a_real_brain(real: Path) -> None:
    times, data = read_series(real / "sub-mwi" / "anat", "MESE", "EchoTime")
    mask = reference(real, "sub-mwi/anat/sub-mwi_desc-brain_mask.nii.gz") > 0
    maps = get_estimator("nlls")(get_model("t2")).fit(MultiEcho(times)).predict(data[mask])
    assert 0.070 < np.median(maps.estimate[:, 1]) < 0.090


def tensor_fit(stem: Path, mask: np.ndarray) -> tuple[Diffusion, np.ndarray, dict[str, np.ndarray]]:
    """Return protocol, signals and estimates by name of a diffusion series within a mask."""
    data = np.asarray(nib.load(f"{stem}.nii.gz").dataobj, dtype=float)
    model = get_model("tensor")
    acquisition = diffusion_of(stem, data.shape[3])
    protocol, matrix = model.adapt(acquisition)
    signals = data[mask] if matrix is None else data[mask] @ matrix
    maps = get_estimator("wls")(model).fit(protocol).predict(signals)
    return protocol, signals, {p.name: maps.estimate[:, i] for i, p in enumerate(maps.parameters)}


def scanner_fa(crops: Path) -> np.ndarray:
    """Return the scanner's own fractional anisotropy, 0 outside its mask."""
    name = "derivatives/scanner/sub-prisma/dwi/sub-prisma_dir-PA_desc-scanner_FA.nii.gz"
    return np.asarray(nib.load(crops / name).dataobj) / 1000


@pytest.mark.parametrize("subject", ["prisma", "mdtb2k"])
def test_tensor_agrees_with_dipy(crops: Path, subject: str, request: pytest.FixtureRequest) -> None:
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel

    if subject == "prisma":
        stem, mask = crops / "sub-prisma/dwi/sub-prisma_dir-PA_dwi", scanner_fa(crops) > 0
    else:
        real = request.getfixturevalue("real")
        stem = real / "sub-mdtb2k/dwi/sub-mdtb2k_dwi"
        mask = reference(real, "sub-mdtb2k/dwi/sub-mdtb2k_desc-brain_mask.nii.gz") > 0
    protocol, signals, found = tensor_fit(stem, mask)
    table = gradient_table(np.array(protocol.b_value), bvecs=np.array(protocol.direction))
    peer = TensorModel(table, fit_method="WLS").fit(signals)
    assert np.median(np.abs(found["fa"] - peer.fa)) < 5e-3
    assert np.median(np.abs(found["md"] - peer.md)) < 5e-6
    # At b = 2500 kurtosis makes the diffusivity seem smaller.
    low, high = {"prisma": (0.6e-3, 0.8e-3), "mdtb2k": (0.7e-3, 0.9e-3)}[subject]
    assert 0.15 < np.median(found["fa"]) < 0.26
    assert low < np.median(found["md"]) < high


def test_anisotropy_agrees_with_the_scanner(crops: Path) -> None:
    """The scanner fits by ordinary least squares, which differs from weighted ones by the noise."""
    expected = scanner_fa(crops)
    mask = expected > 0
    _, _, found = tensor_fit(crops / "sub-prisma/dwi/sub-prisma_dir-PA_dwi", mask)
    assert np.corrcoef(found["fa"], expected[mask])[0, 1] > 0.93
    assert abs(np.median(found["fa"] - expected[mask])) < 0.01
    assert np.median(np.abs(found["fa"] - expected[mask])) < 0.02


def test_kurtosis_agrees_with_dipy() -> None:
    """On noisy mixtures of two fibres, for which the expansion holds only nearly."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dki import DiffusionKurtosisModel

    rng, n = np.random.default_rng(4), 60
    g = rng.standard_normal((90, 3))
    g /= np.linalg.norm(g, axis=1, keepdims=True)
    b_value, g = np.repeat([0.0, 1000.0, 2000.0], (6, 30, 60)), np.concatenate([np.zeros((6, 3)), g])
    fibre = rng.standard_normal((n, 2, 3))
    fibre /= np.linalg.norm(fibre, axis=2, keepdims=True)
    along = np.einsum("vfi,mi->vfm", fibre, g) ** 2
    intra, extra = np.exp(-b_value * 1.7e-3 * along), np.exp(-b_value * (0.5e-3 + 1.2e-3 * along))
    signals = 100 * (0.5 * intra + 0.5 * extra).mean(axis=1) + rng.standard_normal((n, len(b_value)))
    acquisition = Diffusion(tuple(b_value.tolist()), tuple(map(tuple, g.tolist())))
    maps = get_estimator("wls")(get_model("kurtosis")).fit(acquisition).predict(signals)
    peer = DiffusionKurtosisModel(gradient_table(b_value, bvecs=g), fit_method="WLS").fit(signals)
    expected = {"fa": peer.fa, "md": peer.md, "mk": peer.mk(), "ak": peer.ak(), "rk": peer.rk()}
    names = [p.name for p in maps.parameters]
    assert (maps.status == Status.OK).all()
    for name, value in expected.items():
        found, std = (values[:, names.index(name)] for values in (maps.estimate, maps.std))
        # The peer weights once, we three times: far less than the noise.
        assert np.median(np.abs(found - value) / std) < 0.1, name
        assert np.corrcoef(found, value)[0, 1] > 0.999, name


def test_kurtosis_of_real_white_matter(real: Path) -> None:
    """Mean kurtosis is about 1, radial above axial (Jensen and Helpern 2010, NMR Biomed 23:698)."""
    stem = real / "sub-msmtroi" / "dwi" / "sub-msmtroi_dwi"
    data = np.asarray(nib.load(f"{stem}.nii.gz").dataobj, dtype=float)
    acquisition = diffusion_of(stem, data.shape[3])
    model = get_model("kurtosis")
    protocol, matrix = model.adapt(acquisition)
    assert matrix is None
    maps = get_estimator("wls")(model).fit(protocol).predict(data[data[..., 0] > np.median(data[..., 0]) / 2])
    value = {p.name: maps.estimate[:, i] for i, p in enumerate(maps.parameters)}
    white = value["fa"] > 0.35
    assert 0.85 < np.median(value["mk"][white]) < 1.05
    assert np.median(value["ak"][white]) < 0.8 < 1.1 < np.median(value["rk"][white])


B_IVIM = (0.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 150.0, 200.0, 300.0, 400.0, 600.0, 800.0, 1000.0)


def test_ivim_agrees_with_dipy() -> None:
    """Dipy fits one voxel after the other from one start: ours ends nowhere above it, and closer to the truth."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.ivim import IvimModel, ivim_prediction

    truth = np.array([1000.0, 0.132885, 0.00885, 0.000921])  # the voxel of dipy's own tests
    table = gradient_table(np.array(B_IVIM), bvecs=np.eye(3)[[0] * 14], b0_threshold=0)
    acquisition, rng = SphericalMean(B_IVIM), np.random.default_rng(1)
    clean = ivim_prediction(truth, table)
    estimator = get_estimator("nlls")(get_model("ivim")).fit(acquisition)
    np.testing.assert_allclose(estimator.predict(clean[None]).estimate[0], truth, rtol=2e-3)
    signals = clean + 5 * rng.standard_normal((20, 14))
    found = estimator.predict(signals).estimate.astype(float)
    peer = IvimModel(table, fit_method="trr", bounds=([0, 0, 0.004, 0], [np.inf, 0.5, 0.1, 0.004])).fit(signals)
    cost, peer_cost = (
        np.square(np.stack([ivim_prediction(row, table) for row in rows]) - signals).sum(axis=1)
        for rows in (found, peer.model_params)
    )
    assert (cost <= peer_cost * (1 + 1e-3)).all()
    assert np.median(np.abs(found[:, 3] - truth[3])) < 3e-5


CASES: dict[str, tuple[Acquisition, list[tuple[float, float]]]] = {
    "t1": (InversionRecovery((0.05, 0.15, 0.3, 0.5, 0.8, 1.2, 1.8, 2.7, 4.2)), [(1.7, 2.0), (0.3, 3.5)]),
    "t2": (MultiEcho((0.0125, 0.025, 0.05, 0.08, 0.12, 0.2)), [(0.02, 0.3)]),
    "smt": (SphericalMean((0.0, 1000.0, 2000.0, 3500.0, 5000.0), (12, 32, 32, 32, 32)), [(0.1, 0.9), (0.3e-3, 2.8e-3)]),
    "ivim": (SphericalMean(B_IVIM, (3,) * 14), [(0.02, 0.4), (0.006, 0.08), (0.3e-3, 3e-3)]),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_reaches_the_minimum_that_many_starts_find(name: str) -> None:
    """At least 98 % of the voxels reach the best cost of a 16-start scipy fit, within 1e-3."""
    acquisition, ranges = CASES[name]
    model, rng, n = get_model(name), np.random.default_rng(2), 60
    theta = np.stack([np.full(n, 1.0), *(rng.uniform(low, high, n) for low, high in ranges)], axis=1)
    root = np.sqrt(np.array(acquisition.n_averages))
    clean = model.signal(torch.tensor(theta), acquisition).numpy()
    signals = clean + 0.02 / root * rng.standard_normal(clean.shape)
    found = get_estimator("nlls")(model).fit(acquisition).predict(signals).estimate[:, : theta.shape[1]]
    scale = np.array([p.scale for p in model.parameters])
    bounds = np.array([p.bounds for p in model.parameters]).T / scale

    def residuals(scaled: np.ndarray, signal: np.ndarray) -> np.ndarray:
        return ((model.signal(torch.tensor(scaled * scale), acquisition).numpy() - signal) * root).ravel()

    reached = 0
    for index in range(n):
        starts = rng.uniform(np.maximum(bounds[0], 1e-3), np.minimum(bounds[1], 5.0), (16, len(scale)))
        best = min(2 * least_squares(residuals, start, bounds=bounds, args=(signals[index],)).cost for start in starts)
        ours = np.square(residuals(found[index].astype(float) / scale, signals[index])).sum()
        reached += ours <= best * (1 + 1e-3) + 1e-12
    assert reached >= 0.98 * n


def test_denoised_diffusion_keeps_its_protocol_through_json() -> None:
    acquisition = SphericalMean((0.0, 1000.0), (3, 30))
    assert Acquisition.from_dict(json.loads(json.dumps(acquisition.to_dict()))) == acquisition
