import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from qmri_bidsapp.motion.displacement import rotation_matrix
from qmri_bidsapp.motion.training.simulation import CENTRIC, LINEAR, MOVEMENTS, Motion, apply_motion, draw_motion, still

VOXEL_SIZE = (2.0, 1.5, 1.8)
SHAPE = (40, 48, 44)


def _blob(points: np.ndarray) -> np.ndarray:
    """A Gaussian, (..., 3) mm: band-limited for all purposes, and known wherever it is moved."""
    return np.exp(-0.5 * (((points - [3.0, -4.0, 5.0]) / [6.0, 5.0, 6.0]) ** 2).sum(-1))


def _points() -> np.ndarray:
    axes = [(np.arange(n) - (n - 1) / 2) * size for n, size in zip(SHAPE, VOXEL_SIZE, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def _motion(axis: int, **changes: object) -> Motion:
    poses = np.random.default_rng(3).normal(0, 3, (2, 4, 3))
    motion = Motion(poses[0], poses[1] / 2, np.array([0.2, 0.4, 0.75]), axis, LINEAR, False, 0.5, VOXEL_SIZE[axis])
    return dataclasses.replace(motion, **changes)


def _direct(motion: Motion) -> np.ndarray:
    """Each plane of k-space from the analytic head in its pose, seen from the pose at the centre of k-space."""
    points = _points()
    pose = motion.pose_at(np.fft.fftfreq(SHAPE[motion.axis], VOXEL_SIZE[motion.axis]))
    rotations = rotation_matrix(motion.rotations)
    combined = np.zeros(SHAPE, dtype=complex)
    for index, (rotation, shift) in enumerate(zip(rotations, motion.translations, strict=True)):
        relative = rotation @ rotations[pose[0]].T
        offset = shift - relative @ motion.translations[pose[0]]
        k_space = np.fft.fftn(_blob((points - offset) @ relative))
        mine = (pose == index).reshape([-1 if i == motion.axis else 1 for i in range(3)])
        combined += k_space * mine
    return np.abs(np.fft.ifftn(combined))


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("order", [LINEAR, CENTRIC])
def test_image_is_the_analytic_head_combined_in_k_space(axis: int, order: str) -> None:
    # Movements near the centre of k-space, where a smooth head has its power.
    onsets = np.array([0.4, 0.48, 0.6] if order == LINEAR else [0.05, 0.1, 0.2])
    motion = _motion(axis, order=order, onsets=onsets)
    expected = _direct(motion)
    found = apply_motion(torch.tensor(_blob(_points())), motion, VOXEL_SIZE).numpy()
    assert np.abs(expected - _blob(_points())).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(
    "vector", [(0, 0, 6.0), (6.0, 0, 0), (0, 6.0, 0), (0, 0, 0)], ids=["about-z", "about-x", "about-y", "shift"]
)
@pytest.mark.parametrize("axis", range(3))
def test_rotation_about_one_axis(axis: int, vector: tuple[float, float, float]) -> None:
    motion = _motion(axis, rotations=np.array([[0, 0, 0], vector, [0, 0, 0], vector], dtype=float))
    found = apply_motion(torch.tensor(_blob(_points())), motion, VOXEL_SIZE).numpy()
    np.testing.assert_allclose(found, _direct(motion), atol=2e-6)


def test_without_motion_the_image_is_unchanged() -> None:
    volume = torch.rand(SHAPE)
    assert torch.equal(apply_motion(volume, still(1.0), VOXEL_SIZE), volume)
    # The same pose throughout is no motion, wherever the head lies.
    pose = np.full((3, 3), 2.0)
    motion = _motion(1, rotations=pose, translations=pose, onsets=np.array([0.3, 0.6]))
    assert motion.score == pytest.approx(0, abs=1e-9)
    assert torch.equal(apply_motion(volume, motion, VOXEL_SIZE), volume)


def test_translations_keep_the_power_of_k_space() -> None:
    volume = torch.tensor(_blob(_points())) * (1 + 0.2 * torch.rand(SHAPE, dtype=torch.float64))
    motion = _motion(2, rotations=np.zeros((4, 3)))
    before = torch.fft.fftn(volume).abs().pow(2).sum()
    moved = apply_motion(volume, motion, VOXEL_SIZE)
    assert torch.fft.fftn(moved).abs().pow(2).sum() == pytest.approx(float(before), rel=1e-6)


def test_turning_about_another_centre() -> None:
    volume = torch.tensor(_blob(_points()))
    motion = _motion(0)
    default = apply_motion(volume, motion, VOXEL_SIZE)
    middle = [(n - 1) / 2 for n in SHAPE]
    torch.testing.assert_close(apply_motion(volume, motion, VOXEL_SIZE, centre=middle), default)
    assert (apply_motion(volume, motion, VOXEL_SIZE, centre=[0, 0, 0]) - default).abs().max() > 0.01


def test_order_of_acquisition() -> None:
    frequency = np.array([-0.24, -0.1, 0.0, 0.1, 0.24])
    linear = _motion(0, resolution=2.0, onsets=np.array([0.1, 0.45, 0.9]))
    assert linear.pose_at(frequency).tolist() == [0, 1, 2, 2, 3]
    assert dataclasses.replace(linear, reverse=True).pose_at(frequency).tolist() == [3, 2, 2, 1, 0]
    assert dataclasses.replace(linear, order=CENTRIC).pose_at(frequency).tolist() == [3, 1, 0, 1, 3]
    # With the centre of k-space late, all movements come before it.
    assert dataclasses.replace(linear, centre=0.95).pose_at(frequency).tolist() == [0, 2, 3, 3, 3]
    # A finer acquisition: the ends of this k-space are acquired nearer to the middle of the time.
    assert dataclasses.replace(linear, resolution=1.0).pose_at(frequency).tolist() == [1, 1, 2, 2, 2]


def test_scores_are_uniform_and_movements_two_to_eight() -> None:
    rng = np.random.default_rng(0)
    motions = [draw_motion(rng, (1.0, 1.2, 1.3)) for _ in range(600)]
    scores = np.array([motion.score for motion in motions])
    assert kstest(scores, "uniform", args=(0, 4)).pvalue > 0.01
    n_movements = [len(motion.onsets) for motion in motions]
    assert (min(n_movements), max(n_movements)) == MOVEMENTS
    # The score depends neither on the number of movements nor on the axis.
    assert abs(np.corrcoef(scores, n_movements)[0, 1]) < 0.12
    assert {(motion.axis, motion.resolution) for motion in motions} == {(0, 1.0), (1, 1.2), (2, 1.3)}


def test_draws_are_repeatable_recorded_and_steerable() -> None:
    first, again, other = (draw_motion(np.random.default_rng(seed), (1, 1, 1)).to_dict() for seed in (5, 5, 6))
    assert first == again
    assert first != other
    assert json.loads(json.dumps(first))["score"] == first["score"]
    fixed = draw_motion(np.random.default_rng(5), (1, 1, 1), score=1.5, axis=2)
    assert (fixed.score, fixed.axis) == (pytest.approx(1.5, abs=1e-6), 2)
    assert draw_motion(np.random.default_rng(5), (1, 1, 1), score=0.0).score == 0


def test_displacement_between_opposite_frequencies_leaves_fringes_in_the_power() -> None:
    """The magnitude keeps the mean of what opposite frequencies say: power times cos2(k d / 2) of their displacement d.

    To first order in what motion changes: of a smooth bright ball with a faint texture.
    """
    spacing, shift, n = 1.2, 1.5, 64
    axis = torch.linspace(-1, 1, n)
    radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    texture = torch.randn(n, n, n, generator=torch.Generator().manual_seed(0))
    image = (1 - radius).clamp_min(0) * (1 + 0.1 * texture)
    # Of the frequencies along x, those above half of the highest are acquired displaced along y.
    poses = np.array([[0.0, 0, 0], [0, shift, 0]])
    motion = Motion(np.zeros((2, 3)), poses, np.array([0.75]), 0, LINEAR, False, 0.5, spacing)
    moved = apply_motion(image, motion, [spacing] * 3)
    power, disturbed = (torch.fft.fftn(item).abs().square().sum(2) for item in (image, moved))
    ratio = disturbed / power
    expected = np.cos(np.pi * np.fft.fftfreq(n, spacing) * shift) ** 2
    np.testing.assert_allclose(ratio[n // 4 + 2 : n // 2 - 1].mean(0), expected, atol=0.1)
    np.testing.assert_allclose(ratio[2 : n // 4 - 1].mean(0), 1, atol=0.1)
