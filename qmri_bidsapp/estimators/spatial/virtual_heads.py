"""Virtual heads: maps of relaxation parameters from label maps, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class RelaxationStatistics(NamedTuple):
    """Mean and standard deviation over subjects: T1 and T2 in s, A relative to that of cerebrospinal fluid."""

    t1: tuple[float, float]
    t2: tuple[float, float]
    a: tuple[float, float]


#: Sabidussi et al. 2021, Table 1. It states one standard deviation of A, which is used for all tissues.
RELAXATION_STATISTICS = {
    "csf": RelaxationStatistics((3.5, 0.3), (2.0, 0.3), (1.0, 0.3)),
    "gm": RelaxationStatistics((1.4, 0.3), (0.11, 0.03), (0.85, 0.3)),
    "wm": RelaxationStatistics((0.78, 0.25), (0.08, 0.02), (0.65, 0.3)),
    "fat": RelaxationStatistics((0.42, 0.1), (0.07, 0.02), (0.9, 0.3)),
    "muscle": RelaxationStatistics((1.2, 0.3), (0.05, 0.02), (0.7, 0.3)),
    "skin": RelaxationStatistics((1.23, 0.3), (0.05, 0.02), (0.7, 0.3)),
    "skull": RelaxationStatistics((0.4, 0.1), (0.03, 0.01), (0.9, 0.3)),
    "vessel": RelaxationStatistics((1.98, 0.3), (0.275, 0.07), (1.0, 0.3)),
    "marrow": RelaxationStatistics((0.58, 0.1), (0.05, 0.02), (0.8, 0.3)),
}

#: Structures by their labels in SynthSeg's training maps (Billot et al. 2023), which are FreeSurfer's inside the brain,
#: and their tissue. Both sides form one structure; each structure draws its own values. Where a label joins two
#: tissues, one is drawn. Labels outside the brain have no published names; they were identified by position.
STRUCTURES: tuple[tuple[tuple[int, ...], tuple[str, ...]], ...] = (
    ((2, 41), ("wm",)),  # cerebral white matter
    ((3, 42), ("gm",)),  # cerebral cortex
    ((4, 5, 14, 15, 24, 43, 44, 72, 136, 137, 163, 164), ("csf",)),  # ventricles and what surrounds the brain
    ((7, 46), ("wm",)),  # cerebellum
    ((8, 47), ("gm",)),
    ((10, 49), ("gm",)),  # thalamus
    ((11, 50, 26, 58), ("gm",)),  # caudate, accumbens
    ((12, 51), ("gm",)),  # putamen
    ((13, 52), ("gm", "wm")),  # pallidum: T1 lies between the two
    ((17, 18, 53, 54), ("gm",)),  # hippocampus, amygdala
    ((16, 28, 60, 85), ("wm",)),  # brain stem, ventral diencephalon, optic chiasm: mostly fibres
    ((25, 57), ("gm",)),  # lesions of white matter: T1 and T2 near those of grey matter
    ((30, 62), ("vessel",)),
    ((512, 530), ("wm",)),  # spinal cord below the brain stem, optic nerves
    ((506,), ("csf",)),  # eyes: vitreous humour
    ((502, 514), ("vessel",)),  # sinuses and vessels at the surface of the brain and in the neck
    ((507,), ("fat", "muscle")),  # soft tissue between skin and bone
    ((508, 509), ("muscle",)),  # around the eyes, cartilage of the nose
    ((511,), ("skin",)),  # outermost layer
    ((515,), ("skull",)),  # bone, next to the fluid around the brain
    ((516,), ("marrow",)),  # enclosed by bone
)
#: Structures of the brain itself; the centres of patches are drawn from their voxels.
BRAIN_STRUCTURES = tuple(range(1, 13))

#: Largest distance from the mean, in standard deviations, of a draw, and smallest value as a share of the mean.
MAX_DEVIATION = 2.5
MIN_SHARE = 0.2
#: Largest relative standard deviation of a quantity within a structure; it is drawn for each patch.
MAX_TEXTURE = 0.06
#: Standard deviation of the half-normal 2 - B.
INVERSION_SPREAD = 0.2
#: Ranges of T1 and T2, s, and of A for structures of no particular tissue.
BROAD = {"t1": (0.1, 5.0), "t2": (0.01, 3.0), "a": (0.2, 1.6)}


def structures_of(labels: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Return the structure of every voxel: its position in `STRUCTURES` plus one, zero for air.

    Parameters
    ----------
    labels : array_like
        Label map of any shape.

    Raises
    ------
    ValueError
        If a label is unknown.
    """
    values = np.asarray(labels).astype(np.int64)
    table = np.full(max(int(values.max(initial=0)), 0) + 1, 255, dtype=np.uint8)
    table[0] = 0
    for index, (members, _) in enumerate(STRUCTURES, start=1):
        for label in members:
            if label < len(table):
                table[label] = index
    structures: npt.NDArray[np.uint8] = table[np.maximum(values, 0)]
    if values.min(initial=0) < 0 or np.any(structures == 255):
        unknown = np.unique(values[(values < 0) | (structures == 255)])
        raise ValueError(f"Label maps must hold labels of SynthSeg, got {', '.join(map(str, unknown[:5]))}.")
    return structures


def crop(structures: npt.NDArray[np.uint8], margin: int = 20) -> npt.NDArray[np.uint8]:
    """Return the box around the brain, with a margin in voxels as far as the volume extends."""
    inside = np.argwhere(np.isin(structures, BRAIN_STRUCTURES))
    low, high = np.maximum(inside.min(0) - margin, 0), inside.max(0) + margin + 1
    return structures[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]


def draw_values(
    structures: npt.NDArray[np.uint8], rng: np.random.Generator, *, broad: bool = False
) -> dict[str, npt.NDArray[np.float32]]:
    """Draw maps of A, B, T1 and T2 for one patch.

    Each structure has one value of each quantity, drawn for the patch; voxels vary around it. B is the same everywhere
    (Sabidussi et al. 2021, section 4.2).

    Parameters
    ----------
    structures : ndarray
        Of any shape, from `structures_of`.
    rng : numpy.random.Generator
    broad : bool
        Draw the values of all structures from wide ranges: log-uniform T1 and T2, uniform A.

    Returns
    -------
    dict
        ``"a"``, ``"b"``, ``"t1"`` (s) and ``"t2"`` (s), each with the shape of `structures`, float32; zero in air.
    """
    tissues = [RELAXATION_STATISTICS[names[rng.integers(len(names))]] for _, names in STRUCTURES]
    texture = rng.uniform(0, MAX_TEXTURE)
    maps = {}
    for name in ("a", "t1", "t2"):
        if broad:
            low, high = BROAD[name]
            shares = rng.uniform(size=len(tissues))
            values = low + shares * (high - low) if name == "a" else low * (high / low) ** shares
        else:
            values = _truncated_normal([getattr(tissue, name) for tissue in tissues], rng)
        table = np.concatenate([[0.0], values])
        variation = np.maximum(1 + texture * rng.standard_normal(structures.shape), MIN_SHARE)
        maps[name] = (table[structures] * variation).astype(np.float32)
    inversion = 2 - abs(INVERSION_SPREAD * rng.standard_normal())
    maps["b"] = np.where(structures > 0, max(inversion, 1.0), 0).astype(np.float32)
    return maps


def _truncated_normal(moments: Sequence[tuple[float, float]], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return one positive value per mean and standard deviation."""
    mean, std = np.array(moments).T
    deviate = rng.standard_normal(len(mean))
    while (far := abs(deviate) > MAX_DEVIATION).any():
        deviate[far] = rng.standard_normal(int(far.sum()))
    values: npt.NDArray[np.float64] = np.maximum(mean + std * deviate, MIN_SHARE * mean)
    return values


def draw_patch(heads: Sequence[npt.NDArray[np.uint8]], size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return a (size, size) patch of a slice in any of the three orientations, centred in the brain.

    Parameters
    ----------
    heads : sequence of ndarray
        Structures of whole heads, (x, y, z) each and no smaller than `size` along any axis.
    size : int
        Voxels along each side.
    rng : numpy.random.Generator
    """
    head = heads[int(rng.integers(len(heads)))]
    centre = rng.integers(head.shape)
    while head[tuple(centre)] not in BRAIN_STRUCTURES:
        centre = rng.integers(head.shape)
    axis = int(rng.integers(3))
    plane = head.take(centre[axis], axis=axis)
    corner = np.clip(np.delete(centre, axis) - size // 2, 0, np.array(plane.shape) - size)
    patch = plane[corner[0] : corner[0] + size, corner[1] : corner[1] + size]
    return np.rot90(patch[:: rng.choice((-1, 1))], int(rng.integers(4))).copy()


def label_phantom(shape: Iterable[int] = (64, 72, 64)) -> npt.NDArray[np.int16]:
    """Return labels of a head of ellipsoids, for tests: skin, skull, fluid, cortex, white matter, ventricles, thalami.

    The cortex is folded by a wave, so that its thickness relative to the head is realistic.
    """
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    angle = np.arctan2(axes[1], axes[0])
    folds = 0.04 * np.cos(12 * angle) * np.cos(9 * axes[2])
    labels = np.zeros(radius.shape, dtype=np.int16)
    for label, limit in ((511, 0.97), (515, 0.92), (24, 0.85), (3, 0.8 + folds), (2, 0.66 + folds)):
        labels[radius < limit] = label
    for side, (ventricle, thalamus) in ((-1, (4, 10)), (1, (43, 49))):
        for label, centre, extent in ((ventricle, 0.15, (0.08, 0.3, 0.15)), (thalamus, 0.2, (0.1, 0.15, 0.1))):
            middle = (side * centre, 0.0 if label == ventricle else -0.05, 0.2 if label == ventricle else -0.15)
            inside = sum(((a - m) / e) ** 2 for a, m, e in zip(axes, middle, extent, strict=True)) < 1
            labels[inside] = label
    return labels
