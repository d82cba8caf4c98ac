"""Find out whether an image has Gibbs ringing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import sici

Array = npt.NDArray[np.float64]

#: An edge is a step of at least this part of the bright intensity, whose middle voxel lies between both sides.
MIN_STEP, BETWEEN = 0.25, (0.2, 0.8)
#: Voxels beside an edge on which the alternation is measured.
REACH = 4
#: Edges along an axis that determine its alternation.
MIN_EDGES = 1000
#: Slices thicker than this times the voxels within them are no control.
MAX_THICKNESS = 1.5
#: Difference, in the alternation of a truncated step, from which on there is ringing.
THRESHOLD = 0.2


def find_ringing(image: npt.NDArray[np.floating], voxel_size: npt.ArrayLike) -> tuple[bool, str]:
    """Return whether an image rings within its slices, and the reason.

    Values beside a sharp edge alternate from voxel to voxel where k-space was truncated, and anatomy alternates a
    little as well. So the alternation within slices is compared with that across them, where there is no truncation
    (2-D acquisitions). Both are in units of that beside an ideal truncated step.

    Parameters
    ----------
    image : ndarray
        (x, y, z) magnitudes with little noise; slices along z.
    voxel_size : array_like
        (3,) mm.
    """
    size = np.asarray(voxel_size, dtype=float)
    if size[2] > MAX_THICKNESS * size[:2].max():
        return False, "slices are too thick to tell ringing from anatomy"
    amounts = [alternation(np.asarray(image, dtype=float), axis) for axis in range(3)]
    if not all(np.isfinite(amounts)):
        return False, "there are too few edges to tell whether the images ring"
    excess = float(np.mean(amounts[:2]) - amounts[2])
    if excess > THRESHOLD:
        return True, f"alternation beside edges exceeds that across slices by {excess:.2f} of a truncated step's"
    return False, (
        f"no ringing was found (alternation beside edges exceeds that across slices by {excess:.2f} of a truncated "
        f"step's; ringing: above {THRESHOLD:g})"
    )


def alternation(image: Array, axis: int) -> float:
    r"""Return the alternation beside edges along an axis, relative to that of a truncated step; NaN with few edges.

    A step sampled after truncation of k-space is :math:`1/2 + \mathrm{Si}(\pi y) / \pi` at y voxels from the edge. The
    value of the middle voxel gives the position of the edge between voxels, and so the values beside it.
    """
    along = np.moveaxis(image, axis, -1)
    middle = np.arange(REACH, along.shape[-1] - REACH)
    steps = np.arange(1, REACH + 1)
    left, right = (np.stack([along[..., middle + sign * k] for k in steps], axis=-1) for sign in (-1, 1))
    centre = along[..., middle]
    # Weights that cancel an alternation give the plateaus.
    low, high = (side[..., 1:] @ np.array([0.25, 0.5, 0.25]) for side in (left, right))
    height = high - low
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (centre - low) / height
    bright = np.percentile(image[image > 0], 90) if (image > 0).any() else np.inf
    edge = (np.abs(height) > MIN_STEP * bright) & (share > BETWEEN[0]) & (share < BETWEEN[1])
    if edge.sum() < MIN_EDGES:
        return float("nan")
    offset = np.linspace(-0.5, 0.5, 201)
    place = np.interp(share[edge], _step(offset), offset)[:, None]
    expected = np.hstack([_bend(_step(place - steps)), _bend(_step(place + steps))])
    sides = [(side[edge] - low[edge][:, None]) / height[edge][:, None] for side in (left, right)]
    observed = np.hstack([_bend(side) for side in sides])
    return float(np.median((expected * observed).sum(axis=1) / np.square(expected).sum(axis=1)))


def _step(place: Array) -> Array:
    """Return a step from 0 to 1 at places (voxels) from its edge, after truncation of k-space."""
    return np.asarray(0.5 + sici(np.pi * place)[0] / np.pi)


def _bend(values: Array) -> Array:
    """Return second differences along the last axis."""
    return np.asarray(2 * values[..., 1:-1] - values[..., :-2] - values[..., 2:])
