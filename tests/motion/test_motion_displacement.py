import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from qmri_bidsapp.motion.displacement import RADIUS, mean_deviation, rms_deviation, rotation_matrix


def test_rotation_matrices_agree_with_scipy() -> None:
    vectors = np.random.default_rng(0).normal(0, 40, (20, 3))
    vectors[0] = 0
    np.testing.assert_allclose(
        rotation_matrix(vectors), Rotation.from_rotvec(vectors, degrees=True).as_matrix(), atol=1e-12
    )


def _sphere(n_radial: int = 12, n_polar: int = 12, n_azimuth: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Quadrature over the ball: points (n, 3) mm and weights that add to one."""
    r, w_r = np.polynomial.legendre.leggauss(n_radial)
    z, w_z = np.polynomial.legendre.leggauss(n_polar)
    r, w_r = RADIUS * (r + 1) / 2, w_r / 2 * 3 * ((r + 1) / 2) ** 2
    phi = np.arange(n_azimuth) * 2 * np.pi / n_azimuth
    radius, cosine, azimuth = np.meshgrid(r, z, phi, indexing="ij")
    sine = np.sqrt(1 - cosine**2)
    points = radius[..., None] * np.stack([sine * np.cos(azimuth), sine * np.sin(azimuth), cosine], axis=-1)
    weights = w_r[:, None, None] * w_z[:, None] / 2 * np.full(n_azimuth, 1 / n_azimuth)
    return points.reshape(-1, 3), weights.ravel()


@pytest.mark.parametrize("seed", range(4))
def test_deviation_is_the_integral_over_the_sphere(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rotations, shifts = rotation_matrix(rng.normal(0, 5, (2, 3))), rng.normal(0, 3, (2, 3))
    points, weights = _sphere()
    assert weights.sum() == pytest.approx(1)
    # A point of the head lies at x under the first transform; where does it lie under the second?
    head = (points - shifts[0]) @ rotations[0]
    distance = np.linalg.norm(head @ rotations[1].T + shifts[1] - points, axis=1)
    expected = np.sqrt((weights * distance**2).sum())
    assert rms_deviation(rotations[0], shifts[0], rotations[1], shifts[1]) == pytest.approx(expected, rel=1e-12)


def test_score_is_the_mean_over_successive_poses() -> None:
    shifts = np.array([[0, 0, 0], [3, 4, 0], [3, 4, 2], [3, 4, 2.0]])
    assert mean_deviation(np.zeros((4, 3)), shifts) == pytest.approx((5 + 2 + 0) / 3)
    # Rotation by the angle a about an axis: sqrt(2/5) R * 2 sin(a/2).
    turn = np.array([[0, 0, 0], [0, 6.0, 0]])
    assert mean_deviation(turn, np.zeros((2, 3))) == pytest.approx(np.sqrt(0.4) * RADIUS * 2 * np.sin(np.radians(3)))


def test_score_does_not_depend_on_the_pose_that_the_image_shows() -> None:
    rng = np.random.default_rng(1)
    vectors, shifts = rng.normal(0, 4, (5, 3)), rng.normal(0, 2, (5, 3))
    rotations = rotation_matrix(vectors)
    relative = rotations @ rotations[2].T
    moved = shifts - relative @ shifts[2]
    deviations = rms_deviation(relative[:-1], moved[:-1], relative[1:], moved[1:])
    assert deviations.mean() == pytest.approx(mean_deviation(vectors, shifts))
    assert mean_deviation(vectors[:1], shifts[:1]) == 0
