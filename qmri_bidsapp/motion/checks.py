"""Is this a T1w of a whole head? Fast checks of a volume before it is scored.

A volume that cannot be a head is refused; an unusual one gives warnings. The limits lie beyond all heads that they were
set on: five scanners, with and without skull, without motion and with up to 4 mm.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import map_coordinates
from scipy.stats import skew
from torch import Tensor
from torch.nn.functional import avg_pool3d

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.motion.displacement import Floats
from qmri_bidsapp.motion.network_input import LEAST_AREA

#: Voxels longer than the first give a warning, than the second are refused, mm: most training images are finer.
COARSE, TOO_COARSE = 2.5, 4.0
#: Axes tilted further than this from those of the head give a warning, degree.
OBLIQUE = 20.0
#: Least and largest width and length of a head, and least extent below the vertex, mm.
WIDTH, LENGTH, HEIGHT = (110.0, 200.0), (130.0, 260.0), 110.0
#: Intensity above which a voxel belongs to the outline of the head, in units of the 99th percentile. Lower than
#: `network_input.HEAD_THRESHOLD`, which must exclude ghosts to place the head: dim skin counts, as in the limits above,
#: and ghosts shall be noticed, since they reach the edge of the volume.
OUTLINE_THRESHOLD = 0.15
#: Depth of the middle of the brain below the vertex, and radius of the ball about it that is checked, mm.
DEPTH, BALL = 70.0, 35.0
#: Least range of the 5 to 95 % intensities in the ball over their median; less is refused, and gives a warning.
FLAT, LITTLE_CONTRAST = 0.1, 0.35
#: Largest skewness of the intensities in the ball: white matter is brightest and most common, so their tail is dark.
DARK_TAIL = -0.25
#: Largest brightness of the surroundings over that of the ball.
BRIGHT_AIR = 0.5
#: How much more symmetric than left-right another axis may be: difference of the correlations with the mirror image.
MIRROR = 0.05


def check_shape(volume: Tensor, affine: Floats) -> tuple[Tensor, list[str]]:
    """Refuse a volume whose shape or header cannot be that of a T1w.

    Parameters
    ----------
    volume : Tensor
        (i, j, k) in any unit; further axes of length one are dropped.
    affine : ndarray
        (4, 4) voxel to mm.

    Returns
    -------
    Tensor
        (i, j, k) float32, finite and not negative.
    list of str
        Warnings.

    Raises
    ------
    InputError
        If there are more than three axes, no values, or thick slices.
    """
    warnings = []
    while volume.ndim > 3 and volume.shape[-1] == 1:
        volume = volume[..., 0]
    if volume.ndim != 3:
        raise InputError(f"A T1w has three dimensions, got shape {tuple(volume.shape)}: split or exclude it.")
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise InputError("The T1w image's affine is singular: its header is damaged.")
    data = volume.float()
    finite = torch.isfinite(data)
    if not finite.all():
        part = 1 - finite.double().mean().item()
        if part > 0.9:
            raise InputError(f"{part:.0%} of the T1w's voxels are NaN: exclude it.")
        warnings.append(f"{100 * part:.2g} % of the voxels are NaN; they count as zero.")
        data = torch.where(finite, data, 0.0)
    negative = float((-data.clamp_max(0)).sum() / data.abs().sum().clamp_min(1e-12))
    if negative > 0.1:
        warnings.append("Many values are negative; they count as zero, since a magnitude image has none.")
    data = data.clamp_min(0)
    if float(data.max()) == float(data.min()):
        raise InputError("The T1w image is empty: all voxels are equal.")
    size = np.linalg.norm(affine[:3, :3], axis=0)
    thick = float(size.max())
    if thick > TOO_COARSE:
        raise InputError(
            f"Voxels of {thick:.3g} mm are too coarse for a motion score: at most {TOO_COARSE:g} mm are needed, "
            "as 3-D acquisitions have."
        )
    if thick > COARSE:
        warnings.append(f"Voxels of {thick:.3g} mm are coarser than those of most training images.")
    tilt = float(np.degrees(np.arccos(np.clip(np.abs(affine[:3, :3] / size).max(axis=0), 0, 1))).max())
    if tilt > OBLIQUE:
        warnings.append(f"Axes are {tilt:.0f} degree off those of the head: the network saw heads upright.")
    return data, warnings


def check_head(volume: Tensor, voxel_size: Floats, centre: Floats) -> list[str]:
    """Return warnings about an unusual head, and refuse a volume that is not a head.

    Parameters
    ----------
    volume : Tensor
        (x, y, z) towards right, anterior, superior.
    voxel_size : ndarray
        (3,) mm.
    centre : ndarray
        (3,) mm, of the upper head, from `network_input.find_head`.

    Returns
    -------
    list of str
        Warnings.

    Raises
    ------
    InputError
        If the surroundings are bright, the brain is not in the volume, or there is no contrast inside.
    """
    steps = [max(1, round(4 / size)) for size in voxel_size]
    pooled = avg_pool3d(volume[None], steps, ceil_mode=True)[0].double().numpy()
    coarse = voxel_size * steps
    head = pooled > OUTLINE_THRESHOLD * np.quantile(pooled, 0.99)
    area = head.sum((0, 1)) * coarse[0] * coarse[1]
    top = int(np.flatnonzero(area > min(LEAST_AREA, 0.99 * area.max())).max())
    middle = np.array([centre[0], centre[1], top * coarse[2] - DEPTH])
    ball = _around(pooled, middle, coarse, voxel_size, BALL)
    inside = ball[(_radius(ball.shape, 4.0) <= BALL) & np.isfinite(ball)]
    if len(inside) < 100:
        raise InputError("The middle of the brain is not in the volume: exclude it.")
    typical = float(np.median(inside))
    edges = np.concatenate([pooled[[0, -1]].ravel(), pooled[:, [0, -1]].ravel(), pooled[:, :, -1].ravel()])
    if typical <= 0 or np.median(edges) > BRIGHT_AIR * typical:
        raise InputError("The surroundings are not darker than the head: this is not a T1w, or it is inverted.")
    low, high = np.percentile(inside, [5, 95])
    contrast = (high - low) / typical
    if contrast < FLAT:
        raise InputError("There is no contrast inside, as in a phantom: there is no brain to score.")
    warnings = _extent(head[:, :, max(0, top + 1 - round(100 / coarse[2])) : top + 1], coarse)
    if (top + 1) * coarse[2] < HEIGHT:
        warnings.append(f"Only {(top + 1) * coarse[2]:.0f} mm below the vertex are in the volume.")
    if top == pooled.shape[2] - 1:
        warnings.append("The vertex is not in the volume, or the image is full of ghosts.")
    if contrast < LITTLE_CONTRAST:
        warnings.append("The contrast inside the head is low: is it a phantom?")
    if skew(inside) > DARK_TAIL:
        warnings.append(
            "Bright white matter does not dominate where the middle of the brain should be: the contrast is not that "
            "of a T1w, the axes differ from the header, or the head was not found."
        )
    box = _around(pooled, middle, coarse, voxel_size, 60.0)
    mirrored = [_mirrored(box, axis) for axis in range(3)]
    if mirrored[0] + MIRROR < max(mirrored[1:]):
        warnings.append(
            "Left and right differ more than front and back: part of the head, or a header with other axes."
        )
    return warnings


def _extent(head: npt.NDArray[np.bool_], coarse: Floats) -> list[str]:
    """Return warnings if width or length of the upper head is outside its limits."""
    warnings = []
    for axis, name, (least, most) in ((0, "wide", WIDTH), (1, "long", LENGTH)):
        profile = head.sum(axis=tuple(other for other in range(3) if other != axis))
        filled = np.flatnonzero(profile > 0.05 * profile.max())
        extent = float((filled[-1] - filled[0] + 1) * coarse[axis])
        if extent < least:
            warnings.append(
                f"The head is only {extent:.0f} mm {name}: part of it is missing, or it is not a human head."
            )
        elif extent > most:
            warnings.append(f"The head is {extent:.0f} mm {name}, more than any human head: is the voxel size correct?")
    return warnings


def _around(pooled: Floats, middle: Floats, coarse: Floats, voxel_size: Floats, reach: float) -> Floats:
    """Return a cube of 4 mm voxels about a point (mm from the first voxel), NaN outside the volume."""
    first = (coarse - voxel_size) / 2
    axis = np.arange(-reach, reach + 1, 4.0)
    places = [(middle[i] - first[i] + axis) / coarse[i] for i in range(3)]
    cube: Floats = map_coordinates(pooled, np.meshgrid(*places, indexing="ij"), order=1, cval=np.nan)
    return cube


def _mirrored(box: Floats, axis: int) -> float:
    """Return the correlation of a cube with its mirror image, where both are in the volume."""
    flipped = np.flip(box, axis)
    both = np.isfinite(box) & np.isfinite(flipped)
    return float(np.corrcoef(box[both], flipped[both])[0, 1]) if both.sum() > 100 else 0.0


def _radius(shape: tuple[int, ...], spacing: float) -> Floats:
    axes = [(np.arange(n) - (n - 1) / 2) * spacing for n in shape]
    radius: Floats = np.sqrt(sum(part**2 for part in np.meshgrid(*axes, indexing="ij")))
    return radius
