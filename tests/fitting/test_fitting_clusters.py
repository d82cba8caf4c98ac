"""Clusters of flagged voxels: size, place, and whether one stands out."""

from __future__ import annotations

import numpy as np
import pytest

from qmri_bidsapp.fitting.clusters import STANDS_OUT, Clusters, find_clusters

SHAPE, VOXEL = (30, 36, 20), 4.0
AFFINE = np.array([[VOXEL, 0, 0, -58.0], [0, VOXEL, 0, -70.0], [0, 0, VOXEL, -38.0], [0, 0, 0, 1.0]])


@pytest.fixture
def head() -> np.ndarray:
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    return x**2 + y**2 + z**2 < 1


def scattered(head: np.ndarray, share: float, seed: int) -> np.ndarray:
    return head & (np.random.default_rng(seed).random(SHAPE) < share)


@pytest.mark.parametrize("seed", range(5))
def test_a_fault_stands_out_and_scattered_flags_do_not(head: np.ndarray, seed: int) -> None:
    flags = scattered(head, 0.05, seed)
    assert not find_clusters(flags, head, AFFINE).stand_out
    flags[20:24, 26:30, 9:11] = True
    found = find_clusters(flags, head, AFFINE)
    first, second, _ = found.largest
    assert found.stand_out
    assert 32 <= first.n_voxels < 45
    assert max(second.n_voxels, found.scattered) <= first.n_voxels / STANDS_OUT


def test_size_and_place_are_those_of_the_world(head: np.ndarray) -> None:
    """Whatever the order and direction of the voxel axes."""
    flags = np.zeros(SHAPE, bool)
    flags[20:24, 26:30, 9:11] = True
    first = find_clusters(flags, head, AFFINE).largest[0]
    assert first.n_voxels == 32
    assert first.centre == (28.0, 40.0, 0.0)
    assert first.extent == (16.0, 16.0, 8.0)
    assert first.place == "right, anterior"
    turned = AFFINE.copy()
    turned[0] = (-VOXEL, 0, 0, 58.0)
    assert find_clusters(flags, head, turned).largest[0].place == "left, anterior"
    order = AFFINE[:, [2, 0, 1, 3]]
    again = find_clusters(flags.transpose(2, 0, 1), head.transpose(2, 0, 1), order).largest[0]
    assert (again.centre, again.extent, again.place) == (first.centre, first.extent, first.place)


def test_the_text_has_all_of_it(head: np.ndarray) -> None:
    flags = np.zeros(SHAPE, bool)
    flags[20:24, 26:30, 9:11] = True
    text = find_clusters(flags, head, AFFINE).text
    assert "32 voxels around (28, 40, 0) mm, right, anterior, 16 x 16 x 8 mm; there is no other" in text
    flags[5, 18, 10] = True
    assert "the next has 1" in find_clusters(flags, head, AFFINE).text


def test_no_flag_and_nothing_but_flags(head: np.ndarray) -> None:
    assert find_clusters(np.zeros(SHAPE, bool), head, AFFINE) == Clusters()
    assert Clusters().text == ""
    everything = find_clusters(head, head, AFFINE)
    assert everything.largest[0].n_voxels == everything.scattered == head.sum()
    assert not everything.stand_out
