"""Virtual heads: structures of labels, and values as Table 1 of the RIM's paper has them."""

from __future__ import annotations

import numpy as np
import pytest

from qmri_bidsapp.estimators.spatial.virtual_heads import (
    BRAIN_STRUCTURES,
    RELAXATION_STATISTICS,
    STRUCTURES,
    crop,
    draw_patch,
    draw_values,
    label_phantom,
    structures_of,
)


def test_both_sides_are_one_structure_and_air_is_none() -> None:
    found = structures_of([[0, 2, 41], [3.0, 42, 515]])
    assert found[0, 0] == 0
    assert found[0, 1] == found[0, 2] != found[1, 0] == found[1, 1]
    assert found[1, 2] not in BRAIN_STRUCTURES


def test_unknown_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="9999"):
        structures_of([0, 2, 9999])


def test_every_label_has_one_structure_and_every_tissue_is_in_use() -> None:
    labels = [label for members, _ in STRUCTURES for label in members]
    assert len(labels) == len(set(labels))
    assert {name for _, names in STRUCTURES for name in names} == set(RELAXATION_STATISTICS)


def test_values_follow_the_table() -> None:
    structures = structures_of(np.array([[2, 3, 4, 0]]))
    rng = np.random.default_rng(0)
    draws = [draw_values(structures, rng) for _ in range(3000)]
    t1, t2, a, b = (np.stack([draw[name][0] for draw in draws]) for name in ("t1", "t2", "a", "b"))
    np.testing.assert_allclose(t1[:, :3].mean(0), [0.78, 1.4, 3.5], rtol=0.02)
    np.testing.assert_allclose(t1[:, :3].std(0), [0.25, 0.3, 0.3], rtol=0.1)
    np.testing.assert_allclose(t2[:, :3].mean(0), [0.08, 0.11, 2.0], rtol=0.02)
    np.testing.assert_allclose(a[:, :3].mean(0), [0.65, 0.85, 1.0], rtol=0.03)
    # The mean of a half-normal distribution is sqrt(2 / pi) of its parameter.
    assert np.mean(2 - b[:, 0]) == pytest.approx(0.2 * np.sqrt(2 / np.pi), rel=0.05)
    assert not t1[:, 3].any()
    assert (b[:, 0] == b[:, 2]).all()


def test_values_of_a_structure_vary_little_within_a_patch_and_much_between_patches() -> None:
    structures = structures_of(np.full((40, 40), 3))
    rng = np.random.default_rng(1)
    draws = [draw_values(structures, rng)["t1"] for _ in range(50)]
    assert max(draw.std() / draw.mean() for draw in draws) < 0.07
    assert np.std([draw.mean() for draw in draws]) > 0.2


def test_patches_hold_brain_and_repeat_with_the_seed() -> None:
    head = crop(structures_of(label_phantom()), margin=4)
    patches = [draw_patch([head], 24, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert all(patch.shape == (24, 24) and np.isin(patch, BRAIN_STRUCTURES).any() for patch in patches)
    np.testing.assert_array_equal(patches[0], patches[1])
    assert not np.array_equal(patches[0], patches[2])
