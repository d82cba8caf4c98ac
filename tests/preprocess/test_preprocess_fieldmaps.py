"""Units and interpolation of maps of the transmit field."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.preprocess.fieldmaps import onto_grid, relative_field


def image(data: np.ndarray, affine: np.ndarray | None = None) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(data, dtype=np.float32), np.eye(4) if affine is None else affine)


def plane(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """A field that is linear in space: linear interpolation gives it exactly."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    x, y, z = np.moveaxis(nib.affines.apply_affine(affine, voxels), -1, 0)
    return 1 + 0.004 * x - 0.003 * y + 0.002 * z


@pytest.mark.parametrize(
    ("stored", "factor", "note"),
    [(95.0, None, "as percent"), (0.95, None, "as fraction"), (95.0, 0.01, None), (57.0, 1 / 60, None)],
    ids=["percent", "fraction", "units-percent", "degree"],
)
def test_units(stored: float, factor: float | None, note: str | None) -> None:
    data = np.full((4, 4, 4), stored)
    data[0] = 0
    data[1, 0, 0] = np.nan
    field, said = relative_field(image(data), factor)
    found = np.asarray(field.dataobj)
    np.testing.assert_allclose(found[2:], 0.95, rtol=1e-6)
    assert not found[0].any()
    assert found[1, 0, 0] == 0
    assert (said is None) if note is None else (note in said)


@pytest.mark.parametrize(("stored", "factor"), [(950.0, None), (8.0, None), (0.95, 0.01), (-1.0, None)])
def test_what_is_no_relative_field_is_refused(stored: float, factor: float | None) -> None:
    with pytest.raises(InputError, match="no relative field"):
        relative_field(image(np.full((3, 3, 3), stored)), factor)


@pytest.mark.parametrize(
    ("stored", "nominal", "message"),
    [
        (57.0, 60.0, "near its FlipAngle of 60 degrees"),
        (95.0, 90.0, "near its FlipAngle of 90 degrees"),
        (570.0, 60.0, "10 x degrees"),
        (45.0, None, "degrees or percent"),
        (57.0, 90.0, "degrees or percent"),
    ],
    ids=["degree", "degree-or-percent", "tenths", "no-nominal", "other-nominal"],
)
def test_flip_angles_without_a_unit_are_refused(stored: float, nominal: float | None, message: str) -> None:
    """They passed as percent, and T1 came out 2.8 times too long."""
    with pytest.raises(InputError, match=message):
        relative_field(image(np.full((3, 3, 3), stored)), None, nominal)


def test_percent_far_from_the_nominal_angle_is_percent() -> None:
    field, said = relative_field(image(np.full((3, 3, 3), 95.0)), None, 8.0)
    assert np.asarray(field.dataobj)[0, 0, 0] == pytest.approx(0.95)
    assert "taken as percent. If it holds flip angles, state Units degree" in said


def test_interpolation_follows_the_headers() -> None:
    coarse = np.diag([4.0, 5.0, 6.0, 1.0])
    coarse[:3, 3] = (-20, -25, -30)
    # Turned by 30 degrees and finer.
    fine = np.diag([1.5, 1.5, 2.0, 1.0])
    angle = np.deg2rad(30)
    fine[:2, :2] = 1.5 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    fine[:3, 3] = (-4, -6, -5)
    found = onto_grid(image(plane((11, 11, 11), coarse), coarse), image(np.ones((8, 9, 5, 2)), fine))
    assert found.shape == (8, 9, 5)
    np.testing.assert_allclose(found.affine, fine, atol=1e-6)
    np.testing.assert_allclose(np.asarray(found.dataobj), plane((8, 9, 5), fine), atol=1e-5)


def test_the_rim_of_a_masked_map_keeps_its_values_and_beyond_nothing_is_known() -> None:
    data = np.zeros((8, 8, 8))
    data[2:6, 2:6, 2:6] = 0.9
    half = np.diag([0.5, 0.5, 0.5, 1.0])
    found = np.asarray(onto_grid(image(data), image(np.ones((16, 16, 16)), half)).dataobj)
    known = np.isfinite(found)
    np.testing.assert_allclose(found[known], 0.9, rtol=1e-5)
    # Voxels 2 to 5 of the map, and the half steps before and behind them.
    assert known[3:12, 3:12, 3:12].all()
    assert known.sum() == 9**3


def test_maps_that_do_not_overlap_are_refused() -> None:
    far = np.eye(4)
    far[:3, 3] = 500
    with pytest.raises(InputError, match="does not overlap"):
        onto_grid(image(np.ones((4, 4, 4))), image(np.ones((4, 4, 4)), far))
