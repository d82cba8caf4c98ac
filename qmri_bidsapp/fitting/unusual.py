"""Regions of white matter that differ from their surroundings, at a stated rate of false alarms per head.

Flags ask of each voxel whether its signals are those of tissue; a lesion whose signals are those of other tissue
passes. Here the mean of a map over every sphere is compared with that over a shell around it. The spread of these
differences over the head itself is the scale, so that noise, its correlation between voxels and the ordinary variation
of tissue all count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.fitting.clusters import Cluster, describe, to_world

Volume = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Largest p-value of a region that is reported, corrected for all spheres and maps of a head. It takes means of spheres
#: as normally distributed, which those of anatomy are not quite: it is chosen so that `FALSE_ALARMS` is the rate at
#: which heads without a lesion have such a region, measured on simulated heads (docs/validation/unusual.md).
LEVEL, FALSE_ALARMS = 0.01, 0.05
#: Radii of the spheres, and thickness of the shell around each, mm.
RADII, SHELL = (6.5, 9.1), 7.0
#: Smallest part of a sphere, and of its shell, that usable voxels of the tissue must fill; fewest voxels of a sphere.
FILLED, SHELL_FILLED, MIN_VOXELS = 0.6, 0.25, 5
#: Fewest spheres from which a scale is estimated.
MIN_SPHERES = 500
#: Width, mm, over which the other tissues around a voxel are averaged, as a measure of its partial volume.
PARTIAL_VOLUME_WIDTH = 3.0
#: Values further than this many robust standard deviations from what is expected count as that far.
LARGEST_RESIDUAL = 4.0
#: The other side is looked at within this distance of the mirrored centre, mm; a difference of the same sign that is at
#: least this part of that on the first side makes a region symmetric: anatomy.
MIRROR_RADIUS, SYMMETRIC = 9.0, 0.5
#: Values are the same if they differ by less than this part of the largest.
SAME = 1e-6
#: Third quartile of the standard normal distribution: median absolute deviation.
_MAD = 0.6745
#: Median of chi-squared with one degree of freedom.
_MEDIAN_SQUARE = 0.4549


@dataclass(frozen=True)
class Region:
    """A region that differs from its surroundings.

    Attributes
    ----------
    cluster : Cluster
        Its voxels: usable ones of the tissue within `radius` of the centre of the sphere.
    radius : float
        Of the sphere, mm.
    value, difference : float
        Mean of the map over its voxels; minus that of the same tissue around it, at the same partial volume.
    z : float
        Difference in units of its spread over the head.
    p_value : float
        Of `z` in a normal distribution, times the number of spheres of all maps of the head (Bonferroni).
    """

    cluster: Cluster
    radius: float
    value: float
    difference: float
    z: float
    p_value: float


@dataclass(frozen=True)
class Scan:
    """Outcome of the search in one map.

    Attributes
    ----------
    regions : tuple of Region
        Those with a p-value below `LEVEL`, by ascending p-value.
    left_out : str
        Why the map could not be searched; empty if it was.
    """

    regions: tuple[Region, ...] = ()
    left_out: str = ""


@dataclass(frozen=True)
class _Spheres:
    """Differences of the spheres of one radius: (n, 3) voxel of the centre, (n,) differences and z."""

    radius: float
    centre: npt.NDArray[np.intp]
    difference: Volume
    z: Volume


def find_unusual(
    values: npt.ArrayLike,
    std: npt.ArrayLike,
    usable: npt.ArrayLike,
    tissues: npt.ArrayLike,
    affine: npt.ArrayLike,
    *,
    label: int,
    n_maps: int = 1,
) -> Scan:
    """Find the regions of a map that differ from the same tissue around them.

    Parameters
    ----------
    values, std : array_like
        (x, y, z) estimates and their standard deviations, in the same unit.
    usable : array_like
        (x, y, z) bool: voxels that count.
    tissues : array_like
        (x, y, z) labels of tissues, 0 outside the head.
    affine : array_like
        (4, 4) voxel to world mm (RAS+).
    label : int
        That of the tissue to be searched: white matter. The search is validated for no other.
    n_maps : int
        Number of maps of this head that are searched; the rate of false alarms is that of all together (Bonferroni).

    Raises
    ------
    InputError
        If the images have different shapes or are not 3-D.
    """
    estimate, error = np.asarray(values, dtype=float), np.asarray(std, dtype=float)
    segmented, good = np.asarray(tissues), np.asarray(usable, dtype=bool)
    matrix = np.asarray(affine, dtype=float)
    for name, image in (("standard deviations", error), ("usable voxels", good), ("tissues", segmented)):
        if estimate.ndim != 3 or image.shape != estimate.shape:
            raise InputError(
                f"A search for unusual regions needs 3-D images on one grid, got {estimate.shape} for the map and "
                f"{image.shape} for the {name}."
            )
    good = good & np.isfinite(estimate) & np.isfinite(error) & (error >= 0)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    inside = good & (segmented == label)
    if inside.any() and _deviation(estimate[inside]) <= SAME * np.abs(estimate[inside]).max():
        return Scan(left_out="half of the values in white matter are the same")
    found = _spheres(estimate, error, inside, segmented, spacing) if inside.any() else []
    if not found:
        return Scan(left_out=f"fewer than {MIN_SPHERES} spheres hold enough usable voxels of white matter")
    return Scan(_significant(found, estimate, inside, segmented, matrix, n_maps))


def _spheres(
    values: Volume, std: Volume, inside: Mask, tissues: npt.NDArray[np.integer], spacing: Volume
) -> list[_Spheres]:
    """Return the spheres of every radius that hold enough voxels; none if they are too few for a scale."""
    residual, deviation = _residuals(values, std, inside, tissues, spacing)
    relative = residual / deviation
    found = []
    for radius in RADII:
        ball, shell = _kernels(radius, spacing)
        n_ball, n_shell = _sum(inside, ball), _sum(inside, shell)
        enough = inside & (n_ball > np.maximum(FILLED * ball.sum(), MIN_VOXELS - 0.5))
        enough &= n_shell > SHELL_FILLED * shell.sum()
        # Spheres that overlap almost entirely are one test.
        steps = tuple(slice(None, None, max(1, int(radius / 2 // step))) for step in spacing)
        chosen = np.zeros_like(enough)
        chosen[steps] = enough[steps]
        if chosen.sum() < MIN_SPHERES:
            continue
        n_ball, n_shell = n_ball[chosen], n_shell[chosen]
        mean, mean_shell = (_sum(relative, kernel)[chosen] / n for kernel, n in ((ball, n_ball), (shell, n_shell)))
        own = _sum(relative**2, ball)[chosen] / n_ball - mean**2
        around = _sum(relative**2, shell)[chosen] / n_shell
        # Where tissues mix, voxels scatter, and means of few of them with them.
        scatter = np.sqrt(
            np.maximum.reduce([part / max(np.median(part), np.finfo(float).tiny) for part in (own, around)]).clip(min=1)
        )
        score = (mean - mean_shell) / scatter
        difference = _sum(residual, ball)[chosen] / n_ball - _sum(residual, shell)[chosen] / n_shell
        found.append(_Spheres(radius, np.argwhere(chosen), difference, score / _scale(score, n_ball, n_shell)))
    return found


def _residuals(
    values: Volume, std: Volume, inside: Mask, tissues: npt.NDArray[np.integer], spacing: Volume
) -> tuple[Volume, Volume]:
    """Return each voxel minus what is expected at its partial volume, and its standard deviation; 0 and 1 outside.

    The expectation is quadratic in the fractions of other tissues nearby, fitted robustly (Huber); so is the deviation
    from it, which is larger where tissues mix. It is at least that of the estimate.
    """
    from scipy.ndimage import gaussian_filter

    own = tissues[inside][0]
    columns = [np.ones(int(inside.sum()))]
    for label in np.unique(tissues[tissues != own]):
        fraction = gaussian_filter((tissues == label).astype(float), PARTIAL_VOLUME_WIDTH / spacing)[inside]
        columns += [fraction, fraction**2]
    design, target = np.stack(columns, axis=1), values[inside]
    smallest = SAME * _deviation(target)
    left, spread = target - np.median(target), np.ones(len(target))
    for _ in range(10):
        root = np.sqrt(np.minimum(1.0, 1.345 * spread / np.maximum(np.abs(left), smallest))) / spread
        left = target - design @ np.linalg.lstsq(design * root[:, None], target * root, rcond=None)[0]
        size = np.abs(left)
        typical = max(float(np.median(size)), smallest)
        expected = design @ np.linalg.lstsq(design, np.minimum(size, 3 * typical), rcond=None)[0]
        spread = np.maximum(expected, 0.5 * typical)
        spread = np.maximum(spread * float(np.median(size / spread)) / _MAD, smallest)
    spread = np.maximum(spread, std[inside])
    residual, deviation = np.zeros(values.shape), np.ones(values.shape)
    residual[inside] = np.clip(left, -LARGEST_RESIDUAL * spread, LARGEST_RESIDUAL * spread)
    deviation[inside] = spread
    return residual, deviation


def _deviation(values: Volume) -> float:
    """Return the median absolute deviation."""
    return float(np.median(np.abs(values - np.median(values))))


def _scale(difference: Volume, n_ball: Volume, n_shell: Volume) -> Volume:
    """Return the standard deviation of each difference, from all of them: robust, and larger where voxels are fewer."""
    from scipy.optimize import nnls

    design = np.stack([np.ones_like(n_ball), 1 / n_ball, 1 / n_shell], axis=1)
    square = difference**2
    variance = np.full(len(square), max(float(np.median(square)) / _MEDIAN_SQUARE, np.finfo(float).tiny))
    for _ in range(5):
        bounded = np.minimum(square / variance, 9.0)
        coefficients, _ = nnls(design / variance[:, None], bounded)
        variance = np.maximum(design @ coefficients, 0.1 * np.median(variance))
    return np.sqrt(variance * np.median(square / variance) / _MEDIAN_SQUARE)


def _significant(
    found: list[_Spheres],
    values: Volume,
    inside: Mask,
    tissues: npt.NDArray[np.integer],
    affine: Volume,
    n_maps: int,
) -> tuple[Region, ...]:
    """Return the regions with a p-value below `LEVEL`, each with its strongest sphere."""
    from scipy.stats import norm

    n_tests = n_maps * sum(len(item.z) for item in found)
    limit = float(norm.isf(LEVEL / (2 * n_tests)))
    middle = to_world(np.argwhere(tissues > 0).mean(axis=0), affine)
    candidates = sorted(
        ((item, k) for item in found for k in np.flatnonzero(np.abs(item.z) > limit)),
        key=lambda pair: -abs(pair[0].z[pair[1]]),
    )
    regions: list[Region] = []
    taken: list[tuple[Volume, float]] = []
    for item, k in candidates:
        centre = to_world(item.centre[k], affine)
        # Spheres that overlap a region, or have it in their shell, see the same difference.
        if any(np.linalg.norm(centre - other) < item.radius + radius + SHELL for other, radius in taken):
            continue
        taken.append((centre, item.radius))
        if _is_anatomy(item, k, affine, middle):
            continue
        index = np.argwhere(inside)
        index = index[np.linalg.norm(to_world(index, affine) - centre, axis=1) <= item.radius]
        voxels = tuple(index.T)
        regions.append(
            Region(
                cluster=describe(index, affine, middle),
                radius=item.radius,
                value=float(values[voxels].mean()),
                difference=float(item.difference[k]),
                z=float(item.z[k]),
                p_value=float(min(1.0, 2 * n_tests * norm.sf(abs(item.z[k])))),
            )
        )
    return tuple(regions)


def _is_anatomy(item: _Spheres, k: int, affine: Volume, middle: Volume) -> bool:
    """Return whether a sphere is on the midline, or the mirrored place on the other side differs in the same way."""
    centres = to_world(item.centre, affine)
    beside = centres[k] - middle
    if abs(beside[0]) <= item.radius:
        return True
    mirrored = middle + beside * [-1, 1, 1]
    near = np.linalg.norm(centres - mirrored, axis=1) <= MIRROR_RADIUS
    near &= (centres[:, 0] - middle[0]) * beside[0] < 0
    same = item.z[near] * np.sign(item.z[k])
    return bool(same.size and same.max() >= SYMMETRIC * abs(item.z[k]))


def _kernels(radius: float, spacing: Volume) -> tuple[Volume, Volume]:
    """Return kernels of ones within a radius, mm, and in the shell around it."""
    half = [int((radius + SHELL) // step) for step in spacing]
    offsets = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in half), indexing="ij"), axis=-1)
    distance = np.linalg.norm(offsets * spacing, axis=-1)
    return (distance <= radius).astype(float), ((distance > radius) & (distance <= radius + SHELL)).astype(float)


def _sum(image: npt.NDArray[np.generic], kernel: Volume) -> Volume:
    """Return the sum around every voxel."""
    from scipy.signal import fftconvolve

    return np.asarray(fftconvolve(image.astype(float), kernel, mode="same"))
