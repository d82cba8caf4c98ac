"""Halves of series as a data set of their own: which measurements each half has, and what cannot be split."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.bids.dataset import open_layout
from qmri_bidsapp.bids.halves import Pair, write_halves
from qmri_bidsapp.bids.inputs import InputGroup
from qmri_bidsapp.bids.queries import find_inputs
from qmri_bidsapp.errors import NothingMatchedError

Make = Callable[[], Path]
B_VALUES = (0, 1000, 0, 1000, 2000, 1000, 2000, 0, 1000, 2000)


def write(root: Path) -> tuple[tuple[Pair, ...], tuple[str, ...], Path]:
    folder = root.parent / "halves"
    pairs, notes = write_halves(root, find_inputs(open_layout(root), skip=("join",)), folder)
    return pairs, notes, folder


def found_in(folder: Path) -> dict[str, InputGroup]:
    """Return the series of sub-01 that the app finds in a data set."""
    first = find_inputs(open_layout(folder), skip=("join",))[0]
    assert not first.problems
    return {group.name: group for group in first.groups}


def write_diffusion(stem: Path, b_values: tuple[int, ...], **fields: object) -> None:
    """Write a series whose volumes hold their own number."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    values = np.broadcast_to(np.arange(1, len(b_values) + 1, dtype=np.int16), (6, 6, 3, len(b_values)))
    nib.save(nib.Nifti1Image(values, np.eye(4)), f"{stem}.nii.gz")
    Path(f"{stem}.json").write_text(json.dumps(fields))
    Path(f"{stem}.bval").write_text(" ".join(map(str, b_values)))
    directions = np.random.default_rng(0).standard_normal((3, len(b_values)))
    np.savetxt(f"{stem}.bvec", directions / np.linalg.norm(directions, axis=0))


@pytest.fixture
def diffusion(make_dataset: Make) -> Path:
    """A data set with a diffusion series of three shells, and nothing else of sub-01."""
    root = make_dataset()
    shutil.rmtree(root / "sub-01")
    shutil.rmtree(root / "sub-02")
    timing = [0.01 + 0.001 * i for i in range(len(B_VALUES))]
    write_diffusion(root / "sub-01" / "dwi" / "sub-01_dwi", B_VALUES, SmallDelta=timing, BigDelta=0.05)
    return root


def test_volumes_alternate_within_each_shell(diffusion: Path) -> None:
    pairs, notes, folder = write(diffusion)
    assert pairs == (Pair("01", "dwi", "acq-oddhalf_dwi", "acq-evenhalf_dwi"),)
    assert notes == ()
    groups = found_in(folder)
    original = find_inputs(open_layout(diffusion))[0].groups[0].acquisition
    # By shell: volumes 0, 2, 7; 1, 3, 5, 8; 4, 6, 9.
    for name, volumes in ((pairs[0].first, [0, 3, 6, 7, 8]), (pairs[0].second, [1, 2, 4, 5, 9])):
        group = groups[name]
        assert np.array_equal(np.asarray(nib.load(group.files[0]).dataobj)[0, 0, 0], np.array(volumes) + 1)
        expected = original.select(np.array(volumes))
        assert group.acquisition.b_value == expected.b_value
        assert group.acquisition.small_delta == expected.small_delta
        assert group.acquisition.large_delta == 0.05
        assert np.allclose(group.acquisition.direction, expected.direction, atol=1e-5)
        assert {0, 1000, 2000} <= set(expected.b_value)


def test_an_only_reference_is_in_both_halves_and_is_named(make_dataset: Make, diffusion: Path) -> None:
    write_diffusion(diffusion / "sub-01" / "dwi" / "sub-01_dwi", (0, *(1000,) * 6))
    pairs, notes, folder = write(diffusion)
    assert pairs[0].share_reference
    assert "their errors correlate" in notes[0]
    groups = found_in(folder)
    assert [groups[name].acquisition.b_value.count(0) for name in (pairs[0].first, pairs[0].second)] == [1, 1]
    assert [len(groups[name].acquisition.b_value) for name in (pairs[0].first, pairs[0].second)] == [4, 4]


def test_images_alternate_by_time_and_keep_inherited_metadata(make_dataset: Make, add_images) -> None:
    root = make_dataset()
    anat = root / "sub-01" / "anat"
    add_images(anat, {f"echo-{number}_MESE": {"EchoTime": 0.01 * number} for number in (4, 5)})
    pairs, notes, folder = write(root)
    # The inversion recovery has three images.
    assert [pair.title for pair in pairs] == ["MESE", "dwi"]
    assert "sub-01 IRT1: 3 images are too few to split; it takes 4." in notes
    groups = found_in(folder)
    assert groups[pairs[0].first].acquisition.echo_time == (0.01, 0.03, 0.05)
    assert groups[pairs[0].second].acquisition.echo_time == (0.02, 0.04)
    assert "T1w" in groups
    # Nothing is compared in sub-02, so nothing is run for it.
    assert not (folder / "sub-02").exists()


def test_runs_of_one_protocol_are_compared_and_other_series_are_not(diffusion: Path) -> None:
    folder = diffusion / "sub-01" / "dwi"
    for name in folder.iterdir():
        name.unlink()
    write_diffusion(folder / "sub-01_run-1_dwi", B_VALUES)
    # Recorded b-values vary a little between repeats.
    write_diffusion(folder / "sub-01_run-2_dwi", tuple(b + 5 * (-1) ** i if b else 5 for i, b in enumerate(B_VALUES)))
    write_diffusion(folder / "sub-01_run-3_dwi", B_VALUES[:8])
    write_diffusion(folder / "sub-01_acq-x_dir-AP_dwi", B_VALUES)
    write_diffusion(folder / "sub-01_acq-x_dir-PA_dwi", B_VALUES)
    pairs, notes, out = write(diffusion)
    assert [(pair.first, pair.second) for pair in pairs if not pair.are_halves] == [("run-1_dwi", "run-2_dwi")]
    assert sum(pair.are_halves for pair in pairs) == 5
    assert any("acq-x_dir-AP_dwi and acq-x_dir-PA_dwi: not compared" in note for note in notes)
    groups = found_in(out)
    assert {"run-1_dwi", "run-2_dwi", "acq-xoddhalf_dir-AP_dwi"} <= set(groups)
    assert groups["run-1_dwi"].acquisition.b_value == B_VALUES
    assert "run-3_dwi" not in groups


def test_a_map_of_the_transmit_field_is_that_of_the_whole_series(make_dataset: Make, add_images) -> None:
    root = make_dataset()
    angles = {f"flip-{i}_VFA": {"FlipAngle": 4.0 * i, "RepetitionTimeExcitation": 0.02} for i in (1, 2, 3, 4)}
    add_images(root / "sub-01" / "anat", angles)
    maps = {
        "acq-a_TB1map": {"Units": "percent"},
        "acq-b_TB1map": {"Units": "percent", "IntendedFor": "bids::sub-01/anat/sub-01_flip-1_VFA.nii.gz"},
    }
    add_images(root / "sub-01" / "fmap", maps)
    pairs, _, folder = write(root)
    groups = found_in(folder)
    (pair,) = (pair for pair in pairs if pair.title == "VFA")
    for name in (pair.first, pair.second):
        assert [Path(item.file).name for item in groups[name].covariates] == ["sub-01_acq-b_TB1map.nii.gz"]


def test_nothing_to_compare_is_an_error(diffusion: Path) -> None:
    write_diffusion(diffusion / "sub-01" / "dwi" / "sub-01_dwi", (0, 1000, 1000))
    with pytest.raises(NothingMatchedError, match="There is nothing to compare: sub-01 dwi: 3 images are too few"):
        write(diffusion)
