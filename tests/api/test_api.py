"""The Python face: natural calls work, wrong ones say what is needed, and the numbers are those of the engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import qmri_bidsapp as qmri
from qmri_bidsapp.core.acquisition import Diffusion, MultiEcho
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.errors import InputError, ProtocolError, UsageError
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.evaluation.standards import shells, simulate
from qmri_bidsapp.registry import get_model
from qmri_bidsapp.uncertainty.ood import Reason

ECHO_TIME = [0.0125, 0.025, 0.05, 0.08, 0.12]
SHAPE = (8, 7, 6)
NLLS_FOR_T1 = NonLinearLeastSquares(get_model("t1"))
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.05, 0.1, SHAPE)


@pytest.fixture(scope="module")
def echoes(truth: np.ndarray) -> np.ndarray:
    clean = 1000 * np.exp(-np.array(ECHO_TIME) / truth[..., None])
    noise = np.random.default_rng(1).standard_normal((2, *clean.shape))
    data = np.hypot(clean + 10 * noise[0], 10 * noise[1]).astype(np.float32)
    # A voxel with one wrong image, and one without signal.
    data[1, 1, 1, 2] *= 1.5
    data[2, 2, 2] = 0
    return data


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    inside = np.ones(SHAPE, dtype=bool)
    inside[0] = False
    return inside


@pytest.fixture(scope="module")
def maps(echoes: np.ndarray, mask: np.ndarray) -> qmri.Maps:
    return qmri.fit("t2", nib.Nifti1Image(echoes, AFFINE), echo_time=ECHO_TIME, mask=mask)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, qmri_bidsapp; print(sorted({'torch', 'numpy', 'scipy', 'nibabel'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_names_that_do_not_exist_are_attribute_errors() -> None:
    assert {"fit", "certify", "score_motion", "Maps"} <= set(dir(qmri))
    with pytest.raises(AttributeError, match="has no attribute 'fitt'"):
        qmri.fitt  # noqa: B018


def test_estimates_are_volumes_by_name(maps: qmri.Maps, truth: np.ndarray, mask: np.ndarray) -> None:
    assert list(maps) == ["s0", "t2", "r2"]
    assert maps["T2"].shape == SHAPE
    assert np.isnan(maps["T2"][~mask]).all()
    for name in ("t2", "T2map"):
        np.testing.assert_array_equal(maps[name], maps["T2"])
    error = (maps["T2"] - truth) / maps.std["T2"]
    assert np.nanstd(error[maps.usable]) == pytest.approx(1, abs=0.15)
    with pytest.raises(KeyError, match=r"no map 'T3'; known: s0, t2, r2"):
        maps["T3"]


def test_a_faulty_voxel_is_flagged_and_not_usable(maps: qmri.Maps, mask: np.ndarray) -> None:
    assert maps.flag[1, 1, 1] > Reason.TYPICAL
    assert maps.p_value[1, 1, 1] < 0.01
    assert maps.status[2, 2, 2] == Status.NO_SIGNAL
    assert not maps.usable[[1, 2], [1, 2], [1, 2]].any()
    assert not maps.usable[~mask].any()
    assert maps.usable[mask].mean() > 0.85


def test_ranges_hold_the_truth(maps: qmri.Maps, truth: np.ndarray) -> None:
    inside = (maps.truth_low["T2"] <= truth) & (truth <= maps.truth_high["T2"])
    assert 0.8 < inside[maps.usable].mean() < 0.98
    assert np.abs(maps.bias["T2"][maps.usable]).max() < 0.01


def test_the_table_counts_usable_voxels_by_region(maps: qmri.Maps, mask: np.ndarray) -> None:
    regions = np.zeros(SHAPE, dtype=np.uint8)
    regions[:4], regions[4:] = 1, 2
    table = maps.table(regions, {1: "left"})
    assert table["region"].tolist() == ["left"] * 3 + ["2"] * 3
    row = table[(table["region"] == "left") & (table["quantity"] == "t2")].iloc[0]
    chosen = maps.usable & (regions == 1)
    assert (row["n_voxels"], row["n_usable"]) == ((mask & (regions == 1)).sum(), chosen.sum())
    assert row["median"] == pytest.approx(np.median(maps["t2"][chosen]))
    assert maps.table()["region"].unique().tolist() == ["mask"]
    with pytest.raises(InputError, match="regions has shape"):
        maps.table(regions[:4])


def test_images_are_written_with_sidecars(maps: qmri.Maps, tmp_path: Path) -> None:
    written = maps.to_nifti(tmp_path / "out", "sub-01_")
    names = {path.name for path in written}
    assert {"sub-01_T2map.nii.gz", "sub-01_desc-nllsstd_T2map.nii.gz", "sub-01_desc-nllst2flag_dseg.nii.gz"} <= names
    assert all(path.with_name(path.name.replace(".nii.gz", ".json")).is_file() for path in written)
    image = nib.load(tmp_path / "out" / "sub-01_T2map.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), maps["T2"])
    np.testing.assert_array_equal(image.affine, AFFINE)
    sidecar = json.loads((tmp_path / "out" / "sub-01_T2map.json").read_text())
    assert sidecar["Units"] == "s"
    assert sidecar["Acquisition"]["echo_time"] == ECHO_TIME
    flags = json.loads((tmp_path / "out" / "sub-01_desc-nllst2flag_dseg.json").read_text())
    assert flags["Levels"]["1"] == "TYPICAL"


@pytest.mark.parametrize("how", ["array", "files", "arrays", "4-D file"])
def test_every_kind_of_series_gives_the_same_numbers(
    how: str, maps: qmri.Maps, echoes: np.ndarray, mask: np.ndarray, tmp_path: Path
) -> None:
    files = []
    for k in range(len(ECHO_TIME)):
        nib.save(nib.Nifti1Image(echoes[..., k], AFFINE), tmp_path / f"echo-{k}.nii.gz")
        files.append(str(tmp_path / f"echo-{k}.nii.gz"))
    nib.save(nib.Nifti1Image(echoes, AFFINE), tmp_path / "all.nii")
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), AFFINE), tmp_path / "mask.nii")
    series = {
        "array": echoes,
        "files": files,
        "arrays": list(np.moveaxis(echoes, -1, 0)),
        "4-D file": tmp_path / "all.nii",
    }
    found = qmri.fit("t2", series[how], acquisition=MultiEcho(tuple(ECHO_TIME)), mask=tmp_path / "mask.nii")
    np.testing.assert_array_equal(found["t2"], maps["t2"])
    np.testing.assert_array_equal(found.std["t2"], maps.std["t2"])


def test_an_estimator_may_be_an_object(maps: qmri.Maps, echoes: np.ndarray, mask: np.ndarray) -> None:
    own = NonLinearLeastSquares(get_model("t2"))
    for estimator in (own, NonLinearLeastSquares, "nlls"):
        found = qmri.fit(get_model("t2"), echoes, echo_time=ECHO_TIME, mask=mask, estimator=estimator)
        np.testing.assert_array_equal(found["t2"], maps["t2"])


@pytest.mark.parametrize("model", ["smt", "ivim", "noddi", "tensor"])
def test_every_diffusion_model_takes_the_series_as_it_is(model: str) -> None:
    low = shells(4, (20.0, 6), (80.0, 6), (200.0, 6), (500.0, 6), (800.0, 6))
    protocol = low if model == "ivim" else shells(4, (700.0, 20), (2000.0, 30))
    assert isinstance(protocol, Diffusion)
    data = simulate(get_model("tensor"), protocol, 30).reshape(5, 3, 2, -1)
    found = qmri.fit(model, data, bvals=protocol.b_value, bvecs=np.array(protocol.direction).T)
    assert found.acquisition.b_value == protocol.b_value
    weighted = np.array(protocol.b_value) > 50
    own, given = (np.array(item.direction)[weighted] for item in (found.acquisition, protocol))
    np.testing.assert_allclose(own, given, rtol=1e-12)
    assert np.isfinite(found["s0"]).mean() > 0.9


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, UsageError, r"Model t2 needs echo_time; got none of them"),
        ({"inversion_time": ECHO_TIME}, UsageError, r"Model t2 needs echo_time; got inversion_time"),
        ({"echo_time": ECHO_TIME[:4]}, InputError, "has 5 images, but the protocol 4"),
        ({"echo_time": [12.5, 25, 50, 80, 120]}, ProtocolError, "in milliseconds"),
        ({"echo_time": ECHO_TIME, "estimator": "nnls"}, UsageError, "no estimator named 'nnls'; known: .*nlls"),
        ({"echo_time": ECHO_TIME, "options": {"x": 1}}, UsageError, "Estimator nlls has no option x"),
        ({"echo_time": ECHO_TIME, "covariates": {"b1": 1}}, UsageError, "Covariates of model t2: none; got b1"),
        ({"echo_time": ECHO_TIME, "mask": np.ones((2, 2, 2))}, InputError, r"mask has shape \(2, 2, 2\)"),
        ({"echo_time": ECHO_TIME, "acquisition": MultiEcho(tuple(ECHO_TIME))}, UsageError, "got both: echo_time"),
        ({"acquisition": "protocol"}, UsageError, "must be an Acquisition, got 'protocol'"),
        ({"echo_time": 0.01}, UsageError, "a list with one number per image, got 0.01"),
        ({"echo_time": ["a"] * 5}, UsageError, "a list with one number per image"),
        ({"echo_time": ECHO_TIME, "noise_std": -1}, InputError, "positive number in the unit of the images, got -1"),
        ({"echo_time": ECHO_TIME, "noise_std": np.ones((1, 7, 6))}, InputError, r"noise_std has shape \(1, 7, 6\)"),
        ({"echo_time": ECHO_TIME, "noise_std": -np.ones((8, 7, 6))}, InputError, "holds negative values"),
        ({"echo_time": ECHO_TIME, "estimator": 5}, UsageError, "a name, a class or an Estimator, got 5"),
        ({"echo_time": ECHO_TIME, "estimator": NLLS_FOR_T1}, UsageError, "is for model t1, but model t2 is fitted"),
        ({"echo_time": ECHO_TIME, "weights": "w"}, UsageError, "Estimator nlls takes no weights"),
        ({"echo_time": ECHO_TIME, "device": "gpu"}, UsageError, "no device 'gpu'; give 'cpu'"),
        ({"echo_time": ECHO_TIME, "seed": -1}, UsageError, "an integer of at least 0, got -1"),
    ],
    ids=[
        *("nothing", "other", "count", "unit", "estimator", "option", "covariate", "mask", "both", "no protocol"),
        *("one time", "no times", "noise", "shape of noise", "map of noise", "no estimator", "other model", "weights"),
        *("device", "seed"),
    ],
)
def test_wrong_calls_say_what_is_needed(arguments: dict, error: type, message: str, echoes: np.ndarray) -> None:
    with pytest.raises(error, match=message):
        qmri.fit("t2", echoes, **arguments)


def test_a_series_of_three_dimensions_is_refused(echoes: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"needs four dimensions .* got shape \(8, 7, 6\)"):
        qmri.fit("t2", echoes[..., 0], echo_time=ECHO_TIME)


def test_a_series_of_complex_numbers_is_refused(echoes: np.ndarray) -> None:
    with pytest.raises(InputError, match="must hold real numbers, got complex"):
        qmri.fit("t2", echoes + 1j, echo_time=ECHO_TIME)


def test_images_on_another_grid_are_refused(echoes: np.ndarray, mask: np.ndarray) -> None:
    series, other = (nib.Nifti1Image(echoes, np.diag([size] * 3 + [1.0])) for size in (2.0, 3.0))
    inside = nib.Nifti1Image(mask.astype(np.uint8), other.affine)
    with pytest.raises(InputError, match="affine of the mask differs"):
        qmri.fit("t2", series, echo_time=ECHO_TIME, mask=inside)


@pytest.mark.parametrize("scale", [1e-3, 1e6], ids=["ms/um2", "s/m2"])
def test_b_values_in_another_unit_are_refused(scale: float) -> None:
    protocol = shells(4, (700.0, 20), (2000.0, 30))
    with pytest.raises(UsageError, match="must be in s/mm2"):
        qmri.certify("tensor", snr=20, bvals=np.array(protocol.b_value) * scale, bvecs=protocol.direction)


def test_labels_of_regions_are_whole_numbers(maps: qmri.Maps, mask: np.ndarray) -> None:
    with pytest.raises(InputError, match="whole numbers"):
        maps.table(mask * 0.5)
    assert len(maps.table(np.where(mask, np.nan, 1.0))) == 0


def test_without_a_certificate_the_status_decides_what_is_usable(echoes: np.ndarray, mask: np.ndarray) -> None:
    found = qmri.fit("t2", echoes[..., :2], echo_time=ECHO_TIME[:2], mask=mask)
    assert not found.has_certificate
    np.testing.assert_array_equal(found.usable, found.status == Status.OK)
    assert found.table()["n_usable"].iloc[0] == found.usable.sum()


@pytest.mark.parametrize("snr", [0, -5.0, float("nan"), "20"], ids=["zero", "negative", "nan", "text"])
def test_an_snr_is_a_positive_number(snr: Any) -> None:
    with pytest.raises(UsageError, match="SNR must be a positive number"):
        qmri.certify("t2", echo_time=ECHO_TIME, snr=snr)


def test_a_transmit_field_in_percent_is_refused() -> None:
    data = np.broadcast_to(np.float32([300.0, 200.0]), (3, 3, 2, 2))
    settings = {"flip_angle": [3, 15], "repetition_time": [0.015, 0.015]}
    with pytest.raises(InputError, match=r"b1 must lie between 0\.2 and 2, got a median of 90"):
        qmri.fit("vfa", data, **settings, covariates={"b1": np.full((3, 3, 2), 90.0)})
    with pytest.raises(InputError, match="no value in the mask"):
        qmri.fit("vfa", data, **settings, covariates={"b1": np.full((3, 3, 2), np.nan)})


def test_a_certificate_needs_no_data() -> None:
    certificate = qmri.certify("t2", echo_time=ECHO_TIME, snr=47)
    assert certificate.identity["noise"] == {"kind": "rician", "snr": [39.8, 39.8]}
    assert certificate.identity["noise_is_known"] is False


def test_certificates_are_kept_for_later_fits(
    echoes: np.ndarray, mask: np.ndarray, maps: qmri.Maps, tmp_path: Path
) -> None:
    first, second = (qmri.fit("t2", echoes, echo_time=ECHO_TIME, mask=mask, cache=tmp_path / "cache") for _ in range(2))
    np.testing.assert_array_equal(first.flag, maps.flag)
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    before = folder.stat().st_mtime_ns
    np.testing.assert_array_equal(second.flag, first.flag)
    assert folder.stat().st_mtime_ns == before


def test_diffusion_numbers_are_those_of_the_nodes_of_the_app(tmp_path: Path) -> None:
    """Fit and ReadTruth, with the noise of denoising, against one call."""
    from qmri_bidsapp.interfaces.fitting import Fit
    from qmri_bidsapp.interfaces.uncertainty import Certify, ReadTruth

    protocol, model, shape = shells(5, (1000.0, 15), (2500.0, 20)), get_model("smt"), (6, 5, 4)
    assert isinstance(protocol, Diffusion)
    rng = np.random.default_rng(0)
    theta = np.column_stack([np.full(120, 900.0), rng.uniform(0.3, 0.7, 120), rng.uniform(1.5e-3, 2.5e-3, 120)])
    clean = simulate_series(model, theta, protocol, rng)
    data = (clean + 20 * rng.standard_normal(clean.shape)).reshape(*shape, -1).astype(np.float32)
    mask, sigma = rng.random(shape) > 0.2, np.full(shape, 20.0, np.float32)
    for name, values in (("dwi", data), ("mask", mask.astype(np.uint8)), ("sigma", sigma)):
        nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / f"{name}.nii")
    shared = {"model": "smt", "estimator": "nlls", "acquisition": protocol.to_dict()}
    files = {"in_file": tmp_path / "dwi.nii", "in_mask": tmp_path / "mask.nii", "noise_std": tmp_path / "sigma.nii"}
    fit = Fit(**files, **shared, floor_removed=True, with_evidence=True).run(cwd=str(tmp_path)).outputs
    known = {"snr": fit.snr, "noise_is_given": fit.noise_is_given, "floor_removed": fit.floor_removed}
    certificate = Certify(cache=str(tmp_path / "cache"), **known, **shared).run().outputs.certificate
    read = ReadTruth(certificate=certificate, model="smt", in_mask=files["in_mask"], evidence=fit.evidence)
    read.inputs.trait_set(estimates=fit.estimates, stds=fit.stds)
    verdict = read.run(cwd=str(tmp_path)).outputs
    maps = qmri.fit(
        "smt",
        tmp_path / "dwi.nii",
        acquisition=protocol,
        mask=mask,
        noise_std=20.0,
        floor_removed=True,
        cache=tmp_path / "cache",
    )
    saved = {Path(name).stem: np.asarray(nib.load(name).dataobj) for name in (*fit.estimates, *fit.stds, *verdict.maps)}
    for name in ("intra_fraction", "diffusivity"):
        found = (maps[name], maps.std[name], maps.bias[name], maps.truth_low[name], maps.truth_high[name])
        for ending, values in zip(("", "_std", "_bias", "_truthlow", "_truthhigh"), found, strict=True):
            np.testing.assert_array_equal(saved[f"{name}{ending}"], values, err_msg=f"{name}{ending}")
    np.testing.assert_array_equal(np.asarray(nib.load(verdict.flags[0]).dataobj), maps.flag)


def simulate_series(model, theta: np.ndarray, protocol: Diffusion, rng: np.random.Generator) -> np.ndarray:
    """Return (n, n_volumes) signals of voxels of dispersed fibres."""
    from qmri_bidsapp.evaluation.flags.areas import clean_series

    return clean_series(model, theta, protocol, rng)
