"""Certificates are made once, and read for every voxel."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.core.acquisition import MultiEcho, SpoiledGradientEcho
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.interfaces import uncertainty
from qmri_bidsapp.interfaces.fitting import Fit
from qmri_bidsapp.interfaces.uncertainty import Certify, ReadTruth, certify_once
from qmri_bidsapp.registry import get_estimator, get_model
from qmri_bidsapp.uncertainty.certificate import ARRAYS, Certificate
from qmri_bidsapp.uncertainty.inverse import Trust

PROTOCOL = MultiEcho((0.01, 0.03, 0.06, 0.09))


def certificate_of(cache: Path, snr: float = 48.0, **inputs) -> str:
    given = {"acquisition": PROTOCOL.to_dict(), "model": "t2", "estimator": "nlls", "noise_is_given": False}
    given["floor_is_removed"] = False
    return Certify(cache=str(cache), snr=snr, **(given | inputs)).run().outputs.certificate


def test_one_certificate_per_level(tmp_path, monkeypatch):
    first = certificate_of(tmp_path)
    assert certificate_of(tmp_path, snr=20.0) != first

    def fail(*_args, **_options):
        raise AssertionError("made again")

    monkeypatch.setattr(uncertainty, "certify", fail)
    assert certificate_of(tmp_path, snr=42.0) == first
    with pytest.raises(AssertionError, match="made again"):
        certificate_of(tmp_path, acquisition=MultiEcho((0.01, 0.03, 0.06, 0.08)).to_dict())


def test_a_damaged_certificate_is_made_again(tmp_path):
    model, noise = get_model("t2"), Noise("rician", (50.0, 50.0))
    estimator = get_estimator("nlls")(model).fit(PROTOCOL)
    folder = certify_once(estimator, PROTOCOL, tmp_path, noise=noise, n=500)
    (folder / ARRAYS).write_bytes(b"")
    assert certify_once(estimator, PROTOCOL, tmp_path, noise=noise, n=500) == folder
    assert Certificate.load(folder, model).identity["n"] == 500


def test_nothing_where_the_noise_is_not_known(tmp_path):
    assert certificate_of(tmp_path, snr=0.0) == ""
    nib.save(nib.Nifti1Image(np.ones((1, 1, 1), np.float32), np.eye(4)), tmp_path / "t2.nii")
    file = str(tmp_path / "t2.nii")
    read = ReadTruth(certificate="", model="t2", in_mask=file, estimates=[file], stds=[file], snr_map=file)
    outputs = read.run(cwd=str(tmp_path)).outputs
    assert (outputs.maps, outputs.trust, outputs.counts) == ([], "", {})


def test_from_images_to_ranges(tmp_path):
    """Maps in the geometry of the mask, one per quantity, in the order of the model."""
    rng, shape = np.random.default_rng(0), (12, 10, 3)
    t2 = 0.02 * 10 ** rng.random(shape)
    data = 1000 * np.exp(-np.array(PROTOCOL.echo_time) / t2[..., None])
    data = np.hypot(data + 20 * rng.standard_normal(data.shape), 20 * rng.standard_normal(data.shape))
    mask = np.ones(shape, np.uint8)
    mask[0] = 0
    nib.save(nib.Nifti1Image(data.astype(np.float32), np.eye(4)), tmp_path / "series.nii")
    nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / "mask.nii")
    fit = Fit(in_file=tmp_path / "series.nii", in_mask=tmp_path / "mask.nii", model="t2", estimator="nlls")
    fit.inputs.trait_set(acquisition=PROTOCOL.to_dict(), find_level=True)
    maps = fit.run(cwd=str(tmp_path)).outputs
    # The first image is the reference: 1000 exp(-10 / 63), over 20.
    assert maps.snr == pytest.approx(43, rel=0.15)
    assert not maps.noise_is_given
    read = ReadTruth(model="t2", in_mask=tmp_path / "mask.nii", estimates=maps.estimates, stds=maps.stds)
    read.inputs.trait_set(snr_map=maps.snr_map, certificate=certificate_of(tmp_path / "cache", maps.snr))
    outputs = read.run(cwd=str(tmp_path)).outputs
    names = [Path(name).stem for name in outputs.maps]
    assert names == [f"{name}_{ending}" for ending in ("bias", "truthlow", "truthhigh") for name in ("s0", "t2", "r2")]
    values = {name: np.asarray(nib.load(file).dataobj) for name, file in zip(names, outputs.maps, strict=True)}
    trust = np.asarray(nib.load(outputs.trust).dataobj)
    assert (trust[0] == Trust.OUTSIDE).all()
    assert sum(outputs.counts.values()) == mask.sum()
    held = (values["t2_truthlow"] <= t2) & (t2 <= values["t2_truthhigh"])
    assert 0.8 < held[mask > 0].mean() < 0.98
    np.testing.assert_allclose(values["t2_truthlow"], 1 / values["r2_truthhigh"], rtol=0.1)


def test_the_map_of_a_covariate_tells_the_place(tmp_path):
    """With a weak transmit field the flip angles are small, and T1 is less certain."""
    acquisition = SpoiledGradientEcho((3, 6, 12, 18, 24), (0.02,) * 5)
    folder = certificate_of(tmp_path, 200.0, acquisition=acquisition.to_dict(), model="vfa", covariates_are_known=True)
    reader = Certificate.load(folder, get_model("vfa")).reader
    estimate = np.array([[1000.0, 1.0, 1.0]] * 2)
    reading = reader.read(estimate, snr=200.0, covariates=np.array([[0.5], [1.0]]))
    width = (reading.upper - reading.lower)[:, 1]
    assert width[0] > 1.3 * width[1]
