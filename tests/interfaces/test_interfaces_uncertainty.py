"""Certificates are made once, and read for every voxel."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.core.acquisition import MultiEcho
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.evaluation.standards import shells
from qmri_bidsapp.fitting import once
from qmri_bidsapp.fitting.evidence import EvidenceCollector
from qmri_bidsapp.fitting.noise import SeriesNoise, smooth
from qmri_bidsapp.fitting.once import certify_once
from qmri_bidsapp.fitting.trust import flag_voxels
from qmri_bidsapp.interfaces.fitting import Fit
from qmri_bidsapp.interfaces.uncertainty import Certify, ReadTruth
from qmri_bidsapp.registry import get_estimator, get_model
from qmri_bidsapp.uncertainty.certificate import ARRAYS, Certificate, certify
from qmri_bidsapp.uncertainty.inverse import Trust
from qmri_bidsapp.uncertainty.ood import LEVEL, Reason
from qmri_bidsapp.uncertainty.simulation import simulate_voxels

PROTOCOL = MultiEcho((0.01, 0.03, 0.06, 0.09))


def certificate_of(cache: Path, snr: float = 48.0, **inputs) -> str:
    given = {"acquisition": PROTOCOL.to_dict(), "model": "t2", "estimator": "nlls", "noise_is_given": False}
    given["floor_removed"] = False
    return Certify(cache=str(cache), snr=snr, **(given | inputs)).run().outputs.certificate


def test_one_certificate_per_level(tmp_path, monkeypatch):
    first = certificate_of(tmp_path)
    assert certificate_of(tmp_path, snr=20.0) != first

    def fail(*_args, **_options):
        raise AssertionError("made again")

    monkeypatch.setattr(once, "certify", fail)
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
    read = ReadTruth(certificate="", model="t2", in_mask=file, estimates=[file], stds=[file], evidence=file)
    outputs = read.run(cwd=str(tmp_path)).outputs
    assert (outputs.maps, outputs.trust, outputs.counts, outputs.flags) == ([], "", {}, [])


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
    fit.inputs.trait_set(acquisition=PROTOCOL.to_dict(), with_evidence=True)
    maps = fit.run(cwd=str(tmp_path)).outputs
    # The first image is the reference: 1000 exp(-10 / 63), over 20.
    assert maps.snr == pytest.approx(43, rel=0.15)
    assert not maps.noise_is_given
    read = ReadTruth(model="t2", in_mask=tmp_path / "mask.nii", estimates=maps.estimates, stds=maps.stds)
    read.inputs.trait_set(evidence=maps.evidence, certificate=certificate_of(tmp_path / "cache", maps.snr))
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
    reasons, p_value = (np.asarray(nib.load(name).dataobj) for name in outputs.flags)
    assert (reasons[0] == Reason.OUTSIDE).all()
    np.testing.assert_array_equal(p_value[mask > 0] <= LEVEL, reasons[mask > 0] > Reason.TYPICAL)
    assert 0.01 < (reasons[mask > 0] > Reason.TYPICAL).mean() < 0.1
    assert sum(outputs.flag_counts.values()) == mask.sum()
    assert outputs.noise_factor == 1


def test_one_bad_image_is_found_where_it_is(tmp_path):
    """The signal of the third echo drops in one corner; voxels are in the order of the mask, not of reading."""
    rng, shape = np.random.default_rng(0), (24, 20, 9)
    protocol = MultiEcho((0.01, 0.02, 0.03, 0.05, 0.07, 0.1))
    data = 1000 * np.exp(-np.array(protocol.echo_time) / (0.05 + 0.1 * rng.random((*shape, 1))))
    data[:6, :5, :4, 2] *= 0.8
    data += 10 * rng.standard_normal(data.shape)
    mask = rng.random(shape) < 0.8
    nib.save(nib.Nifti1Image(data.astype(np.float32), np.eye(4)), tmp_path / "series.nii")
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), np.eye(4)), tmp_path / "mask.nii")
    fit = Fit(in_file=tmp_path / "series.nii", in_mask=tmp_path / "mask.nii", model="t2", estimator="nlls")
    fit.inputs.trait_set(acquisition=protocol.to_dict(), with_evidence=True)
    maps = fit.run(cwd=str(tmp_path)).outputs
    certificate = certificate_of(tmp_path / "cache", maps.snr, acquisition=protocol.to_dict())
    read = ReadTruth(model="t2", in_mask=tmp_path / "mask.nii", estimates=maps.estimates, stds=maps.stds)
    read.inputs.trait_set(evidence=maps.evidence, certificate=certificate)
    read.inputs.with_intervals = True
    outputs = read.run(cwd=str(tmp_path)).outputs
    reasons = np.asarray(nib.load(outputs.flags[0]).dataobj)
    (low,) = (np.asarray(nib.load(name).dataobj) for name in outputs.maps if name.endswith("t2_low.nii"))
    np.testing.assert_array_equal(np.isfinite(low), reasons == Reason.TYPICAL)
    corner = np.zeros(shape, dtype=bool)
    corner[:6, :5, :4] = True
    assert (reasons[corner & mask] > Reason.TYPICAL).mean() > 0.9
    assert (reasons[~corner & mask] > Reason.TYPICAL).mean() < 0.08


def test_less_noise_than_was_measured_is_no_fault():
    """A quarter of it is found, or, in a denoised series, accepted."""
    rng, n = np.random.default_rng(0), 3000
    series = shells(6, (1000.0, 32), (2500.0, 32))
    protocol, matrix = get_model("smt").adapt(series)
    noise = Noise("gaussian", (30.0, 30.0))
    estimator = get_estimator("nlls")(get_model("smt")).fit(protocol)
    values = get_model("smt").default_prior().draw(n, rng)
    options = {"noise_is_known": True, "covariates_are_known": False, "by_volume": True}
    voxels = simulate_voxels(estimator, protocol, values, noise, seed=1, **options)
    mask = np.ones((15, 20, 10), dtype=bool)
    collector = EvidenceCollector(estimator, series, mask, SeriesNoise(4 * voxels.noise_std))
    signals = voxels.series @ matrix.astype(np.float32)
    collector.add(np.arange(n), voxels.series, signals, estimator.predict(signals), None)
    evidence = collector.finish()
    certificate = certify(estimator, protocol, noise=Noise("gaussian", (10.0, 10.0)), n=4000)

    def over_neighbours(values):
        return smooth(values.reshape(mask.shape))[mask]

    def flag(factor: float, *, floor_removed: bool):
        return flag_voxels(
            certificate,
            evidence.measures,
            evidence.noise_std / factor,
            over_neighbours=over_neighbours,
            floor_removed=floor_removed,
        )

    flags, factor = flag(1.0, floor_removed=False)
    assert factor == pytest.approx(0.25, rel=0.03)
    # Five percent, more by the error of the noise in the neighbourhood and by the small certificate.
    assert (flags.reason > Reason.TYPICAL).mean() < 0.08
    flags, factor = flag(1.0, floor_removed=True)
    assert factor == 1
    assert (flags.reason > Reason.TYPICAL).mean() < 0.05
    assert not (flags.reason == Reason.DIRECTIONS).any()
    # More noise than was measured is a fault.
    flags, factor = flag(8.0, floor_removed=True)
    assert factor == 1
    assert (flags.reason == Reason.DIRECTIONS).mean() > 0.9
