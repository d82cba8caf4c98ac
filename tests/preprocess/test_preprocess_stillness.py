"""A still head is not moved, whatever its noise and contrast; a head that moved by half a voxel is found."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from qmri_bidsapp.core.noise import add_rician
from qmri_bidsapp.evaluation.standards import shells
from qmri_bidsapp.preprocess.stillness import Frame, moved_between, moved_within_shell

SHAPE, VOXEL = (44, 50, 40), 4.0
PROTOCOL = shells(4, (1000.0, 30), (3000.0, 30))


@pytest.fixture(scope="module")
def head():
    """Return a mask and noise-free series of a head with fibres and fluid."""
    rng = np.random.default_rng(0)
    centre = (np.array(SHAPE) - 1) / 2
    distance = np.linalg.norm((np.indices(SHAPE).T - centre) / (0.42 * np.array(SHAPE)), axis=-1).T
    inside = distance < 1
    axis = np.stack([gaussian_filter(rng.standard_normal(SHAPE), 4) for _ in range(3)], axis=-1)
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    anisotropy = 1 / (1 + np.exp(-20 * gaussian_filter(rng.standard_normal(SHAPE), 2)))[..., None]
    b, g = np.asarray(PROTOCOL.b_value), np.asarray(PROTOCOL.direction)
    diffusivity = (1 - anisotropy) * 1.5e-3 + anisotropy * (0.2e-3 + 1.6e-3 * (axis @ g.T) ** 2)
    density = inside * (500 + 500 * (1 - anisotropy[..., 0]))
    return inside, density[..., None] * np.exp(-b * diffusivity)


def noisy(series: np.ndarray, seed: int) -> np.ndarray:
    return add_rician(series, 30.0, np.random.default_rng(seed)).astype(np.float32)


def test_within_shells(head):
    inside, series = head
    frame, fit = Frame(inside, np.diag([VOXEL, VOXEL, VOXEL, 1.0])), PROTOCOL.angular_fit()
    assert sum(moved_within_shell(frame, noisy(series, 1), fit)) <= 1
    moving = series.copy()
    for index in (7, 20, 40):
        moving[..., index] = shift(series[..., index], (0.5, 0, 0), order=1)
    found = moved_within_shell(frame, noisy(moving, 2), fit)
    assert all(found[index] for index in (7, 20, 40))
    # Those that moved blur the prediction of the others of their shell: registration finds that these did not.
    assert sum(found) <= 15


def test_between_shells(head):
    """Contrast differs between shells: free water is bright in one and dark in the other."""
    inside, series = head
    frame = Frame(inside, np.diag([VOXEL, VOXEL, VOXEL, 1.0]))
    lowest, highest = (noisy(series[..., part], 3).mean(axis=-1) for part in (slice(0, 4), slice(34, 64)))
    assert not moved_between(frame, highest, lowest)
    assert moved_between(frame, shift(highest, (0.0, 0.6, 0.0), order=1), lowest)


def test_shells_of_few_directions_are_registered(head):
    """Nothing predicts a volume of such a shell."""
    inside, series = head
    few = shells(4, (1000.0, 4))
    frame = Frame(inside, np.diag([VOXEL, VOXEL, VOXEL, 1.0]))
    assert moved_within_shell(frame, noisy(series[..., :8], 4), few.angular_fit()) == [False] * 4 + [True] * 4
