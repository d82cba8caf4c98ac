from __future__ import annotations

import numpy as np
import pytest

from qmri_bidsapp.demo import phantom


@pytest.fixture(scope="module")
def heads() -> dict[int, phantom.PhantomHead]:
    return {index: phantom.make_head(index, 6.0, seed=0) for index in (1, 2)}


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("index", [1, 2])
def test_fractions_fill_a_voxel_at_most(heads: dict[int, phantom.PhantomHead], index: int) -> None:
    fractions = heads[index].fractions
    total = np.sum(list(fractions.values()), axis=0)
    assert min(item.min() for item in fractions.values()) >= -1e-9
    assert total.max() <= 1 + 1e-9
    assert total[0].max() == 0, "there is air at the border"


@pytest.mark.parametrize("index", [1, 2])
def test_volumes_are_those_of_a_head(heads: dict[int, phantom.PhantomHead], index: int) -> None:
    litres = {name: item.sum() * 6.0**3 * 1e-6 for name, item in heads[index].fractions.items()}
    assert 1.5 < heads[index].brain.sum() * 6.0**3 * 1e-6 < 2.5
    assert 0.6 < litres["gm"] < 1.1
    assert 0.4 < litres["wm"] < 0.9
    assert 0.2 < litres["csf"] < 0.8
    assert min(litres[name] for name in ("bone", "marrow", "scalp", "muscle")) > 0.05


def test_anatomy_is_the_same_at_every_voxel_size(heads: dict[int, phantom.PhantomHead]) -> None:
    fine = phantom.make_head(1, 3.0, seed=0)
    for name in phantom.TISSUE_PROPERTIES:
        volume = heads[1].fractions[name].sum() * 6.0**3
        np.testing.assert_allclose(fine.fractions[name].sum() * 3.0**3, volume, rtol=0.05, err_msg=name)
    nx, ny, nz = (n // 2 * 2 for n in fine.brain.shape)
    blocks = fine.brain[:nx, :ny, :nz].reshape(nx // 2, 2, ny // 2, 2, nz // 2, 2).mean((1, 3, 5)) >= 0.5
    assert dice(blocks, heads[1].brain[: nx // 2, : ny // 2, : nz // 2]) > 0.98


def test_subjects_differ_in_anatomy_and_parameters(heads: dict[int, phantom.PhantomHead]) -> None:
    assert 0.8 < dice(heads[1].brain, heads[2].brain) < 0.97
    deep = {index: head.fractions["wm"] > 0.9 for index, head in heads.items()}
    means = [heads[index].parameters["t1"][deep[index]].mean() for index in (1, 2)]
    assert abs(means[0] - means[1]) > 0.002


def test_parameters_vary_within_and_between_tissues(heads: dict[int, phantom.PhantomHead]) -> None:
    parameters = heads[1].parameters
    pure = {name: heads[1].fractions[name] > 0.95 for name in ("gm", "wm")}
    for name in ("t1", "t2", "fraction", "diffusivity"):
        for tissue, region in pure.items():
            values = parameters[name][region]
            expected = getattr(phantom.TISSUE_PROPERTIES[tissue], name)
            np.testing.assert_allclose(values.mean(), expected, rtol=0.12, err_msg=f"{name} of {tissue}")
            assert 0.01 < values.std() / values.mean() < 0.2
    assert parameters["t1"][pure["gm"]].min() > parameters["t1"][pure["wm"]].max()


def test_partial_volume_averages_rates(heads: dict[int, phantom.PhantomHead]) -> None:
    head = heads[1]
    mixed = (head.fractions["csf"] > 0.3) & (head.fractions["gm"] > 0.3)
    assert mixed.any()
    tissues = phantom.TISSUE_PROPERTIES
    assert (head.parameters["t2"][mixed] < 0.7 * tissues["csf"].t2).all()
    assert (head.parameters["t2"][mixed] > tissues["wm"].t2).all()


def test_only_the_second_subject_has_regions(heads: dict[int, phantom.PhantomHead]) -> None:
    first, second = heads[1], heads[2]
    assert not first.lesion.any()
    assert not first.unmodelled.any()
    for region in (second.lesion, second.unmodelled):
        assert 0.3 < region.sum() * 6.0**3 / (4 / 3 * np.pi * phantom.RADIUS**3) < 1.5
        assert (second.fractions["wm"][region] > 0.5).all()
    assert not (second.lesion & second.unmodelled).any()
    x = second.affine[0, 0] * np.argwhere(second.lesion)[:, 0] + second.affine[0, 3]
    assert x.max() < 0, "the lesion lies on the left"
    lesion = [second.parameters[name][second.lesion] for name in ("fraction", "diffusivity")]
    for values, expected in zip(lesion, phantom.ABNORMALITY_3, strict=True):
        np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_warp_does_not_fold(seed: int) -> None:
    affine, shape = phantom.grid(8.0)
    points = phantom.to_mni(affine, shape, np.random.default_rng(seed))
    gradient = np.stack([np.gradient(points[i], 8.0) for i in range(3)])
    volume = np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)))
    assert volume.min() > 0.6
    assert volume.max() < 1.6


def test_the_seed_acts(heads: dict[int, phantom.PhantomHead]) -> None:
    same, other = phantom.make_head(1, 6.0, seed=0), phantom.make_head(1, 6.0, seed=1)
    np.testing.assert_array_equal(same.parameters["t1"], heads[1].parameters["t1"])
    assert not np.allclose(other.parameters["t1"], heads[1].parameters["t1"])
    assert dice(other.brain, heads[1].brain) < 0.99
