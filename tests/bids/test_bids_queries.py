from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.bids.dataset import blocking, open_layout, validate
from qmri_bidsapp.bids.queries import SubjectInputs, find_inputs
from qmri_bidsapp.core.acquisition import Diffusion, InversionRecovery, MultiEcho
from qmri_bidsapp.errors import InputMissingError, InvalidBIDSError, NothingMatchedError, UsageError

Make = Callable[[], Path]


def inputs_of(root: Path, label: str = "01", **options) -> SubjectInputs:
    found = find_inputs(open_layout(root), **options)
    return next(subject for subject in found if subject.subject == label)


def error_of(root: Path) -> str:
    """The only error of sub-01."""
    (problem,) = inputs_of(root).problems
    assert problem.severity == "error"
    return problem.message


def test_series_are_found_with_their_protocols(make_dataset: Make) -> None:
    found = inputs_of(make_dataset())
    groups = {group.kind: group for group in found.groups}
    assert sorted(groups) == ["IRT1", "MESE", "T1w", "dwi"]
    assert groups["IRT1"].acquisition == InversionRecovery((0.1, 0.5, 1.5))
    assert [Path(name).name[7:12] for name in groups["IRT1"].files] == ["inv-2", "inv-3", "inv-1"]
    assert groups["MESE"].acquisition == MultiEcho((0.01, 0.02, 0.03))
    assert isinstance(groups["dwi"].acquisition, Diffusion)
    assert groups["dwi"].acquisition.large_delta == 0.03
    assert not found.problems


def test_only_the_subjects_asked_for_are_indexed(make_dataset: Make) -> None:
    layout = open_layout(make_dataset(), participant_labels=("02",))
    assert layout.get_subjects() == ["02"]


def test_database_is_made_once_and_holds_all_subjects(make_dataset: Make, tmp_path: Path) -> None:
    root, database = make_dataset(), tmp_path / "database"
    open_layout(root, participant_labels=("02",), database_dir=database)
    (root / "sub-01" / "anat" / "sub-01_inv-2_IRT1.json").unlink()
    layout = open_layout(root, database_dir=database)
    assert layout.get_subjects() == ["01", "02"]
    (image,) = layout.get(subject="01", suffix="IRT1", inv=2, extension=".nii.gz")
    assert image.get_metadata()["InversionTime"] == 0.1
    assert [path.name for path in database.iterdir()] == ["layout_index.sqlite"]


def test_failed_indexing_leaves_no_database(make_dataset: Make, tmp_path: Path) -> None:
    """pybids would take half of one for all there is, without any metadata."""
    root, database = make_dataset(), tmp_path / "database"
    sidecar = root / "sub-01" / "anat" / "sub-01_inv-2_IRT1.json"
    sidecar.write_text("{bad")
    with pytest.raises(InvalidBIDSError):
        open_layout(root, database_dir=database)
    sidecar.write_text('{"InversionTime": 0.1}')
    layout = open_layout(root, database_dir=database)
    (image,) = layout.get(subject="01", suffix="IRT1", inv=2, extension=".nii.gz")
    assert image.get_metadata()["InversionTime"] == 0.1


@pytest.mark.parametrize("broken", [False, True], ids=["of-another-data-set", "no-database"])
def test_database_of_no_use(make_dataset: Make, tmp_path: Path, broken: bool) -> None:
    root, database = make_dataset(), tmp_path / "database"
    other = tmp_path / "other"
    shutil.copytree(root, other)
    open_layout(other, database_dir=database)
    if broken:
        (database / "layout_index.sqlite").write_text("nonsense")
    with pytest.raises(InputMissingError, match="remove it"):
        open_layout(root, database_dir=database)


def test_sessions_and_runs_make_groups_of_their_own(make_dataset: Make) -> None:
    root = make_dataset()
    for session in ("a", "b"):
        for run in ("01", "02"):
            target = root / "sub-02" / f"ses-{session}" / "anat" / f"sub-02_ses-{session}_run-{run}_T1w.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / "sub-02" / "anat" / "sub-02_T1w.nii.gz", target)
    names = [group.name for group in inputs_of(root, "02").groups]
    assert names == ["T1w", *(f"ses-{s}_run-{r}_T1w" for s in "ab" for r in ("01", "02"))]
    chosen = inputs_of(root, "02", session_labels=("b",), run_labels=("2",)).groups
    assert [group.name for group in chosen] == ["ses-b_run-02_T1w"]


def test_phase_images_are_left_out(make_dataset: Make) -> None:
    root = make_dataset()
    anat = root / "sub-01" / "anat"
    for number in (1, 2, 3):
        for extension in (".nii.gz", ".json"):
            source = anat / f"sub-01_inv-{number}_IRT1{extension}"
            shutil.copy(source, anat / f"sub-01_inv-{number}_part-phase_IRT1{extension}")
    (group,) = [group for group in inputs_of(root).groups if group.kind == "IRT1"]
    assert len(group.files) == 3


@pytest.mark.parametrize("moved", [False, True], ids=["beside", "at-the-root"])
def test_gradients_follow_the_inheritance_principle(make_dataset: Make, moved: bool) -> None:
    root = make_dataset()
    dwi = root / "sub-01" / "dwi"
    for name in ("sub-01_acq-a", "sub-01_acq-a_run-1"):
        shutil.copy(dwi / "sub-01_dwi.nii.gz", dwi / f"{name}_dwi.nii.gz")
    for extension in ("bval", "bvec"):
        # More entities than the plain series, which sorts after it: it must not be taken for the plain one.
        shutil.copy(dwi / f"sub-01_dwi.{extension}", dwi / f"sub-01_acq-a_dwi.{extension}")
        if moved:
            shutil.move(dwi / f"sub-01_dwi.{extension}", root / f"dwi.{extension}")
    found = {group.name: group for group in inputs_of(root).groups if group.kind == "dwi"}
    for attribute in ("bval", "bvec"):
        plain = root / f"dwi.{attribute}" if moved else dwi / f"sub-01_dwi.{attribute}"
        assert getattr(found["dwi"], attribute) == str(plain)
        for name in ("acq-a_dwi", "acq-a_run-1_dwi"):
            assert getattr(found[name], attribute) == str(dwi / f"sub-01_acq-a_dwi.{attribute}")


def test_output_within_the_data_set_is_no_input(make_dataset: Make) -> None:
    root = make_dataset()
    shutil.copytree(root / "sub-01", root / "maps" / "sub-01")
    anat = root / "maps" / "sub-01" / "anat"
    (anat / "sub-01_T1w.nii.gz").rename(anat / "sub-01_desc-preproc_T1w.nii.gz")
    found = inputs_of(root)
    assert [group.name for group in found.groups] == ["T1w", "IRT1", "MESE", "dwi"]
    assert all("maps" not in Path(name).parts for group in found.groups for name in group.files)


def test_echoes_of_a_t1w_and_chunks_are_series_of_their_own(make_dataset: Make) -> None:
    root = make_dataset()
    folder = root / "sub-01"
    for path in sorted(folder.glob("dwi/*")):
        for chunk in (1, 2):
            shutil.copy(path, path.with_name(path.name.replace("_dwi", f"_chunk-{chunk}_dwi")))
        path.unlink()
    for echo in (1, 2):
        shutil.copy(folder / "anat" / "sub-01_T1w.nii.gz", folder / "anat" / f"sub-01_echo-{echo}_T1w.nii.gz")
    names = [group.name for group in inputs_of(root).groups if group.kind in ("T1w", "dwi")]
    assert names == ["T1w", "echo-1_T1w", "echo-2_T1w", "chunk-1_dwi", "chunk-2_dwi"]


@pytest.mark.parametrize("name", ["sub-01_T1w", "sub-01_inv-2_IRT1", "sub-01_dwi"])
def test_two_files_of_one_name_are_refused(make_dataset: Make, name: str) -> None:
    root = make_dataset()
    (path,) = root.glob(f"sub-01/*/{name}.nii.gz")
    nib.save(nib.load(path), path.with_name(f"{name}.nii"))
    assert "same series by their names" in error_of(root)
    assert len(inputs_of(root).groups) == 3


def test_slab_is_no_t1w_for_brain_extraction(make_dataset: Make) -> None:
    """The masks then come from the series themselves."""
    root = make_dataset()
    slab = nib.Nifti1Image(np.ones((200, 200, 2), np.float32), np.diag([1.0, 1.0, 5.0, 1.0]))
    nib.save(slab, root / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    found = inputs_of(root)
    assert [group.kind for group in found.groups] == ["IRT1", "MESE", "dwi"]
    assert not found.has_errors
    assert "10 mm thick" in found.problems[0].message


def test_single_diffusion_volume_is_no_failure(make_dataset: Make) -> None:
    """As it is acquired with reversed phase encoding, to correct distortion."""
    root = make_dataset()
    dwi = root / "sub-01" / "dwi"
    nib.save(nib.Nifti1Image(np.ones((6, 6, 3), np.float32), np.eye(4)), dwi / "sub-01_dir-PA_dwi.nii.gz")
    found = inputs_of(root)
    assert [group.name for group in found.groups] == ["T1w", "IRT1", "MESE", "dwi"]
    assert not found.has_errors
    assert "single volume" in found.problems[0].message


def test_subject_without_any_series_is_named_and_no_failure(make_dataset: Make) -> None:
    root = make_dataset()
    shutil.rmtree(root / "sub-02" / "anat")
    (root / "sub-02" / "func").mkdir()
    (root / "sub-02" / "func" / "sub-02_task-rest_bold.nii.gz").touch()
    found = inputs_of(root, "02")
    assert not found.groups
    assert not found.has_errors
    assert "sub-02 has no T1w" in found.problems[0].message


class TestWholeDataset:
    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputMissingError, match="does not exist"):
            open_layout(tmp_path / "nowhere")

    def test_no_description(self, make_dataset: Make) -> None:
        root = make_dataset()
        (root / "dataset_description.json").unlink()
        with pytest.raises(InvalidBIDSError, match="has no dataset_description"):
            open_layout(root)

    def test_broken_description(self, make_dataset: Make) -> None:
        root = make_dataset()
        (root / "dataset_description.json").write_text("{")
        with pytest.raises(InvalidBIDSError, match="not valid JSON"):
            open_layout(root)

    def test_broken_sidecar(self, make_dataset: Make) -> None:
        root = make_dataset()
        sidecar = root / "sub-01" / "anat" / "sub-01_inv-2_IRT1.json"
        sidecar.write_text("{bad")
        with pytest.raises(InvalidBIDSError, match=f"{sidecar} is not valid JSON"):
            open_layout(root)
        assert open_layout(root, participant_labels=("02",)).get_subjects() == ["02"]

    def test_unknown_participant(self, make_dataset: Make) -> None:
        with pytest.raises(NothingMatchedError, match=r"no sub-77; it has: 01, 02"):
            open_layout(make_dataset(), participant_labels=("77",))

    def test_filter_that_leaves_nothing(self, make_dataset: Make) -> None:
        layout = open_layout(make_dataset())
        filters = {kind: {"acquisition": "none"} for kind in ("t1w", "irt1", "mese", "megre", "dwi")}
        with pytest.raises(NothingMatchedError):
            find_inputs(layout, filters=filters)

    def test_filter_of_an_unknown_entity(self, make_dataset: Make) -> None:
        with pytest.raises(UsageError, match="acquisition for acq"):
            find_inputs(open_layout(make_dataset()), filters={"dwi": {"acq": "x"}})

    def test_filter_of_an_unknown_kind(self, make_dataset: Make) -> None:
        with pytest.raises(UsageError, match="bold"):
            find_inputs(open_layout(make_dataset()), filters={"bold": {}})


class TestDefects:
    """A defect is a problem of its series, says which file, and leaves the other series alone."""

    def test_missing_inversion_time(self, make_dataset: Make) -> None:
        root = make_dataset()
        (root / "sub-01" / "anat" / "sub-01_inv-2_IRT1.json").write_text("{}")
        message = error_of(root)
        assert "needs InversionTime" in message
        assert "sub-01_inv-2_IRT1.nii.gz" in message
        assert len(inputs_of(root).groups) == 3

    def test_missing_echo_time(self, make_dataset: Make) -> None:
        root = make_dataset()
        (root / "echo-2_MESE.json").unlink()
        assert "needs EchoTime" in error_of(root)

    def test_series_without_its_entity(self, make_dataset: Make) -> None:
        root = make_dataset()
        for number in (1, 3):
            for path in sorted(root.glob(f"sub-01/anat/*inv-{number}*")):
                path.unlink()
        for path in sorted(root.glob("sub-01/anat/*_inv-2_*")):
            path.rename(path.with_name(path.name.replace("_inv-2", "")))
        assert "needs the entity inv-" in error_of(root)

    def test_time_in_milliseconds(self, make_dataset: Make) -> None:
        root = make_dataset()
        (root / "sub-01" / "anat" / "sub-01_inv-2_IRT1.json").write_text('{"InversionTime": 350}')
        assert "milliseconds" in error_of(root)

    def test_echo_time_in_milliseconds(self, make_dataset: Make) -> None:
        root = make_dataset()
        for number in (1, 2, 3):
            (root / f"echo-{number}_MESE.json").write_text(json.dumps({"EchoTime": 5 * number}))
        assert "milliseconds" in error_of(root)

    @pytest.mark.parametrize("extension", ["bval", "bvec"])
    def test_missing_gradients(self, make_dataset: Make, extension: str) -> None:
        root = make_dataset()
        (root / "sub-01" / "dwi" / f"sub-01_dwi.{extension}").unlink()
        assert f"needs a .{extension} file" in error_of(root)

    def test_counts_that_disagree(self, make_dataset: Make) -> None:
        root = make_dataset()
        (root / "sub-01" / "dwi" / "sub-01_dwi.bval").write_text("0 1000\n")
        assert "2 b-values, but the image has 8 volumes" in error_of(root)

    def test_4d_where_3d_belongs(self, make_dataset: Make) -> None:
        root = make_dataset()
        nib.save(
            nib.Nifti1Image(np.ones((4, 4, 4, 2), np.float32), np.diag([40.0, 40.0, 40.0, 1.0])),
            root / "sub-01" / "anat" / "sub-01_T1w.nii.gz",
        )
        assert "must have 3 dimensions" in error_of(root)

    def test_different_shapes(self, make_dataset: Make) -> None:
        root = make_dataset()
        nib.save(
            nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)),
            root / "sub-01" / "anat" / "sub-01_echo-2_MESE.nii.gz",
        )
        assert "a series needs one shape" in error_of(root)

    def test_different_affines(self, make_dataset: Make) -> None:
        root = make_dataset()
        image = nib.Nifti1Image(np.ones((6, 6, 3), np.float32), np.diag([2.0, 1, 1, 1]))
        nib.save(image, root / "sub-01" / "anat" / "sub-01_echo-2_MESE.nii.gz")
        assert "affine" in error_of(root)

    def test_empty_file(self, make_dataset: Make) -> None:
        root = make_dataset()
        (root / "sub-01" / "anat" / "sub-01_T1w.nii.gz").write_bytes(b"")
        assert "cannot be opened" in error_of(root)


def test_validator_runs_offline_and_its_errors_block_only_what_is_used(make_dataset: Make) -> None:
    root = make_dataset()
    (root / "sub-02" / "anat" / "nonsense.txt").write_text("x")
    subjects = find_inputs(open_layout(root))
    issues = validate(root)
    assert any("nonsense" in issue.location for issue in issues if issue.severity == "error")
    assert not blocking(issues, subjects, root)
    description = root / "dataset_description.json"
    description.write_text(json.dumps({"Name": "test", "BIDSVersion": 3}))
    assert blocking(validate(root), subjects, root)


@pytest.mark.parametrize(
    ("name", "kind", "n_files"),
    [("qmri_irt1", "IRT1", 4), ("qmri_mese", "MESE", 32), ("qmri_megre", "MEGRE", 8)],
)
def test_published_examples_are_grouped(shared: Path, name: str, kind: str, n_files: int) -> None:
    """The images are empty: grouping is seen through the problem that names the first file."""
    layout = open_layout(shared / "bids-examples" / name)
    files = layout.get(suffix=kind, extension=[".nii.gz"], scope="raw")
    found = find_inputs(layout)
    assert sum(len(subject.problems) for subject in found) >= 1
    assert all(problem.kind in (kind, "T1w", "") for subject in found for problem in subject.problems)
    assert len(files) >= min(n_files, 3)
