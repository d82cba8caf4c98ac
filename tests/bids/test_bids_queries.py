from __future__ import annotations

import codecs
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bids import BIDSLayout
from helpers.datasets import write_image, write_sidecar

from qmri_bidsapp.bids.dataset import blocking, check_description, open_layout, validate
from qmri_bidsapp.bids.files import labels_of
from qmri_bidsapp.bids.inputs import SubjectInputs
from qmri_bidsapp.bids.kinds import load_kinds
from qmri_bidsapp.bids.queries import find_inputs
from qmri_bidsapp.core.acquisition import Diffusion, InversionRecovery, MultiEcho, SpoiledGradientEcho
from qmri_bidsapp.errors import InputMissingError, InvalidBIDSError, NothingMatchedError, OutputError, UsageError

Make = Callable[[], Path]
Add = Callable[[Path, dict[str, dict]], None]


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


def test_a_label_that_begins_like_another_is_found(make_dataset: Make) -> None:
    """pybids ignores paths by their start: without sub-1, sub-10 would be lost."""
    root = make_dataset()
    for label in ("1", "10"):
        folder = root / f"sub-{label}" / "anat"
        folder.mkdir(parents=True)
        shutil.copy(root / "sub-01" / "anat" / "sub-01_T1w.nii.gz", folder / f"sub-{label}_T1w.nii.gz")
    layout = open_layout(root, participant_labels=("10",))
    (found,) = find_inputs(layout, participant_labels=("10",))
    assert [group.kind for group in found.groups] == ["T1w"]


@pytest.mark.parametrize("above", ["sub-02", "sub-99", "ses-7", "run-7", "part-phase", "anat"])
def test_names_of_folders_above_the_data_set_mean_nothing(make_dataset: Make, above: str) -> None:
    """Clusters stage one subject or session per job, in folders of such names."""
    plain = make_dataset()
    expected = find_inputs(open_layout(plain))
    root = plain.parent / above / "bids"
    root.parent.mkdir()
    plain.rename(root)
    found = find_inputs(open_layout(root))
    assert [item.subject for item in found] == ["01", "02"]
    assert [[group.name for group in item.groups] for item in found] == [
        [group.name for group in item.groups] for item in expected
    ]
    assert not find_problems(found)


def find_problems(found: tuple[SubjectInputs, ...]) -> list[str]:
    return [problem.message for item in found for problem in item.problems]


def test_hidden_gradient_files_are_no_gradients(make_dataset: Make) -> None:
    """macOS writes ._ files beside the real ones on foreign disks."""
    root = make_dataset()
    for extension in ("bval", "bvec"):
        (root / "sub-01" / "dwi" / f"._sub-01_dwi.{extension}").write_bytes(b"\x00\x05\x16\x07")
    groups = find_inputs(open_layout(root))[0].groups
    (dwi,) = (group for group in groups if group.kind == "dwi")
    assert [Path(file).name for file in dwi.gradients] == ["sub-01_dwi.bval", "sub-01_dwi.bvec"]


def test_database_is_made_once_and_holds_all_subjects(make_dataset: Make, tmp_path: Path) -> None:
    root, database = make_dataset(), tmp_path / "database"
    open_layout(root, participant_labels=("02",), database_dir=database)
    (root / "sub-01" / "anat" / "sub-01_T1w.nii.gz").unlink()
    layout = open_layout(root, database_dir=database)
    assert layout.get_subjects() == ["01", "02"]
    assert len(layout.get(subject="01", suffix="T1w", extension=".nii.gz")) == 1
    assert [path.name for path in database.iterdir()] == ["layout_index.sqlite"]


def test_interrupted_indexing_leaves_no_database(
    make_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pybids would take half of one for all there is."""
    root, database = make_dataset(), tmp_path / "database"

    def save(_layout: BIDSLayout, folder: Path, **_options: object) -> None:
        (folder / "layout_index.sqlite").write_bytes(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(BIDSLayout, "save", save)
        with pytest.raises(OutputError, match="no space left"):
            open_layout(root, database_dir=database)
    assert open_layout(root, database_dir=database).get_subjects() == ["01", "02"]
    assert open_layout(root, database_dir=database).get_subjects() == ["01", "02"]


def test_database_of_pybids_alone_is_refused(make_dataset: Make, tmp_path: Path) -> None:
    """Another program reads labels from the folders above the data set, as this one did once."""
    root, database = make_dataset(), tmp_path / "database"
    BIDSLayout(root, validate=False, database_path=database)
    with pytest.raises(InputMissingError, match="another program made it, or another version of this one"):
        open_layout(root, database_dir=database)


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


def inversion_recovery(root: Path, **options):
    (group,) = [group for group in inputs_of(root, **options).groups if group.kind == "IRT1"]
    return group


#: Times of the inversion-recovery images of `make_dataset`.
INVERSION_TIMES = {1: 1.5, 2: 0.1, 3: 0.5}


class TestPolarity:
    @staticmethod
    def parts(part: str, numbers=(1, 2, 3), **fields) -> dict[str, dict]:
        return {f"inv-{n}_part-{part}_IRT1": {"InversionTime": INVERSION_TIMES[n], **fields} for n in numbers}

    def test_phase_gives_the_sign(self, make_dataset: Make, add_images: Add) -> None:
        root = make_dataset()
        assert inversion_recovery(root).acquisition == InversionRecovery((0.1, 0.5, 1.5))
        add_images(root / "sub-01" / "anat", self.parts("phase", Units="rad"))
        group = inversion_recovery(root)
        assert group.acquisition == InversionRecovery((0.1, 0.5, 1.5), signed=True)
        assert [labels_of(name)["inv"] for name in group.files] == ["2", "3", "1"]
        assert all("part" not in labels_of(name) for name in group.files)
        assert group.complement.part == "phase"
        assert group.complement.unit == "rad"
        assert [labels_of(name)["inv"] for name in group.complement.files] == ["2", "3", "1"]
        assert set(group.complement.files) < set(group.all_files)

    def test_real_and_imaginary_parts_need_no_magnitude(self, make_dataset: Make, add_images: Add) -> None:
        root = make_dataset()
        for path in (root / "sub-01" / "anat").glob("*IRT1*"):
            path.unlink()
        add_images(root / "sub-01" / "anat", {**self.parts("real"), **self.parts("imag")})
        group = inversion_recovery(root)
        assert group.acquisition.signed
        assert [labels_of(name)["part"] for name in (*group.files, *group.complement.files)] == [
            *["real"] * 3,
            *["imag"] * 3,
        ]

    def test_incomplete_phase_is_said_and_not_used(self, make_dataset: Make, add_images: Add) -> None:
        root = make_dataset()
        add_images(root / "sub-01" / "anat", self.parts("phase", numbers=(1, 3)))
        group = inversion_recovery(root)
        assert not group.acquisition.signed
        assert group.complement is None
        (problem,) = inputs_of(root).problems
        assert problem.severity == "note"
        assert "part-phase do not cover all images: not used" in problem.message

    def test_phase_alone_is_an_error(self, make_dataset: Make, add_images: Add) -> None:
        root = make_dataset()
        for path in (root / "sub-01" / "anat").glob("*IRT1*"):
            path.unlink()
        add_images(root / "sub-01" / "anat", self.parts("phase"))
        assert "have part-phase only: magnitude images" in error_of(root)

    def test_a_filter_asks_for_the_magnitude(self, make_dataset: Make, add_images: Add) -> None:
        root = make_dataset()
        for path in (root / "sub-01" / "anat").glob("*IRT1*"):
            path.unlink()
        add_images(root / "sub-01" / "anat", {**self.parts("mag"), **self.parts("phase")})
        assert inversion_recovery(root).acquisition.signed
        assert not inversion_recovery(root, filters={"irt1": {"part": "mag"}}).acquisition.signed

    def test_phase_on_another_grid(self, make_dataset: Make, add_images: Add) -> None:
        root = make_dataset()
        add_images(root / "sub-01" / "anat", self.parts("phase"))
        path = root / "sub-01" / "anat" / "sub-01_inv-2_part-phase_IRT1.nii.gz"
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), path)
        assert "a series needs one shape" in error_of(root)


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
    found = {group.name: group for group in inputs_of(root, skip=("join",)).groups if group.kind == "dwi"}
    for position, extension in enumerate(("bval", "bvec")):
        plain = root / f"dwi.{extension}" if moved else dwi / f"sub-01_dwi.{extension}"
        assert found["dwi"].gradients[position] == str(plain)
        for name in ("acq-a_dwi", "acq-a_run-1_dwi"):
            assert found[name].gradients[position] == str(dwi / f"sub-01_acq-a_dwi.{extension}")


def test_two_gradient_files_that_apply_alike_are_refused(make_dataset: Make) -> None:
    root = make_dataset()
    dwi = root / "sub-01" / "dwi"
    (dwi / "sub-01_dwi.nii.gz").rename(dwi / "sub-01_acq-a_run-1_dwi.nii.gz")
    for name in ("acq-a", "run-1"):
        shutil.copy(dwi / "sub-01_dwi.bval", dwi / f"sub-01_{name}_dwi.bval")
    message = error_of(root)
    assert "sub-01_acq-a_dwi.bval and sub-01_run-1_dwi.bval apply to it alike" in message


@pytest.mark.parametrize("part", ["phase", "real", "imag"])
def test_parts_without_a_magnitude_are_an_error(make_dataset: Make, part: str) -> None:
    root = make_dataset()
    for path in (root / "sub-01" / "anat").glob("*MESE.nii.gz"):
        path.rename(path.with_name(path.name.replace("_MESE", f"_part-{part}_MESE")))
    assert f"have part-{part} only, but magnitude images are needed" in error_of(root)
    assert len(inputs_of(root).groups) == 3


class TestT1wOfOtherSessionsAndRuns:
    """The T1w of a series is the one that it has if everything is run."""

    @staticmethod
    def names(root: Path, **options) -> tuple[list[str], list[str]]:
        found = inputs_of(root, "02", **options)
        assert not found.has_errors
        return [group.name for group in found.groups], [problem.message for problem in found.problems]

    @staticmethod
    def dataset(root: Path, *t1w: str) -> Path:
        """Echoes of sub-02 in sessions 1 to 3, run 2, and T1w with these entities."""
        source = root / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
        for session in "123":
            for echo in "123":
                write_image(root / f"sub-02/ses-{session}/anat/sub-02_ses-{session}_run-2_echo-{echo}_MESE.nii.gz")
        for name in t1w:
            target = root / "sub-02" / name.split("_")[0] / "anat" / f"sub-02_{name}_T1w.nii.gz"
            shutil.copy(source, target)
        source.unlink()
        return root

    def test_another_session(self, make_dataset: Make) -> None:
        root = self.dataset(make_dataset(), "ses-1")
        names, notes = self.names(root, session_labels=("2",))
        assert names == ["ses-1_T1w", "ses-2_run-2_MESE"]
        (note,) = notes
        assert "sub-02_ses-1_T1w.nii.gz gives mask and tissues" in note
        assert "series of ses-2" in note

    def test_the_session_comes_first(self, make_dataset: Make) -> None:
        root = self.dataset(make_dataset(), "ses-1", "ses-2_run-1")
        assert self.names(root, session_labels=("2",)) == (["ses-2_run-1_T1w", "ses-2_run-2_MESE"], [])
        names, notes = self.names(root, session_labels=("2",), run_labels=("2",))
        assert names == ["ses-2_run-1_T1w", "ses-2_run-2_MESE"]
        assert len(notes) == 1
        # As without labels, ses-3 gets the first of the participant.
        names, notes = self.names(root, session_labels=("2", "3"))
        assert names == ["ses-1_T1w", "ses-2_run-1_T1w", "ses-2_run-2_MESE", "ses-3_run-2_MESE"]
        assert len(notes) == 1

    def test_only_a_usable_one(self, make_dataset: Make) -> None:
        root = self.dataset(make_dataset(), "ses-1", "ses-2")
        (root / "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz").write_bytes(b"")
        assert self.names(root, session_labels=("3",))[0] == ["ses-2_T1w", "ses-3_run-2_MESE"]

    def test_a_filter_excludes_it(self, make_dataset: Make) -> None:
        root = self.dataset(make_dataset(), "ses-1")
        found = self.names(root, session_labels=("2",), filters={"t1w": {"session": "9"}})
        assert found == (["ses-2_run-2_MESE"], [])


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


@pytest.mark.parametrize(
    ("name", "copy"),
    [
        ("inv-2_IRT1", "inv-02_IRT1"),
        ("echo-2_MESE", "echo-2_part-mag_MESE"),
        ("dwi", "part-mag_dwi"),
        ("run-1_dwi", "run-01_dwi"),
        ("T1w", "part-mag_T1w"),
    ],
    ids=["leading-zero", "magnitude", "diffusion", "run", "T1w"],
)
def test_a_series_present_twice_is_refused(make_dataset: Make, name: str, copy: str) -> None:
    """As a second conversion with other names leaves it."""
    root = make_dataset()
    kind = name.rsplit("_", 1)[-1]
    if "run" in name:
        for path in sorted((root / "sub-01" / "dwi").iterdir()):
            path.rename(path.with_name(path.name.replace("sub-01_", "sub-01_run-1_")))
    for path in sorted(root.glob(f"sub-01/*/sub-01_{name}.*")):
        shutil.copy(path, path.with_name(path.name.replace(name, copy)))
    message = error_of(root)
    assert "same series by their names" in message
    assert f"sub-01_{name}.nii.gz" in message
    assert f"sub-01_{copy}.nii.gz" in message
    assert kind not in {group.kind for group in inputs_of(root).groups}


def test_slab_is_no_t1w_for_brain_extraction(make_dataset: Make) -> None:
    """The masks then come from the series themselves."""
    root = make_dataset()
    slab = nib.Nifti1Image(np.ones((200, 200, 2), np.float32), np.diag([1.0, 1.0, 5.0, 1.0]))
    nib.save(slab, root / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    found = inputs_of(root)
    assert [group.kind for group in found.groups] == ["IRT1", "MESE", "dwi"]
    assert not found.has_errors
    assert "10 mm thick" in found.problems[0].message


@pytest.mark.parametrize(
    ("sizes", "stated", "noted"),
    [
        ((2.0, 2.0, 3.0), None, None),
        ((2.0, 2.0, 2.0), None, None),
        ((3.0, 2.0, 2.0), None, "first"),
        ((2.0, 3.0, 2.0), None, "second"),
        ((2.0, 2.0, 2.0), 0, "first"),
        ((3.0, 2.0, 2.0), 2, None),
    ],
    ids=["last", "isotropic", "first", "second", "first-by-header", "last-by-header"],
)
def test_slices_along_another_axis_are_noted(
    make_dataset: Make, sizes: tuple[float, ...], stated: int | None, noted: str | None
) -> None:
    root = make_dataset()
    path = root / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
    image = nib.Nifti1Image(np.ones((6, 6, 3, 8), np.float32), np.diag([*sizes, 1.0]))
    image.header.set_dim_info(slice=stated)
    nib.save(image, path)
    found = inputs_of(root)
    assert len(found.groups) == 4
    assert not found.has_errors
    assert len(found.problems) == (noted is not None)
    assert all(f"has its slices along the {noted} axis" in problem.message for problem in found.problems)


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


#: Numbered against the order in which the images are used.
STEADY_STATE = {
    "flip-1_VFA": {"FlipAngle": 20, "RepetitionTimeExcitation": 0.015},
    "flip-2_VFA": {"FlipAngle": 3, "RepetitionTime": 0.018},
    "flip-1_mt-on_MTS": {"FlipAngle": 6, "MTState": True, "RepetitionTimeExcitation": 0.028},
    "flip-2_mt-off_MTS": {"FlipAngle": 20, "MTState": False, "RepetitionTimeExcitation": 0.018},
    "flip-1_mt-off_MTS": {"FlipAngle": 6, "MTState": False, "RepetitionTimeExcitation": 0.028},
}


class TestSteadyState:
    def test_series_are_found_in_order(self, make_dataset: Make, add_images: Add) -> None:
        root = make_dataset()
        add_images(root / "sub-01" / "anat", STEADY_STATE)
        found = inputs_of(root)
        groups = {group.kind: group for group in found.groups}
        assert groups["VFA"].acquisition == SpoiledGradientEcho((3.0, 20.0), (0.018, 0.015))
        assert [labels_of(name)["flip"] for name in groups["VFA"].files] == ["2", "1"]
        expected = SpoiledGradientEcho((6.0, 20.0, 6.0), (0.028, 0.018, 0.028), (False, False, True))
        assert groups["MTS"].acquisition == expected
        labels = [labels_of(name) for name in groups["MTS"].files]
        assert [(item["flip"], item["mt"]) for item in labels] == [("1", "off"), ("2", "off"), ("1", "on")]
        assert not found.problems

    @pytest.mark.parametrize(
        ("name", "fields", "message"),
        [
            ("flip-1_VFA", {"RepetitionTimeExcitation": 0.015}, "needs FlipAngle (a number, in degrees)"),
            ("flip-1_VFA", {"FlipAngle": 20}, "needs RepetitionTimeExcitation or RepetitionTime"),
            ("flip-1_VFA", {"FlipAngle": 20, "RepetitionTimeExcitation": 15}, "milliseconds"),
            (
                "flip-1_VFA",
                {"FlipAngle": 20, "RepetitionTimeExcitation": 0.015, "PulseSequenceType": "bSSFP"},
                "only spoiled gradient echoes",
            ),
            ("flip-1_mt-on_MTS", {"FlipAngle": 6, "RepetitionTimeExcitation": 0.028}, "needs MTState (true or false"),
        ],
        ids=["flip-angle", "repetition-time", "milliseconds", "balanced", "mt-state"],
    )
    def test_bad_sidecars(self, make_dataset: Make, add_images: Add, name: str, fields: dict, message: str) -> None:
        root = make_dataset()
        add_images(root / "sub-01" / "anat", {**STEADY_STATE, name: fields})
        assert message in error_of(root)
        assert f"sub-01_{name}.nii.gz" in error_of(root) or "milliseconds" in message

    @pytest.mark.parametrize(
        ("name", "state", "states"),
        [
            ("flip-1_mt-on_MTS", {"MTState": False}, "MTState False"),
            ("flip-2_mt-off_MTS", {"MTState": "OFF_RESONANCE"}, "MTState 'OFF_RESONANCE'"),
            ("flip-1_mt-on_VFA", {}, "no MTState"),
        ],
        ids=["off", "on", "unknown"],
    )
    def test_the_name_must_agree_with_the_state(
        self, make_dataset: Make, add_images: Add, name: str, state: dict, states: str
    ) -> None:
        root = make_dataset()
        images = {**STEADY_STATE, name: {"FlipAngle": 6, "RepetitionTimeExcitation": 0.028, **state}}
        add_images(root / "sub-01" / "anat", {key: images[key] for key in images if key[-3:] == name[-3:]})
        if name.endswith("VFA"):
            for path in (root / "sub-01" / "anat").glob("*flip-1_VFA*"):
                path.unlink()
        message = error_of(root)
        label = name.split("_")[1]
        assert f"sub-01_{name}.nii.gz is {label} by its name, but its sidecar has {states}: correct one" in message

    @pytest.mark.parametrize(
        ("word", "state"),
        [("ON_RESONANCE", True), ("Off_Resonance", True), ("NONE", False), ("yes", None), (1, None)],
        ids=["on-resonance", "off-resonance", "none", "unknown-word", "number"],
    )
    def test_words_of_dicom_for_the_state(
        self, make_dataset: Make, add_images: Add, word: object, state: bool | None
    ) -> None:
        root = make_dataset()
        name = "flip-1_mt-off_MTS" if state is False else "flip-1_mt-on_MTS"
        add_images(root / "sub-01" / "anat", {**STEADY_STATE, name: {**STEADY_STATE[name], "MTState": word}})
        if state is None:
            assert f"got {word!r}; correct it" in error_of(root)
            return
        (group,) = [group for group in inputs_of(root).groups if group.kind == "MTS"]
        assert group.acquisition.mt_pulse == (False, False, True)

    def test_only_the_first_of_several_echoes_is_used(self, make_dataset: Make, add_images: Add) -> None:
        root = make_dataset()
        images = {
            f"echo-{echo}_flip-{flip}_VFA": {"FlipAngle": 10 * flip, "RepetitionTimeExcitation": 0.02}
            for echo in (2, 1)
            for flip in (1, 2)
        }
        add_images(root / "sub-01" / "anat", images)
        found = inputs_of(root)
        (group,) = [group for group in found.groups if group.kind == "VFA"]
        assert [labels_of(name)["echo"] for name in group.files] == ["1", "1"]
        assert [problem.severity for problem in found.problems] == ["note"]
        assert "of 2 echoes only the first is used" in found.problems[0].message


class TestTransmitField:
    """Which TB1map a series is fitted with."""

    @staticmethod
    def maps(found: SubjectInputs) -> dict[str, list[tuple[str, float | None]]]:
        return {
            group.kind: [(Path(item.file).name, item.factor) for item in group.covariates] for group in found.groups
        }

    def test_it_serves_the_steady_state_only(self, make_dataset: Make, add_images: Add) -> None:
        root = make_dataset()
        add_images(root / "sub-01" / "anat", STEADY_STATE)
        add_images(root / "sub-01" / "fmap", {"TB1map": {}})
        found = inputs_of(root)
        maps = self.maps(found)
        assert maps["VFA"] == maps["MTS"] == [("sub-01_TB1map.nii.gz", None)]
        assert maps["IRT1"] == maps["MESE"] == maps["dwi"] == maps["T1w"] == []
        assert not found.problems
        (group,) = [group for group in found.groups if group.kind == "VFA"]
        assert group.all_files[-1].endswith("fmap/sub-01_TB1map.nii.gz")

    @pytest.mark.parametrize(
        ("fields", "factor"),
        [
            ({"Units": "arbitrary"}, None),
            ({"Units": "percent"}, 0.01),
            ({"Units": "%"}, 0.01),
            ({"Units": "1"}, 1.0),
            ({"Units": "degree", "FlipAngle": 50}, 0.02),
        ],
        ids=["arbitrary", "percent", "percent-sign", "one", "degree"],
    )
    def test_units(self, make_dataset: Make, add_images: Add, fields: dict, factor: float | None) -> None:
        root = make_dataset()
        add_images(root / "sub-01" / "anat", STEADY_STATE)
        add_images(root / "sub-01" / "fmap", {"TB1map": fields})
        assert self.maps(inputs_of(root))["VFA"] == [("sub-01_TB1map.nii.gz", factor)]

    def test_the_nominal_angle_is_kept(self, make_dataset: Make, add_images: Add) -> None:
        root = make_dataset()
        add_images(root / "sub-01" / "anat", STEADY_STATE)
        add_images(root / "sub-01" / "fmap", {"TB1map": {"FlipAngle": 60}})
        (group,) = [group for group in inputs_of(root).groups if group.kind == "VFA"]
        assert [item.nominal_angle for item in group.covariates] == [60.0]

    def test_series_without_a_usable_map_are_left_out(self, make_dataset: Make, add_images: Add) -> None:
        """Not fitted as if there were none: T1 would be biased."""
        root = make_dataset()
        add_images(root / "sub-01" / "anat", STEADY_STATE)
        add_images(root / "sub-01" / "fmap", {"TB1map": {"Units": "Hz"}})
        found = inputs_of(root)
        assert "VFA" not in self.maps(found)
        assert "VFA is left out because of its map of the transmit field" in found.problems[0].message
        assert "Units 'Hz'" in found.problems[0].message
        assert found.has_errors
        filtered = inputs_of(root, filters={"tb1map": {"acquisition": "none"}})
        assert self.maps(filtered)["VFA"] == []
        assert not filtered.has_errors

    def test_intended_for_decides_among_several(self, make_dataset: Make, add_images: Add) -> None:
        root = make_dataset()
        add_images(root / "sub-01" / "anat", STEADY_STATE)
        images = {
            "acq-a_TB1map": {"IntendedFor": "anat/sub-01_flip-1_mt-on_MTS.nii.gz"},
            "acq-b_TB1map": {"IntendedFor": ["bids::sub-01/anat/sub-01_flip-2_VFA.nii.gz"]},
        }
        add_images(root / "sub-01" / "fmap", images)
        found = inputs_of(root)
        assert self.maps(found)["VFA"] == [("sub-01_acq-b_TB1map.nii.gz", None)]
        assert self.maps(found)["MTS"] == [("sub-01_acq-a_TB1map.nii.gz", None)]
        assert not found.problems
        for name in images:
            write = root / "sub-01" / "fmap" / f"sub-01_{name}.json"
            write.write_text("{}")
        found = inputs_of(root)
        assert self.maps(found)["VFA"] == [("sub-01_acq-a_TB1map.nii.gz", None)]
        assert {problem.severity for problem in found.problems} == {"note"}
        assert "2 TB1maps apply to VFA: sub-01_acq-a_TB1map.nii.gz is used" in found.problems[0].message

    def test_another_session_does_not_serve(self, make_dataset: Make) -> None:
        root = make_dataset()
        source = root / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
        for session in ("a", "b"):
            for flip in (1, 2):
                target = root / "sub-02" / f"ses-{session}" / "anat" / f"sub-02_ses-{session}_flip-{flip}_VFA.nii.gz"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
                fields = {"FlipAngle": 10 * flip, "RepetitionTimeExcitation": 0.02}
                Path(str(target).replace(".nii.gz", ".json")).write_text(json.dumps(fields))
        target = root / "sub-02" / "ses-b" / "fmap" / "sub-02_ses-b_TB1map.nii.gz"
        target.parent.mkdir()
        shutil.copy(source, target)
        groups = {group.name: group.covariates for group in inputs_of(root, "02").groups}
        assert groups["ses-a_VFA"] == ()
        # A map without a session serves all, whichever are chosen.
        common = root / "sub-02" / "fmap" / "sub-02_TB1map.nii.gz"
        common.parent.mkdir()
        shutil.copy(source, common)
        (group,) = (item for item in inputs_of(root, "02", session_labels=("a",)).groups if item.kind == "VFA")
        assert [Path(item.file).name for item in group.covariates] == [common.name]
        assert len(groups["ses-b_VFA"]) == 1


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

    def test_description_with_a_byte_order_mark(self, make_dataset: Make) -> None:
        """Editors of Windows write it."""
        root = make_dataset()
        path = root / "dataset_description.json"
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
        assert check_description(root)["Name"] == "test"
        assert len(inputs_of(root).groups) == 4

    def test_unknown_participant(self, make_dataset: Make) -> None:
        with pytest.raises(NothingMatchedError, match=r"no sub-77; it has: 01, 02"):
            open_layout(make_dataset(), participant_labels=("77",))

    @pytest.mark.parametrize(
        ("options", "cause"),
        [
            (
                {"filters": {kind.lower(): {"acquisition": "none"} for kind in load_kinds()}},
                "none with the filters of --bids-filter-file; it has no session- and no run-",
            ),
            (
                {"session_labels": ("7",), "run_labels": ("1", "2")},
                r"IRT1 \(3\), MESE \(3\), T1w \(1\), dwi \(1\), but none with --session-label 7 and --run-label 1 2",
            ),
        ],
        ids=["filters", "labels"],
    )
    def test_a_choice_that_leaves_nothing(self, make_dataset: Make, options: dict, cause: str) -> None:
        layout = open_layout(make_dataset())
        with pytest.raises(NothingMatchedError, match=cause):
            find_inputs(layout, **options)

    def test_nothing_of_a_known_kind(self, make_dataset: Make) -> None:
        root = make_dataset()
        for path in root.glob("sub-*/*"):
            shutil.rmtree(path)
        with pytest.raises(
            NothingMatchedError, match=r"to work on: it has no images\. 1 more participants have nothing either"
        ):
            find_inputs(open_layout(root))
        write_image(root / "sub-01" / "anat" / "sub-01_echo-1_flip-1_mt-off_MPM.nii.gz")
        with pytest.raises(NothingMatchedError, match=r"sub-01 has no T1w, .* to work on: its images are MPM \(1\)"):
            find_inputs(open_layout(root, participant_labels=("01",)), participant_labels=("01",))

    def test_labels_that_bids_does_not_know(self, make_dataset: Make) -> None:
        """Their names cannot be taken apart: the participant fails, others go on."""
        root = make_dataset()
        write_image(root / "sub-A_1" / "anat" / "sub-A_1_T1w.nii.gz")
        found = {subject.subject: subject for subject in find_inputs(open_layout(root))}
        assert sorted(found) == ["01", "02", "A_1"]
        assert len(found["01"].groups) == 4
        assert found["A_1"].has_errors
        assert "a label holds letters and digits only" in found["A_1"].problems[0].message
        assert "sub-A1" in found["A_1"].problems[0].message
        for label in ("01", "02"):
            shutil.rmtree(root / f"sub-{label}")
        with pytest.raises(NothingMatchedError, match="letters and digits only"):
            find_inputs(open_layout(root))

    def test_filter_of_an_unknown_entity(self, make_dataset: Make) -> None:
        with pytest.raises(UsageError, match="acquisition for acq"):
            find_inputs(open_layout(make_dataset()), filters={"dwi": {"acq": "x"}})

    def test_filter_of_an_unknown_kind(self, make_dataset: Make) -> None:
        with pytest.raises(UsageError, match="bold"):
            find_inputs(open_layout(make_dataset()), filters={"bold": {}})


class TestSidecars:
    """One that cannot be read concerns the images it applies to and nothing else."""

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda path: path.write_text("{bad"), "is not valid JSON"),
            (lambda path: path.write_bytes(b'{"Note": "37\xb0"}'), "is not valid JSON"),
            (lambda path: path.write_text("[1]"), r"must hold a JSON object"),
            (lambda path: path.write_text("../../.git/annex/objects/aa/q.json"), "link to a file that is not here"),
            (
                lambda path: (path.unlink(), path.symlink_to("../nowhere")),
                "is a link to a file that is not here: fetch",
            ),
        ],
        ids=["syntax", "latin-1", "list", "text-of-a-link", "link"],
    )
    def test_an_unreadable_one(self, make_dataset: Make, damage: Callable[[Path], object], message: str) -> None:
        root = make_dataset()
        sidecar = root / "sub-01" / "anat" / "sub-01_inv-2_IRT1.json"
        damage(sidecar)
        assert error_of(root).startswith(f"{sidecar} ")
        assert message in error_of(root)
        assert [group.kind for group in inputs_of(root).groups] == ["T1w", "MESE", "dwi"]
        # A filter by its fields does not hide it.
        assert message in inputs_of(root, filters={"irt1": {"InversionTime": 0.1}}).problems[0].message

    @pytest.mark.parametrize("name", ["sub-01_T1w.json", "T1w.json", "func/sub-01_task-rest_bold.json"])
    def test_one_that_nothing_is_computed_from(self, make_dataset: Make, name: str) -> None:
        root = make_dataset()
        path = root / "sub-01" / "anat" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{bad")
        found = inputs_of(root)
        assert len(found.groups) == 4
        assert not found.has_errors
        notes = [problem.message for problem in found.problems]
        assert len(notes) == ("T1w" in name)
        assert all(f"is used without its sidecar: {path} is not valid JSON" in note for note in notes)

    def test_one_of_a_transmit_field(self, make_dataset: Make, add_images: Add) -> None:
        root = make_dataset()
        add_images(root / "sub-01" / "anat", STEADY_STATE)
        add_images(root / "sub-01" / "fmap", {"TB1map": {}})
        (root / "sub-01" / "fmap" / "sub-01_TB1map.json").write_text("{bad")
        found = inputs_of(root)
        assert [group.kind for group in found.groups] == ["T1w", "IRT1", "MESE", "dwi"]
        assert all("left out because of its map" in problem.message for problem in found.problems)

    def test_a_byte_order_mark(self, make_dataset: Make) -> None:
        root = make_dataset()
        path = root / "sub-01" / "anat" / "sub-01_inv-2_IRT1.json"
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
        assert inversion_recovery(root).acquisition == InversionRecovery((0.1, 0.5, 1.5))

    def test_the_nearest_one_wins_and_then_that_of_most_entities(self, make_dataset: Make) -> None:
        root = make_dataset()
        write_sidecar(root / "MESE.json", EchoTime=9.0, Manufacturer="A")
        write_sidecar(root / "sub-01" / "sub-01_echo-2_MESE.json", EchoTime=0.06)
        write_sidecar(root / "sub-01" / "anat" / "sub-01_MESE.json", FlipAngle=90)
        write_sidecar(root / "sub-01" / "anat" / "._sub-01_MESE.json", FlipAngle=91)
        (group,) = [group for group in inputs_of(root).groups if group.kind == "MESE"]
        assert group.acquisition == MultiEcho((0.01, 0.03, 0.06))
        assert dict(group.metadata) == {"Manufacturer": "A", "FlipAngle": 90}

    def test_two_that_apply_alike_must_agree(self, make_dataset: Make) -> None:
        root = make_dataset()
        dwi = root / "sub-01" / "dwi"
        (dwi / "sub-01_dwi.nii.gz").rename(dwi / "sub-01_acq-a_run-1_dwi.nii.gz")
        write_sidecar(dwi / "sub-01_acq-a_dwi.json", SmallDelta=0.01)
        write_sidecar(dwi / "sub-01_run-01_dwi.json", SmallDelta=0.01)
        assert not inputs_of(root).problems
        write_sidecar(dwi / "sub-01_run-01_dwi.json", SmallDelta=0.02)
        assert "needs one SmallDelta" in error_of(root)

    @pytest.mark.parametrize(
        ("query", "kept"),
        [
            ({"InversionTime": 0.5}, False),
            ({"InversionTime": [0.1, 0.5, 1.5]}, True),
            ({"Manufacturer": None}, True),
            ({"InversionTime": r"^\d", "regex_search": True}, True),
            ({"Manufacturer": "A"}, None),
        ],
        ids=["number", "list", "absent", "regular-expression", "no-match"],
    )
    def test_filters_by_their_fields(self, make_dataset: Make, query: dict, kept: bool | None) -> None:
        found = inputs_of(make_dataset(), filters={"irt1": query})
        series = [group for group in found.groups if group.kind == "IRT1"]
        assert len(series) == (kept is not None)
        assert all((len(group.files) == 3) == kept for group in series)


class TestDefects:
    """A defect is a problem of its series, says which file, and leaves the other series alone."""

    def test_missing_inversion_time(self, make_dataset: Make) -> None:
        root = make_dataset()
        (root / "sub-01" / "anat" / "sub-01_inv-2_IRT1.json").write_text("{}")
        message = error_of(root)
        assert "needs InversionTime" in message
        assert "sub-01_inv-2_IRT1.nii.gz" in message
        assert len(inputs_of(root).groups) == 3

    @pytest.mark.parametrize(
        ("name", "fields", "same"),
        [
            ("inv-2_IRT1", {"InversionTime": 0.5}, "sub-01_inv-2_IRT1.nii.gz has the same (InversionTime 0.5)"),
            ("echo-3_MESE", {"EchoTime": 0.01}, "sub-01_echo-1_MESE.nii.gz has the same (EchoTime 0.01)"),
            (
                "flip-3_VFA",
                {"FlipAngle": 20, "RepetitionTimeExcitation": 0.015},
                "sub-01_flip-1_VFA.nii.gz has the same (FlipAngle 20.0, RepetitionTimeExcitation 0.015, MTState False)",
            ),
        ],
        ids=["inversion-time", "echo-time", "flip-angle"],
    )
    def test_the_same_values_twice(
        self, make_dataset: Make, add_images: Add, name: str, fields: dict, same: str
    ) -> None:
        root = make_dataset()
        if name.endswith("VFA"):
            add_images(root / "sub-01" / "anat", {key: STEADY_STATE[key] for key in STEADY_STATE if "VFA" in key})
        add_images(root / "sub-01" / "anat", {name: fields})
        assert same in error_of(root)
        assert "correct the sidecars, or keep one" in error_of(root)

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

    def test_b_values_in_another_unit(self, make_dataset: Make) -> None:
        root = make_dataset()
        (root / "sub-01" / "dwi" / "sub-01_dwi.bval").write_text("0 0 1e9 1e9 1e9 1e9 1e9 1e9\n")
        message = error_of(root)
        assert (
            "sub-01_dwi.nii.gz with sub-01_dwi.bval: b-values must be in s/mm2, got 1e+09: are they in s/m2?" in message
        )
        assert "nothing is converted" in message

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
        assert "must hold one volume, (x, y, z), but its shape is (4, 4, 4, 2): write each" in error_of(root)

    @pytest.mark.parametrize(
        ("name", "shape", "message"),
        [
            ("anat/sub-01_T1w", (64, 64), "its shape is (64, 64): write a single slice with a third axis of length 1"),
            ("anat/sub-01_echo-2_MESE", (6, 6), "must hold one volume, (x, y, z), but its shape is (6, 6)"),
            (
                "anat/sub-01_MESE",
                (6, 6, 3, 8),
                "write each volume to a file of its own, with the entity that numbers it",
            ),
            ("dwi/sub-01_dwi", (6, 6), "must hold a series of volumes, (x, y, z, volume), but its shape is (6, 6)"),
            ("dwi/sub-01_dwi", (6, 6, 3, 8, 2), "its shape is (6, 6, 3, 8, 2): split it"),
        ],
        ids=["T1w-2D", "echo-2D", "all-echoes-4D", "dwi-2D", "dwi-5D"],
    )
    def test_another_number_of_dimensions(
        self, make_dataset: Make, name: str, shape: tuple[int, ...], message: str
    ) -> None:
        root = make_dataset()
        path = root / "sub-01" / f"{name}.nii.gz"
        if path.name == "sub-01_MESE.nii.gz":
            for echo in path.parent.glob("*MESE*"):
                echo.unlink()
        nib.save(nib.Nifti1Image(np.ones(shape, np.float32), np.eye(4)), path)
        assert str(path) in error_of(root)
        assert message in error_of(root)
        assert len(inputs_of(root).groups) == 3

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

    @pytest.mark.parametrize("name", ["sub-01_T1w.nii.gz", "sub-01_inv-2_IRT1.nii.gz"])
    def test_an_image_that_was_not_fetched(self, make_dataset: Make, name: str) -> None:
        root = make_dataset()
        path = root / "sub-01" / "anat" / name
        path.unlink()
        path.symlink_to("../../.git/annex/objects/absent")
        assert f"{path} is a link to a file that is not here: fetch it" in error_of(root)
        assert len(inputs_of(root).groups) == 3

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
    [
        ("qmri_irt1", "IRT1", 4),
        ("qmri_mese", "MESE", 32),
        ("qmri_megre", "MEGRE", 8),
        ("qmri_vfa", "VFA", 2),
        ("qmri_mtsat", "MTS", 3),
    ],
)
def test_published_examples_are_grouped(shared: Path, name: str, kind: str, n_files: int) -> None:
    """The images are empty: grouping is seen through the problem that names the first file."""
    layout = open_layout(shared / "bids-examples" / name)
    files = layout.get(suffix=kind, extension=[".nii.gz"], scope="raw")
    found = find_inputs(layout)
    assert sum(len(subject.problems) for subject in found) >= 1
    assert all(problem.kind in (kind, "T1w", "") for subject in found for problem in subject.problems)
    assert len(files) >= min(n_files, 3)


def test_pulse_timing_is_read_per_series_and_per_volume(make_dataset: Make) -> None:
    root = make_dataset()
    sidecar = root / "sub-01" / "dwi" / "sub-01_dwi.json"

    def timing(**fields: object) -> tuple[object, object]:
        sidecar.write_text(json.dumps(fields))
        group = next(group for group in inputs_of(root).groups if group.kind == "dwi")
        assert isinstance(group.acquisition, Diffusion)
        return group.acquisition.small_delta, group.acquisition.large_delta

    assert timing(SmallDelta=0.01, BigDelta=0.03) == (0.01, 0.03)
    assert timing(SmallDelta=0.01, LargeDelta=0.04) == (0.01, 0.04)
    assert timing(SmallDelta=0.01, BigDelta=[0.03] * 4 + [0.05] * 4) == (0.01, (0.03,) * 4 + (0.05,) * 4)
    assert timing() == (None, None)
