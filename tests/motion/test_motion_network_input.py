import dataclasses

import numpy as np
import pytest
import torch

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.motion.network_input import Grid, find_head, prepare, reorient, resample
from qmri_bidsapp.motion.training.augmentation import RESOLUTION, Anatomy, augment_head, draw_acquisition, draw_anatomy
from qmri_bidsapp.motion.training.rendering import classes_of, draw_contrast, render

GRID = Grid(2.0, (88, 104, 88), ((4, 4), (4, 4), (20, 4)))


def _smooth(points: np.ndarray) -> np.ndarray:
    """A band-limited field, (..., 3) mm."""
    return 1 + np.cos(2 * np.pi * points @ np.array([0.05, -0.04, 0.03])) * np.exp(-((points / 40) ** 2).sum(-1))


def _points(shape: tuple[int, ...], voxel_size: np.ndarray, centre: np.ndarray) -> np.ndarray:
    axes = [(np.arange(n) * size) - c for n, size, c in zip(shape, voxel_size, centre, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def test_resampling_is_exact_within_the_band() -> None:
    size, shape = np.array([1.0, 1.33, 1.33]), (220, 170, 170)
    source = torch.tensor(_smooth(_points(shape, size, np.full(3, 110.0))))
    found = resample(source, size.tolist(), [113.3, 108.4, 111.0], (30, 30, 30), 2.0).numpy()
    middle = np.array([113.3, 108.4, 111.0]) - 110 - 29.0
    expected = _smooth(_points((30, 30, 30), np.full(3, 2.0), -middle))
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_resampling_keeps_nothing_beyond_the_band() -> None:
    stripes = torch.cos(torch.arange(200) * 2 * np.pi / 3.0).reshape(-1, 1, 1).expand(200, 60, 60)
    coarse = resample(stripes.double(), [1.0, 1.0, 1.0], [100.0, 30.0, 30.0], (40, 4, 4), 2.0)
    assert coarse.abs().max() < 0.01


def test_axes_are_turned_upright_whatever_their_order() -> None:
    volume = torch.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    affine = np.array([[0, 0, -2.0, 9], [1.5, 0.1, 0, 0], [0, -3.0, 0, 5], [0, 0, 0, 1]])
    turned, size = reorient(volume, affine)
    # x runs against the third axis, y along the first, z against the second.
    assert torch.equal(turned, volume.permute(2, 0, 1).flip(0, 2))
    np.testing.assert_allclose(size, [2.0, 1.5, np.hypot(3, 0.1)])
    with pytest.raises(InputError, match="affine"):
        reorient(volume, np.zeros((4, 4)) + np.diag([0, 0, 0, 1.0]))


def _ellipsoid(size: float, offset: tuple[float, float, float]) -> torch.Tensor:
    points = _points((round(240 / size),) * 3, np.full(3, size), np.full(3, 120.0) + offset)
    return torch.tensor(100.0 * ((points / [75, 95, 110]) ** 2).sum(-1).__lt__(1))


def test_head_is_found_wherever_it_lies() -> None:
    offset = np.array([9.0, -6.0, 4.0])
    head = find_head(_ellipsoid(2.0, tuple(offset)), [2.0] * 3, GRID)
    vertex = 120 + offset[2] + 110
    expected = [120 + offset[0], 120 + offset[1], vertex + 8 - 88]
    assert (np.abs(head - expected) < [3, 3, 7]).all()
    with pytest.raises(InputError, match="as large as a head"):
        find_head(torch.zeros(60, 60, 60).index_fill(0, torch.tensor([30]), 1.0), [2.0] * 3, GRID)


def test_input_does_not_depend_on_intensity_orientation_or_place() -> None:
    volume = _ellipsoid(2.0, (0, 0, 0))
    volume[60:70, 60:70, 60:70] = 140
    affine = np.diag([2.0, 2, 2, 1])
    expected = prepare(volume, affine, GRID)
    assert expected.shape == GRID.shape
    assert expected.max() <= 1.5
    torch.testing.assert_close(prepare(7 * volume, affine, GRID), expected)
    moved = affine.copy()
    moved[:3, 3] = [30, -20, 100]
    torch.testing.assert_close(prepare(volume, moved, GRID), expected)
    flipped = affine @ np.array([[-1, 0, 0, 119], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    torch.testing.assert_close(prepare(volume.permute(0, 2, 1).flip(0).contiguous(), flipped, GRID), expected)


def test_sharpness_is_drawn_and_applied_without_regard_to_motion() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_anatomy(rng) for _ in range(200)]
    assert 0.3 < np.mean([anatomy.displacement is not None for anatomy in drawn]) < 0.7
    resolution = np.array([anatomy.resolution for anatomy in drawn])
    assert resolution.min() >= RESOLUTION[0]
    assert resolution.max() <= 1.4 * RESOLUTION[1]
    assert np.median(resolution.min(axis=1)) == pytest.approx(np.sqrt(np.prod(RESOLUTION)), rel=0.1)
    volume = torch.rand(24, 24, 24)
    same = Anatomy(None, np.eye(3), flip=False, gamma=1.0, resolution=np.full(3, 1.0), taper=0.1)
    torch.testing.assert_close(augment_head(volume, same, 2.0), volume)
    coarse = dataclasses.replace(same, resolution=np.array([4.0, 1.0, 1.0]))
    power = torch.fft.rfftn(augment_head(volume, coarse, 2.0)).abs()
    # Frequencies beyond 1 / (2 * 4 mm) are gone from the first axis (but for the cut at zero).
    assert power[7:17, 1:6, 1:6].mean() < 0.05 * power[1:4, 1:6, 1:6].mean()


def test_acquisitions_are_repeatable() -> None:
    one, other = (draw_acquisition(np.random.default_rng(4), GRID) for _ in range(2))
    np.testing.assert_equal(vars(one), vars(other))


def test_rendered_heads_have_the_drawn_intensities() -> None:
    labels = np.array([0, 2, 41, 24, 502])
    index, intensity = classes_of(labels)
    assert index[1] == index[2]  # left and right
    assert intensity[index[1]] == 160
    assert np.isnan(intensity[index[4]])
    contrast = draw_contrast(np.random.default_rng(0), intensity)
    classes = torch.as_tensor(index).repeat_interleave(4000).reshape(5, 20, 200)
    image = render(classes, contrast)
    assert torch.equal(image, render(classes, contrast))
    for row in (1, 3, 4):
        assert float(image[row].mean()) == pytest.approx(contrast.mean[index[row]], abs=0.2 * contrast.std[index[row]])
