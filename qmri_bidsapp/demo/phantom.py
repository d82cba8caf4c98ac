"""Simulated heads: tissues from the MNI152 maps of nilearn, parameters with known truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Volume = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Field of view of every image, mm, in MNI space: first corner and size.
CORNER = np.array([-96.0, -132.0, -80.0])
SIZE = np.array([192.0, 228.0, 192.0])
#: Spheres in white matter of the second subject, MNI mm, and their radius.
LESION_CENTRE, UNMODELLED_CENTRE, RADIUS = (-26.0, -28.0, 28.0), (26.0, -28.0, 28.0), 9.0
#: Abnormality 3 of Gyori et al. 2021, table 2: intra-neurite fraction, diffusivity (mm2/s).
ABNORMALITY_3 = (0.60, 1.80e-3)


@dataclass(frozen=True)
class TissueProperties:
    """Mean parameters of a tissue.

    Attributes
    ----------
    t1, t2 : float
        s (Sabidussi et al. 2021, table 1, for CSF, grey and white matter).
    density : float
        Proton density relative to CSF.
    fraction, diffusivity : float
        Intra-neurite fraction; mm2/s (Gyori et al. 2021, table 2, for white and grey matter).
    t1w : float
        Typical intensity on a T1-weighted image.
    """

    t1: float
    t2: float
    density: float
    fraction: float
    diffusivity: float
    t1w: float


TISSUE_PROPERTIES = {
    "gm": TissueProperties(1.40, 0.110, 0.85, 0.16, 1.14e-3, 0.55),
    "wm": TissueProperties(0.78, 0.080, 0.65, 0.67, 2.20e-3, 0.85),
    "csf": TissueProperties(3.50, 2.000, 1.00, 0.02, 2.90e-3, 0.16),
    "bone": TissueProperties(0.40, 0.030, 0.05, 0.02, 0.50e-3, 0.06),
    "marrow": TissueProperties(0.58, 0.050, 0.60, 0.02, 0.50e-3, 0.50),
    "scalp": TissueProperties(0.42, 0.070, 0.80, 0.02, 0.80e-3, 0.95),
    "muscle": TissueProperties(1.20, 0.050, 0.70, 0.02, 1.40e-3, 0.38),
}
BRAIN_TISSUES = ("gm", "wm", "csf")
PARAMETERS = ("t1", "t2", "density", "fraction", "diffusivity", "t1w")
#: Averaged over a voxel as rates: fast exchange between its tissues.
RELAXATION_TIMES = ("t1", "t2")
#: Relative spread of the parameters: between subjects; within a tissue, smooth over a length (mm); from voxel
#: to voxel.
SUBJECT_SPREAD, SMOOTH_SPREAD, SMOOTH_LENGTH, VOXEL_SPREAD = 0.02, 0.05, 9.0, 0.01
#: The anatomy of a subject: largest rotation (degree), shift (mm), change of size; amplitude of each of the
#: waves of the warp (mm) and their shortest and longest length (mm).
ROTATION, SHIFT, SCALING = 4.0, 2.0, 0.04
N_WAVES, WAVE_AMPLITUDE, WAVE_LENGTH = 4, 1.0, (70.0, 140.0)
#: Layers around the brain, each with its outer border, mm. Below a height, neck and face have muscle outside.
LAYERS = (("csf", 3.0), ("bone", 5.0), ("marrow", 8.0), ("bone", 10.0))
SCALP_BORDER, MUSCLE_BORDER, LOW = 15.0, 18.0, -28.0


@dataclass(frozen=True)
class PhantomHead:
    """One simulated head on one grid.

    Attributes
    ----------
    affine : ndarray
        (4, 4).
    fractions : dict
        Tissue -> (x, y, z) volume fraction; the rest is air.
    parameters : dict
        ``t1``, ``t2`` (s), ``density``, ``fraction``, ``diffusivity`` (mm2/s), ``t1w`` -> (x, y, z). Each
        voxel has one value, the mean over the protons of its tissues (of rates, for relaxation times), and so
        obeys the signal models exactly.
    lesion, unmodelled : ndarray
        (x, y, z) bool, empty in the first subject.
    """

    affine: npt.NDArray[np.float64]
    fractions: dict[str, Volume]
    parameters: dict[str, Volume]
    lesion: Mask
    unmodelled: Mask

    @property
    def brain(self) -> Mask:
        """(x, y, z) bool: at least half grey matter, white matter or CSF."""
        inside: Mask = np.sum([self.fractions[name] for name in BRAIN_TISSUES], axis=0) >= 0.5
        return inside

    @property
    def dseg(self) -> npt.NDArray[np.uint8]:
        """(x, y, z) labels of the largest fraction in the brain: 1 GM, 2 WM, 3 CSF."""
        stacked = np.stack([self.fractions[name] for name in BRAIN_TISSUES])
        return np.where(self.brain, stacked.argmax(0) + 1, 0).astype(np.uint8)


def make_head(index: int, voxel_size: float, *, seed: int) -> PhantomHead:
    """Simulate the head of subject `index` on a grid.

    Parameters
    ----------
    index : int
        1 or 2; the second has a lesion and a region that no model describes.
    voxel_size : float
        mm, isotropic. Heads of one subject and seed have the same anatomy at every voxel size.
    seed : int
    """
    anatomy = np.random.default_rng((seed, index, 0))
    texture = np.random.default_rng((seed, index, 1))
    affine, shape = grid(voxel_size)
    points = to_mni(affine, shape, anatomy)
    fractions = tissue_fractions(points, voxel_size)
    parameters = _mean_parameters(fractions, anatomy)
    for name in ("t1", "t2", "density", "fraction", "diffusivity"):
        parameters[name] = parameters[name] * (1 + variation(shape, voxel_size, texture))
    parameters["fraction"] = np.clip(parameters["fraction"], 0.01, 0.95)
    parameters["diffusivity"] = np.clip(parameters["diffusivity"], 1e-4, 2.95e-3)
    lesion, unmodelled = (
        (np.linalg.norm(points - np.reshape(centre, (3, 1, 1, 1)), axis=0) < RADIUS)
        & (fractions["wm"] > 0.5)
        & (index == 2)
        for centre in (LESION_CENTRE, UNMODELLED_CENTRE)
    )
    parameters["fraction"][lesion], parameters["diffusivity"][lesion] = ABNORMALITY_3
    return PhantomHead(affine, fractions, parameters, lesion, unmodelled)


def grid(voxel_size: float) -> tuple[npt.NDArray[np.float64], tuple[int, int, int]]:
    """Return affine and shape of a grid over the field of view."""
    affine = np.diag([voxel_size, voxel_size, voxel_size, 1.0])
    affine[:3, 3] = CORNER + voxel_size / 2
    nx, ny, nz = (int(n) for n in np.floor(SIZE / voxel_size))
    return affine, (nx, ny, nz)


def to_mni(affine: npt.NDArray[np.float64], shape: Sequence[int], rng: np.random.Generator) -> Volume:
    """Return the MNI coordinates of each voxel of a subject, (3, x, y, z) mm.

    Subjects differ in pose, in size along each axis, and by a smooth warp, a sum of waves whose gradient is
    far below 1, so that it does not fold.
    """
    from scipy.spatial.transform import Rotation

    rotation = Rotation.from_euler("xyz", rng.uniform(-ROTATION, ROTATION, 3), degrees=True).as_matrix()
    scaling = np.diag(rng.uniform(1 - SCALING, 1 + SCALING, 3))
    shift = rng.uniform(-SHIFT, SHIFT, 3)
    voxels = np.indices(shape).reshape(3, -1)
    world = affine[:3, :3] @ voxels + affine[:3, 3:]
    points = rotation @ scaling @ world + shift[:, None]
    for _ in range(N_WAVES):
        direction = rng.standard_normal(3)
        direction *= 2 * np.pi / (rng.uniform(*WAVE_LENGTH) * np.linalg.norm(direction))
        amplitude = rng.uniform(-WAVE_AMPLITUDE, WAVE_AMPLITUDE, 3)
        points += amplitude[:, None] * np.sin(direction @ world + rng.uniform(0, 2 * np.pi))
    return np.asarray(points.reshape(3, *shape))


def tissue_fractions(points: Volume, voxel_size: float) -> dict[str, Volume]:
    """Return the volume fraction of every tissue: brain from nilearn's maps, layers around it for the rest.

    Parameters
    ----------
    points : ndarray
        (3, x, y, z) MNI coordinates, mm.
    voxel_size : float
        mm.
    """
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template

    image = load_mni152_brain_mask(resolution=1)
    mask = np.asarray(image.dataobj, dtype=np.float32)
    gm, wm = (
        _sample(np.asarray(load(resolution=1).dataobj) * mask, image.affine, points, voxel_size)
        for load in (load_mni152_gm_template, load_mni152_wm_template)
    )
    distance = _distance(mask, image.affine, points)

    def within(border: float) -> Volume:
        """Return the part of each voxel that is closer to the brain than a border."""
        return np.asarray(np.clip((border - distance) / voxel_size + 0.5, 0, 1))

    borders = [0.0, *(border for _, border in LAYERS)]
    low = points[2] < LOW
    fractions = {name: np.zeros_like(distance) for name in TISSUE_PROPERTIES}
    for (name, outer), inner in zip(LAYERS[1:], borders[1:], strict=False):
        fractions[name] += within(outer) - within(inner)
    outside = np.where(low, within(MUSCLE_BORDER), within(SCALP_BORDER)) - within(borders[-1])
    fractions["muscle"], fractions["scalp"] = np.where(low, outside, 0), np.where(low, 0, outside)
    # The rest of the innermost layer, outside brain tissue, is CSF.
    inside = within(borders[1])
    share = np.minimum(1.0, inside / np.maximum(gm + wm, 1e-6))
    fractions["gm"], fractions["wm"] = gm * share, wm * share
    fractions["csf"] = np.clip(inside - fractions["gm"] - fractions["wm"], 0, 1)
    return fractions


def _sample(
    source: npt.NDArray[np.float32], affine: npt.NDArray[np.float64], points: Volume, voxel_size: float
) -> Volume:
    """Return a 1 mm map at points of MNI space, smoothed to the voxel size: samples are volume fractions."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    # The standard deviation of a box is its width over the square root of 12.
    width = np.sqrt(max(0.0, voxel_size**2 - 1) / 12)
    shift = affine[:3, 3].reshape(3, 1, 1, 1)
    return np.asarray(np.clip(map_coordinates(gaussian_filter(source, width), points - shift, order=1), 0, 1), float)


def _distance(mask: npt.NDArray[np.float32], affine: npt.NDArray[np.float64], points: Volume) -> Volume:
    """Return the distance of points of MNI space from the brain, mm, 0 inside."""
    from scipy.ndimage import distance_transform_edt, map_coordinates

    step, margin = 2, 12
    distance = step * distance_transform_edt(np.pad(mask[::step, ::step, ::step], margin) == 0)
    shift = affine[:3, 3].reshape(3, 1, 1, 1)
    where = (points - shift) / step + margin
    return np.asarray(map_coordinates(distance, where, order=1, mode="nearest"))


def _mean_parameters(fractions: dict[str, Volume], rng: np.random.Generator) -> dict[str, Volume]:
    """Return the mean of each parameter over the tissues of a voxel.

    Air counts as 0 for density and T1w intensity; the other parameters are those of the protons in a voxel.
    """
    subject = {
        (key, name): getattr(tissue, name) * (1 + SUBJECT_SPREAD * rng.uniform(-1, 1))
        for key, tissue in TISSUE_PROPERTIES.items()
        for name in PARAMETERS
    }
    protons = {key: fraction * subject[key, "density"] for key, fraction in fractions.items()}
    density = np.sum(list(protons.values()), axis=0)
    parameters = {"density": density, "t1w": np.zeros_like(density)}
    for key, fraction in fractions.items():
        parameters["t1w"] += fraction * subject[key, "t1w"]
    for name in ("t1", "t2", "fraction", "diffusivity"):
        power = -1 if name in RELAXATION_TIMES else 1
        total = np.sum([protons[key] * subject[key, name] ** power for key in TISSUE_PROPERTIES], axis=0)
        # In air, which has no signal, the value does not matter.
        mean = np.divide(total, density, out=np.ones_like(total), where=density > 1e-3)
        parameters[name] = mean**power
    return parameters


def variation(shape: Sequence[int], voxel_size: float, rng: np.random.Generator) -> Volume:
    """Return relative deviations: a smooth field and voxel noise."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.standard_normal(shape), SMOOTH_LENGTH / voxel_size)
    return np.asarray(SMOOTH_SPREAD * field / field.std() + VOXEL_SPREAD * rng.standard_normal(shape))
