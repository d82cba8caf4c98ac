"""Unusual regions of white matter: rate of false alarms, detection, and what is no finding."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.fitting.unusual import LEVEL, MIN_SPHERES, Scan, find_unusual

SHAPE, VOXEL = (36, 42, 30), 4.5
AFFINE = np.array([[VOXEL, 0, 0, -78.75], [0, VOXEL, 0, -92.25], [0, 0, VOXEL, -65.25], [0, 0, 0, 1.0]])
GREY, WHITE = 1, 2
LESION = (slice(9, 12), slice(18, 22), slice(16, 19))
STD = 0.12


def tissues() -> np.ndarray:
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    distance = np.sqrt(sum(axis**2 for axis in axes))
    return np.select([distance < 0.8, distance < 1], [WHITE, GREY], 0)


def diffusivity(seed: int) -> np.ndarray:
    """Tissue means, smooth variation as in the demo, and errors of the estimate."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.standard_normal(SHAPE), 2)
    values = np.select([tissues() == WHITE, tissues() == GREY], [2.2, 1.1], np.nan)
    return values * (1 + 0.05 * smooth / smooth.std()) + STD * rng.standard_normal(SHAPE)


def scan(values: np.ndarray, usable: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> Scan:
    good = np.isfinite(values) if usable is None else usable
    return find_unusual(values, np.full(values.shape, STD), good, tissues(), affine, label=WHITE)


def test_false_alarms_are_as_rare_as_stated() -> None:
    """Here nothing but noise and smooth variation differs, as the p-values assume: 20 heads, 0.2 alarms expected."""
    assert sum(bool(scan(diffusivity(seed)).regions) for seed in range(20)) <= 20 * LEVEL + 2


@pytest.mark.parametrize("seed", range(3))
def test_a_lesion_of_ordinary_values_is_found(seed: int) -> None:
    values = diffusivity(seed)
    values[LESION] -= 0.45
    first, *others = scan(values).regions
    assert not others
    assert np.linalg.norm(np.array(first.cluster.centre) - (-33.75, -4.5, 11.25)) < 2 * VOXEL
    assert first.cluster.place.startswith("left")
    assert -0.6 < first.difference < -0.25
    assert first.p_value < LEVEL
    assert first.z < 0


def test_a_region_that_is_not_usable_is_no_finding() -> None:
    values = diffusivity(0)
    values[LESION] -= 5
    usable = np.isfinite(values)
    usable[LESION] = False
    assert scan(values, usable) == Scan()


def test_anatomy_on_both_sides_is_no_finding() -> None:
    values = diffusivity(0)
    values[LESION] -= 0.45
    assert scan(values).regions
    values[::-1][LESION] -= 0.45
    assert not scan(values).regions


def test_unit_and_direction_of_the_axes_do_not_matter() -> None:
    values = diffusivity(0)
    values[LESION] -= 0.45
    (first,) = scan(values).regions
    turned = AFFINE.copy()
    turned[0] = (-VOXEL, 0, 0, 78.75)
    (again,) = scan(values, affine=turned).regions
    assert again.cluster.place.startswith("right")
    small = find_unusual(
        1e-3 * values, np.full(SHAPE, 1e-3 * STD), np.isfinite(values), tissues(), AFFINE, label=WHITE
    ).regions[0]
    assert small.z == pytest.approx(first.z, rel=1e-6)
    assert small.difference == pytest.approx(1e-3 * first.difference, rel=1e-6)


def test_many_maps_need_more_evidence() -> None:
    values = diffusivity(0)
    values[LESION] -= 0.45
    std, usable = np.full(SHAPE, STD), np.isfinite(values)
    one, many = (
        find_unusual(values, std, usable, tissues(), AFFINE, label=WHITE, n_maps=n).regions[0] for n in (1, 10)
    )
    assert many.p_value == pytest.approx(10 * one.p_value)


def test_few_voxels_are_left_out_with_the_reason() -> None:
    usable = np.zeros(SHAPE, bool)
    usable[15:20, 18:24, 12:17] = True
    found = scan(diffusivity(0), usable)
    assert not found.regions
    assert str(MIN_SPHERES) in found.left_out
    assert scan(diffusivity(0), np.zeros(SHAPE, bool)).left_out


def test_a_map_of_equal_values_is_left_out() -> None:
    """As the fraction of free water, which is exactly 0 in most of white matter."""
    values = np.where(np.random.default_rng(0).random(SHAPE) < 0.6, 0.0, 0.1)
    found = find_unusual(values, np.zeros(SHAPE), tissues() > 0, tissues(), AFFINE, label=WHITE)
    assert not found.regions
    assert "the same" in found.left_out


def test_a_map_of_partial_volume_alone_has_no_region() -> None:
    blurred = gaussian_filter((tissues() == GREY).astype(float), 3.0 / VOXEL)
    values = 2 - blurred + 1e-9 * np.random.default_rng(0).standard_normal(SHAPE)
    # Far from grey matter all values are equal.
    near = (tissues() == WHITE) & (blurred > 0.01)
    assert not find_unusual(values, np.zeros(SHAPE), near, tissues(), AFFINE, label=WHITE).regions


def test_images_of_different_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="one grid"):
        find_unusual(np.ones(SHAPE), np.ones(SHAPE), np.ones(SHAPE, bool), np.ones((3, 3, 3)), AFFINE, label=WHITE)
