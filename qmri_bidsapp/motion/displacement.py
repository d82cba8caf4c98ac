"""Displacement of the head: root-mean-square deviation between rigid transforms (Jenkinson 1999)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Radius of the sphere that models a head, mm (Jenkinson 1999).
RADIUS = 80.0

Floats = npt.NDArray[np.float64]


def rotation_matrix(rotation_vector: npt.ArrayLike) -> Floats:
    """Return the matrices of rotations (Rodrigues' formula).

    Parameters
    ----------
    rotation_vector : array_like
        (..., 3) axis times angle, degree.

    Returns
    -------
    ndarray
        (..., 3, 3).
    """
    vector = np.radians(np.asarray(rotation_vector, dtype=np.float64))
    angle = np.linalg.norm(vector, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(vector, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*vector.shape, 3)
    # sinc is smooth at no rotation: sin(a) / a and (1 - cos(a)) / a^2 = sinc(a / 2)^2 / 2.
    first, second = np.sinc(angle / np.pi), 0.5 * np.sinc(0.5 * angle / np.pi) ** 2
    matrix: Floats = np.eye(3) + first * cross + second * (cross @ cross)
    return matrix


def rms_deviation(
    rotation_a: Floats, translation_a: Floats, rotation_b: Floats, translation_b: Floats, *, radius: float = RADIUS
) -> Floats:
    r"""Return the root-mean-square distance between the images of a point under two rigid transforms.

    The mean is over a sphere about the origin of the coordinates (Jenkinson 1999, equation 10):
    :math:`\sqrt{R^2/5 \, \mathrm{tr}(A^T A) + t^T t}` with :math:`T_b T_a^{-1} - I = (A, t)`.

    Parameters
    ----------
    rotation_a, rotation_b : ndarray
        (..., 3, 3).
    translation_a, translation_b : ndarray
        (..., 3) mm.
    radius : float
        mm.

    Returns
    -------
    ndarray
        (...) mm.
    """
    relative = rotation_b @ np.swapaxes(rotation_a, -1, -2)
    shift = translation_b - (relative @ translation_a[..., None])[..., 0]
    deviation = relative - np.eye(3)
    rms: Floats = np.sqrt(radius**2 / 5 * (deviation**2).sum((-2, -1)) + (shift**2).sum(-1))
    return rms


def mean_deviation(rotation_vectors: npt.ArrayLike, translations: npt.ArrayLike) -> float:
    """Return the mean deviation between successive poses: the true motion score.

    Parameters
    ----------
    rotation_vectors : array_like
        (pose, 3) degree.
    translations : array_like
        (pose, 3) mm.

    Returns
    -------
    float
        mm; 0 for a single pose.
    """
    rotations, shifts = rotation_matrix(rotation_vectors), np.asarray(translations, dtype=np.float64)
    if len(rotations) < 2:
        return 0.0
    return float(rms_deviation(rotations[:-1], shifts[:-1], rotations[1:], shifts[1:]).mean())
