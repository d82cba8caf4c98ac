from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.bids.files import check_headers
from qmri_bidsapp.errors import InputError
from qmri_bidsapp.images.gradients import as_gradients, format_gradients, read_gradients
from qmri_bidsapp.images.volumes import (
    as_series,
    as_volume,
    fill,
    grid_notes,
    iter_voxels,
    load_image,
    merge_series,
    open_series,
    save_image,
)


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(data.astype(np.float32), np.eye(4) if affine is None else affine), path)
    return path


def test_truncated_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).random((20, 20, 20)))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match="truncated"):
        load_image(path, ndim=3)


@pytest.mark.parametrize(("value", "message"), [(0.0, "nothing but zeros"), (np.nan, "all NaN")])
def test_empty_volumes(tmp_path: Path, value: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_image(save(tmp_path / "a.nii.gz", np.full((3, 3, 3), value)), ndim=3)


@pytest.mark.parametrize(("value", "message"), [(0.0, "Volume 2 of .* zeros"), (np.nan, "Volume 2 of .*all NaN")])
def test_one_empty_volume_of_a_series(tmp_path: Path, value: float, message: str) -> None:
    data = np.ones((3, 3, 3, 4))
    data[..., 2] = value
    with pytest.raises(InputError, match=message):
        load_image(save(tmp_path / "a.nii.gz", data), ndim=4)


def test_dimensions(tmp_path: Path) -> None:
    assert load_image(save(tmp_path / "a.nii", np.ones((3, 3, 3, 1))), ndim=3).shape == (3, 3, 3)
    with pytest.raises(InputError, match="must have 3 dimensions"):
        load_image(save(tmp_path / "b.nii", np.ones((3, 3, 3, 2))), ndim=3)


def test_scaled_integers_are_read_in_their_unit(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(27, dtype=np.int16).reshape(3, 3, 3), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "a.nii.gz")
    loaded = load_image(tmp_path / "a.nii.gz", ndim=3)
    assert np.asarray(loaded.dataobj).max() == 23
    assert nib.load(save_image(loaded, tmp_path / "b.nii")).get_fdata().max() == 23


@pytest.mark.parametrize("ndim", [3, 4])
def test_complex_images_are_refused_with_what_to_write(tmp_path: Path, ndim: int) -> None:
    nib.save(nib.Nifti1Image(np.full((3,) * ndim, 1 + 1j, dtype=np.complex64), np.eye(4)), tmp_path / "a.nii")
    for read in (
        lambda: load_image(tmp_path / "a.nii", ndim=ndim),
        lambda: check_headers([str(tmp_path / "a.nii")], ndim=ndim),
    ):
        with pytest.raises(InputError, match=r"a\.nii holds complex numbers .complex64.*write the magnitude"):
            read()


def test_complex_arrays_are_refused() -> None:
    for read, ndim in ((as_volume, 3), (as_series, 4)):
        with pytest.raises(InputError, match="take the magnitude"):
            read(np.full((3,) * ndim, 1 + 1j))


def test_colours_are_refused(tmp_path: Path) -> None:
    colours = np.zeros((3, 3, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(InputError, match="holds colours"):
        load_image(tmp_path / "a.nii", ndim=3)


def test_signed_images_are_no_magnitudes(tmp_path: Path) -> None:
    data = np.full((8, 8, 8), 1000.0)
    data[:2] = -300.0
    path = save(tmp_path / "signed.nii", data)
    with pytest.raises(InputError, match=r"signed\.nii must be a magnitude.*down to -300.*hold 3%.*part-real"):
        load_image(path, ndim=3, is_magnitude=True)
    with pytest.raises(InputError, match="must be a magnitude"):
        merge_series([save(tmp_path / "a.nii", np.ones((8, 8, 8))), path], is_magnitude=True)
    assert load_image(path, ndim=3).shape == (8, 8, 8)


def test_undershoot_of_interpolation_leaves_a_magnitude(tmp_path: Path) -> None:
    from scipy.ndimage import shift

    data = np.zeros((20, 20, 20))
    data[5:15, 5:15, 5:15] = 1000.0
    moved = shift(data, (0.5, 0.4, 0.3), order=3)
    assert moved.min() < -50
    load_image(save(tmp_path / "a.nii", moved), ndim=3, is_magnitude=True)


def moved(by: float) -> np.ndarray:
    affine = np.diag([3.0, 3, 3, 1])
    affine[0, 3] = by
    return affine


def test_affines_that_differ_by_a_thousandth_of_a_voxel_are_one_geometry(tmp_path: Path) -> None:
    """Other programs round headers; the series is registered anyway. It is said."""
    files = [save(tmp_path / f"{k}.nii", np.ones((3, 3, 3)), moved(0.002 * k)) for k in range(3)]
    assert merge_series(files).shape == (3, 3, 3, 3)
    assert check_headers([str(name) for name in files], ndim=3) == (3, 3, 3)
    assert as_series([nib.load(name) for name in files])[0].shape == (3, 3, 3, 3)
    notes = grid_notes(files)
    assert len(notes) == 2
    assert "2.nii differs by up to 0.004 mm" in notes[1]


def test_a_turn_counts_by_what_it_moves(tmp_path: Path) -> None:
    turned = np.diag([3.0, 3, 3, 1])
    turned[0, 1] = 0.01
    files = [
        save(tmp_path / "a.nii", np.ones((2, 40, 2)), moved(0)),
        save(tmp_path / "b.nii", np.ones((2, 40, 2)), turned),
    ]
    with pytest.raises(InputError, match=r"affine of .*b\.nii .*by up to 0\.39 mm"):
        merge_series(files)


def test_rounding_to_float32_is_not_worth_a_word(tmp_path: Path) -> None:
    assert grid_notes([save(tmp_path / f"{k}.nii", np.ones((3, 3, 3)), moved(0.0005 * k)) for k in range(2)]) == []


def test_series_need_one_geometry(tmp_path: Path) -> None:
    first = save(tmp_path / "a.nii", np.ones((3, 3, 3)))
    assert merge_series([first, first]).shape == (3, 3, 3, 2)
    with pytest.raises(InputError, match="one shape"):
        merge_series([first, save(tmp_path / "b.nii", np.ones((3, 3, 4)))])
    with pytest.raises(InputError, match="affine"):
        merge_series([first, save(tmp_path / "c.nii", np.ones((3, 3, 3)), np.diag([2.0, 1, 1, 1]))])


@pytest.mark.parametrize(("chunk_size", "n_parts"), [(11, 8), (40, 3), (1000, 1)], ids=["parts", "slabs", "whole"])
def test_chunks_put_together_are_the_masked_image(tmp_path: Path, chunk_size: int, n_parts: int) -> None:
    data = np.random.default_rng(0).random((4, 5, 6, 7)).astype(np.float32)
    mask = data[..., 0] > 0.4
    mask[..., 2] = False
    parts = list(iter_voxels(open_series(save(tmp_path / "a.nii", data))[0], mask, chunk_size))
    values = np.full((mask.sum(), 7), np.nan, dtype=np.float32)
    for index, signals in parts:
        values[index] = signals
    np.testing.assert_array_equal(values, data[mask])
    assert sum(len(index) for index, _ in parts) == len(values)
    assert max(len(signals) for _, signals in parts) <= chunk_size
    assert len(parts) == n_parts
    filled = fill(values[:, 3], mask, np.nan)
    np.testing.assert_array_equal(filled[mask], data[mask][:, 3])
    assert np.isnan(filled[~mask]).all()


def test_gradients_survive_writing(tmp_path: Path) -> None:
    b_value, direction = np.array([0.0, 1000.0, 2500.0]), np.array([[0, 0, 0], [0.6, 0.8, 0], [0, 0, 1.0]])
    bval, bvec = format_gradients(b_value, direction)
    (tmp_path / "x.bval").write_text(bval)
    (tmp_path / "x.bvec").write_text(bvec)
    again = read_gradients(tmp_path / "x.bval", tmp_path / "x.bvec", 3)
    np.testing.assert_allclose(again[0], b_value)
    np.testing.assert_allclose(again[1], direction, atol=1e-6)


def test_low_b_values_keep_their_directions() -> None:
    """At b = 5 to 50 there is attenuation: taken as none, mean diffusivity was 5 % too low at b = 50."""
    vectors = np.array([[1.0, 0, 0], [0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0.3]])
    b_value, direction = as_gradients([50.0, 5.0, 1000.0, 0.0, 5.0], vectors)
    np.testing.assert_array_equal(b_value, [50, 5, 1000, 0, 5])
    np.testing.assert_array_equal(direction, [[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ("bval", "bvec", "message"),
    [
        ("0 1000", "0 1\n0 0\n0 0\n0 0", "3 x 2"),
        ("0 1000", "0 0.5\n0 0\n0 0", "unit vector"),
        ("0 -5", "0 1\n0 0\n0 0", "negative"),
        ("0 x", "0 1\n0 0\n0 0", "table of numbers"),
        ("0", "0 1\n0 0\n0 0", "1 b-values"),
    ],
    ids=["rows", "norm", "negative", "text", "count"],
)
def test_bad_gradients(tmp_path: Path, bval: str, bvec: str, message: str) -> None:
    (tmp_path / "x.bval").write_text(bval)
    (tmp_path / "x.bvec").write_text(bvec)
    with pytest.raises(InputError, match=message):
        read_gradients(tmp_path / "x.bval", tmp_path / "x.bvec", 2)
