from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from qmri_bidsapp.bids.inputs import InputGroup, SubjectInputs
from qmri_bidsapp.config import STEPS, Config
from qmri_bidsapp.core.acquisition import Diffusion, MultiEcho
from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.estimators.learned.mlp import MultilayerPerceptron
from qmri_bidsapp.registry import get_model
from qmri_bidsapp.workflows.outputs import fit_outputs, series_outputs
from qmri_bidsapp.workflows.plan import plan


def series(*entities: tuple[str, str]) -> InputGroup:
    """A series that determines the tensor, and not the spherical mean technique."""
    directions = np.random.default_rng(0).standard_normal((12, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rows = ((0.0, 0.0, 0.0), *map(tuple, directions.tolist()))
    return InputGroup(
        "dwi", "01", entities, ("/raw/sub-01/dwi/sub-01_dwi.nii.gz",), Diffusion((0.0,) + (1000.0,) * 12, rows)
    )


def plan_with(*models: str):
    config = Config(Path("/raw"), Path("/out"), "participant", "run", Path("/work"), models=models)
    (found,) = plan(config, (SubjectInputs("01", (series(),)),))
    return found


def test_a_model_that_cannot_be_fitted_does_not_stop_others() -> None:
    for models in (("smt", "tensor"), ("tensor", "smt")):
        found = plan_with(*models)
        assert [item.fits for item in found.series] == [(("tensor", "wls"),)]
        (error,) = found.errors
        assert "at least 2 shells" in error


def test_a_series_without_any_model_left_is_no_work() -> None:
    found = plan_with("smt")
    assert found.is_empty
    assert len(found.errors) == 1


def test_auto_leaves_models_out_with_a_note() -> None:
    found = plan_with("auto")
    assert not found.errors
    assert [item.fits for item in found.series] == [(("tensor", "wls"),)]
    assert any("at least 2 shells" in note for note in found.series[0].notes)


def test_steps_left_out_are_in_the_plan_of_the_series_they_belong_to() -> None:
    t1w = InputGroup("T1w", "01", (), ("/raw/sub-01/anat/sub-01_T1w.nii.gz",))
    config = Config(Path("/raw"), Path("/out"), "participant", "run", Path("/work"), skip=tuple(STEPS))
    (found,) = plan(config, (SubjectInputs("01", (t1w, series(), echoes(0.09))),))
    assert found.skip == ("bias-field",)
    assert {item.group.kind: item.skip for item in found.series} == {
        "dwi": ("distortion", "denoise", "noise-floor", "unring", "align", "drift", "lost-slices", "register"),
        "MESE": ("align", "register"),
    }
    printed = [text for text in found.describe() if "--skip" in text]
    assert len(printed) == 3
    assert "bias-field correction of T1w images" in printed[0]
    assert "denoising of diffusion series" in printed[1]
    assert "T1w: brain mask, tissues" in "".join(found.describe())


def one_shell(name: str, b_value: float, n_directions: int = 30, **entities: str) -> InputGroup:
    directions = np.random.default_rng(0).standard_normal((n_directions, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rows = ((0.0, 0.0, 0.0), *map(tuple, directions.tolist()))
    acquisition = Diffusion((0.0,) + (b_value,) * n_directions, rows)
    labels = (*entities.items(), ("run", name))
    return InputGroup("dwi", "01", labels, (f"/raw/sub-01/dwi/sub-01_run-{name}_dwi.nii.gz",), acquisition)


def plan_of(models: tuple[str, ...], *groups: InputGroup):
    config = Config(Path("/raw"), Path("/out"), "participant", "run", Path("/work"), models=models)
    (found,) = plan(config, (SubjectInputs("01", groups),))
    return found


@pytest.mark.parametrize("models", [("tensor",), ("auto",)], ids=["named", "auto"])
def test_a_series_of_b0_only_beside_a_fitted_one_is_a_note(models: tuple[str, ...]) -> None:
    """As it is acquired with reversed phase encoding, to correct distortion."""
    b0 = InputGroup("dwi", "01", (("dir", "PA"),), ("/raw/b0.nii.gz",), Diffusion((0.0,) * 4, ((0.0,) * 3,) * 4))
    found = plan_of(models, series(("dir", "AP")), b0)
    assert not found.errors
    assert [item.fits for item in found.series] == [(("tensor", "wls"),), ()]
    assert any("tensor needs at least 7 measurements, got 4" in note for note in found.series[1].notes)
    assert not any("together" in note for item in found.series for note in item.notes)
    # Alone, it is an error where the model is named.
    assert bool(plan_of(models, b0).errors) == (models == ("tensor",))


@pytest.mark.parametrize("models", [("smt",), ("auto",)], ids=["named", "auto"])
def test_shells_in_several_series_are_named(models: tuple[str, ...]) -> None:
    found = plan_of(models, one_shell("1", 1000.0), one_shell("2", 2500.0))
    texts = found.errors if models == ("smt",) else [" ".join(item.notes) for item in found.series]
    assert len(texts) == 2
    for text in texts:
        assert "smt" in text
        assert "could be fitted to run-1_dwi and run-2_dwi together, but they differ in more than dir- or run-" in text
    # Other sessions or phase encodings, or a second series of the same shell, do not help.
    for others in (
        (one_shell("1", 1000.0, ses="a"), one_shell("2", 2500.0, ses="b")),
        (one_shell("1", 1000.0, dir="AP"), one_shell("2", 2500.0, dir="PA")),
        (one_shell("1", 1000.0), one_shell("2", 1000.0)),
    ):
        found = plan_of(models, *others)
        assert not any(
            "together" in text for text in (*found.errors, *(n for item in found.series for n in item.notes))
        )


def test_what_a_model_does_not_use_is_in_plan_report_and_sidecars() -> None:
    rows = np.random.default_rng(0).standard_normal((34, 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    protocol = Diffusion((0.0, *(1000.0,) * 15, *(1500.0,) * 3, *(2500.0,) * 15), tuple(map(tuple, rows.tolist())))
    group = InputGroup("dwi", "01", (), ("/raw/sub-01/dwi/sub-01_dwi.nii.gz",), protocol)
    config = Config(Path("/raw"), Path("/out"), "participant", "run", Path("/work"), models=("smt",))
    (found,) = plan(config, (SubjectInputs("01", (group,)),))
    (item,) = found.series
    said = get_model("smt").caution(protocol)
    assert "b = 1500 s/mm2 (3)" in said
    assert any(said in line for line in found.describe())
    assert said in series_outputs(item, "/raw", ())["record"].notes
    _, sidecars = fit_outputs(item, *item.fits[0], "/raw")
    assert all(own["Caution"] == said for own in sidecars.estimates)


def two_shells(n_directions: int) -> InputGroup:
    vectors = np.random.default_rng(1).standard_normal((n_directions, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    b_value = (0.0, *(1000.0 if i < n_directions // 2 else 2500.0 for i in range(n_directions)))
    acquisition = Diffusion(b_value, ((0.0, 0.0, 0.0), *map(tuple, vectors.tolist())))
    return InputGroup("dwi", "01", (), ("/raw/sub-01/dwi/sub-01_dwi.nii.gz",), acquisition)


@pytest.mark.parametrize(
    ("n_directions", "n_fibres", "bundles", "note"),
    [(60, "1", (), None), (60, "auto", (("noddi", "nlls"),), None), (14, "auto", (), "15 directions, got 14")],
    ids=["one", "auto", "few-directions"],
)
def test_bundles_by_voxel(
    n_directions: int, n_fibres: str, bundles: tuple[tuple[str, str], ...], note: str | None
) -> None:
    config = Config(
        Path("/raw"),
        Path("/out"),
        "participant",
        "run",
        Path("/work"),
        models=("noddi", "smt"),
        n_fibres=n_fibres,
        no_certificate=True,
    )
    (found,) = plan(config, (SubjectInputs("01", (two_shells(n_directions),)),))
    (item,) = found.series
    assert [model for model, _ in item.fits] == ["noddi", "smt"]
    assert item.bundle_fits == bundles
    assert ("noddi by nlls with 0 to 3 bundles" in "".join(found.describe())) == bool(bundles)
    assert any(note in text for text in item.notes) if note else not item.notes


def echoes(last: float) -> InputGroup:
    return InputGroup("MESE", "01", (), ("/raw/sub-01/anat/sub-01_MESE.nii.gz",), MultiEcho((0.01, 0.03, last)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of weights for one protocol of t2."""
    folder = tmp_path_factory.mktemp("weights") / "t2"
    MultilayerPerceptron.brief(get_model("t2")).fit(MultiEcho((0.01, 0.03, 0.09))).save(folder)
    return folder


def plan_learned(group: InputGroup, **choices: object):
    values = {"models": ("t2",), "estimators": ("nlls", "mlp"), **choices}
    config = Config(Path("/raw"), Path("/out"), "participant", "run", Path("/work"), **values)
    (found,) = plan(config, (SubjectInputs("01", (group,)),))
    return found


def test_weights_for_the_protocol_are_used(trained: Path) -> None:
    found = plan_learned(echoes(0.09), weights=trained)
    assert not found.errors
    assert found.series[0].fits == (("t2", "nlls"), ("t2", "mlp"))


@pytest.mark.parametrize("models", [("t2",), ("auto",)], ids=["named", "auto"])
def test_weights_for_another_protocol_are_an_error_of_the_participant_and_stop_nothing_else(
    trained: Path, models: tuple[str, ...]
) -> None:
    found = plan_learned(echoes(0.08), weights=trained, models=models)
    assert [item.fits for item in found.series] == [(("t2", "nlls"),)]
    (error,) = found.errors
    assert error.startswith(f"MESE: t2 cannot be fitted by mlp: The weights in {trained} are for another protocol")
    assert "echo_time [0.01, 0.03, 0.09], needed [0.01, 0.03, 0.08]" in error
    assert error.endswith("Train weights for this with `qmri train`.")


def alter(folder: Path, what: str) -> float:
    """Make weights something else, or damage them; return the last echo time that they seem to be for."""
    card, tensors = folder / "card.json", folder / "weights.safetensors"
    content = json.loads(card.read_text())
    if what == "tensors":
        tensors.write_bytes(tensors.read_bytes()[:-4] + b"abcd")
    elif what == "cut short":
        card.write_text(card.read_text()[:-20])
    elif what == "model":
        content["identity"]["model"]["name"] = "t2star"
    elif what == "version":
        content["identity"]["version"] = "0.0.1"
    elif what == "protocol":
        content["identity"]["protocol"]["echo_time"][-1] = 0.08
    if what in ("model", "version", "protocol"):
        card.write_text(json.dumps(content))
    return 0.08 if what == "protocol" else 0.09


@pytest.mark.parametrize("among", [False, True], ids=["alone", "among others"])
@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ("model", '"t2star"'),
        ("version", '"0.0.1"'),
        ("tensors", r"does not match its card \(SHA-256\)"),
        ("cut short", "cannot be read|no readable weights"),
        ("protocol", "card in .* belongs to other weights"),
    ],
    ids=["model", "version", "tensors", "cut short", "card changed"],
)
def test_weights_that_are_something_else_or_damaged(
    trained: Path, tmp_path: Path, what: str, cause: str, among: bool
) -> None:
    folder = tmp_path / "weights" / "one"
    shutil.copytree(trained, folder)
    last = alter(folder, what)
    found = plan_learned(echoes(last), weights=folder.parent if among else folder)
    assert [item.fits for item in found.series] == [(("t2", "nlls"),)]
    assert re.search(cause, found.errors[0])
    assert re.search("[Tt]rain", found.errors[0])


def test_training_on_fits_keeps_a_fit_that_is_not_learned() -> None:
    assert plan_learned(echoes(0.09), estimators=("mlp",)).series[0].fits == (("t2", "mlp"),)
    both = plan_learned(echoes(0.09), estimators=("mlp",), prior="healthy").series[0].fits
    assert both == (("t2", "mlp"), ("t2", "nlls"))
    given = plan_learned(echoes(0.09), estimators=("t2:mlp", "t2:varpro"), prior="healthy").series[0].fits
    assert given == (("t2", "mlp"), ("t2", "varpro"))


def test_spatial_networks_are_no_fits_to_train_on() -> None:
    group = InputGroup("MESE", "01", (), ("/raw/sub-01/anat/sub-01_MESE.nii.gz",), MultiEcho((0.01, 0.03, 0.06, 0.09)))
    found = plan_learned(group, estimators=("rim", "mlp"), prior="healthy").series[0].fits
    assert found == (("t2", "rim"), ("t2", "mlp"), ("t2", "nlls"))
    # Where nothing is trained on fits, none is added.
    assert plan_learned(group, estimators=("rim",), prior="healthy").series[0].fits == (("t2", "rim"),)


def test_weights_and_prior_exclude_each_other(trained: Path) -> None:
    with pytest.raises(UsageError, match="give --weights or --prior"):
        plan_learned(echoes(0.09), weights=trained, prior="mixed")
    with pytest.raises(UsageError, match="--prior must be uniform, healthy, mixed, healthy-wm or healthy-gm, got 'wm'"):
        plan_learned(echoes(0.09), prior="wm")


@pytest.mark.parametrize("no_certificate", [False, True], ids=["certified", "not asked for"])
def test_fits_without_a_certificate_are_named(no_certificate: bool) -> None:
    config = Config(
        Path("/raw"),
        Path("/out"),
        "participant",
        "run",
        Path("/work"),
        models=("noddi", "smt"),
        n_fibres="auto",
        no_certificate=no_certificate,
    )
    (found,) = plan(config, (SubjectInputs("01", (two_shells(60),)),))
    (item,) = found.series
    notes = [note for note in item.notes if "no certificate" in note]
    assert len(notes) == (not no_certificate)
    assert item.objection_to_certificate("smt", "nlls") is None
    assert item.objection_to_certificate("noddi", "nlls") == "the number of bundles differs from voxel to voxel"
    assert "works on images" in (item.objection_to_certificate("t1", "rim") or "")
