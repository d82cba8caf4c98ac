"""Clusters of flagged voxels: a fault or a lesion fills neighbouring voxels, false alarms are scattered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

#: Clusters that are listed.
N_LISTED = 3
#: Random scatterings of the flagged voxels, and how many times their largest cluster one must be to stand out: flags of
#: neighbours are related, by interpolation and denoising, so that false alarms cluster a little too.
N_SCATTERINGS = 10
STANDS_OUT = 3
#: Distance from the centre of the mask, mm, from which on a direction is named.
BESIDE = 8.0
#: Directions towards smaller and larger world coordinates (RAS+).
DIRECTIONS = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
#: Corners of a voxel, from its centre.
CORNERS = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


@dataclass(frozen=True)
class Cluster:
    """Flagged voxels that share faces.

    Attributes
    ----------
    n_voxels : int
    centre : tuple of float
        x, y and z of their mean position, world mm (RAS+).
    extent : tuple of float
        Largest distances along x, y and z between their edges, world mm.
    place : str
        Where this is, from the centre of the mask, in words: ``"left, anterior"``.
    """

    n_voxels: int
    centre: tuple[float, float, float]
    extent: tuple[float, float, float]
    place: str


@dataclass(frozen=True)
class Clusters:
    """The largest clusters of flagged voxels.

    Attributes
    ----------
    largest : tuple of Cluster
        By descending size, at most `N_LISTED`.
    scattered : int
        Size of the largest cluster if as many flagged voxels lie at random, the largest of `N_SCATTERINGS`.
    """

    largest: tuple[Cluster, ...] = ()
    scattered: int = 0

    @property
    def stand_out(self) -> bool:
        """Whether the largest one is more than false alarms would make."""
        return bool(self.largest) and self.largest[0].n_voxels >= STANDS_OUT * self.scattered

    @property
    def text(self) -> str:
        """Size, position and extent of the largest cluster, and what it is to be compared with; empty without any."""
        if not self.largest:
            return ""
        first, *others = self.largest
        x, y, z = first.centre
        size = " x ".join(f"{length:.0f}" for length in first.extent)
        more = f"the next has {others[0].n_voxels}" if others else "there is no other"
        return (
            f"largest flagged cluster: {first.n_voxels:,} voxels around ({x:.0f}, {y:.0f}, {z:.0f}) mm, {first.place}, "
            f"{size} mm; {more}, flags at random places make {self.scattered}"
        )


def find_clusters(flagged: Mask, inside: Mask, affine: npt.NDArray[np.floating], *, seed: int = 0) -> Clusters:
    """Find the largest clusters of flagged voxels.

    Parameters
    ----------
    flagged, inside : ndarray
        (x, y, z) bool: flagged voxels, and those that were compared, which hold them.
    affine : ndarray
        (4, 4) voxel to world mm.
    seed : int
        Of the random scatterings.
    """
    from scipy.ndimage import find_objects, label

    if not flagged.any():
        return Clusters()
    box = find_objects(inside.astype(np.uint8))[0]
    labels, _ = label(flagged[box])
    sizes = np.bincount(labels.ravel())[1:]
    order = np.argsort(-sizes, kind="stable")[:N_LISTED]
    offset = np.array([part.start for part in box])
    middle = to_world(np.argwhere(inside).mean(axis=0), affine)
    found = [describe(np.argwhere(labels == k + 1) + offset, affine, middle) for k in order]
    return Clusters(tuple(found), _largest_scattered(int(flagged.sum()), inside[box], seed))


def describe(index: npt.NDArray[np.intp], affine: npt.NDArray[np.floating], middle: npt.NDArray[np.float64]) -> Cluster:
    """Return the cluster of these voxels, (n, 3); `middle` is the world position from which its place is named."""
    centre = to_world(index.mean(axis=0), affine)
    corners = np.concatenate([to_world(index + shift, affine) for shift in CORNERS])
    away = centre - middle
    words = [names[int(step > 0)] for names, step in zip(DIRECTIONS, away, strict=True) if abs(step) >= BESIDE]
    x, y, z = (round(float(value), 1) for value in centre)
    wide, deep, high = (round(float(value), 1) for value in np.ptp(corners, axis=0))
    return Cluster(len(index), (x, y, z), (wide, deep, high), ", ".join(words) or "central")


def to_world(index: npt.NDArray[np.number], affine: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return world positions, mm, of voxel indices (..., 3)."""
    return np.asarray(index @ affine[:3, :3].T + affine[:3, 3])


def _largest_scattered(n_flagged: int, inside: Mask, seed: int) -> int:
    """Return the size of the largest cluster of so many voxels at random places of the mask."""
    from scipy.ndimage import label

    rng, places, largest = np.random.default_rng(seed), np.flatnonzero(inside), 0
    for _ in range(N_SCATTERINGS):
        scattered = np.zeros(inside.size, dtype=bool)
        scattered[rng.choice(places, n_flagged, replace=False)] = True
        labels, _ = label(scattered.reshape(inside.shape))
        largest = max(largest, int(np.bincount(labels.ravel())[1:].max()))
    return largest
