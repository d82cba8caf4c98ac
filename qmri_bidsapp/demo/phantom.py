"""Two simulated heads: tissues from the MNI152 maps that nilearn brings, parameters with known truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Volume = npt.NDArray[np.float64]

#: Field of view of every image, mm, in MNI space: first corner and size.
CORNER = np.array([-96.0, -132.0, -80.0])
SIZE = np.array([192.0, 228.0, 192.0])
#: Spheres in white matter of the second subject, MNI mm, and their radius.
LESION_CENTRE, UNMODELLED_CENTRE, RADIUS = np.array([-26.0, -28.0, 28.0]), np.array([26.0, -28.0, 28.0]), 9.0
#: Abnormality 3 of Gyori et al. 2021, table 2: intra-neurite fraction, diffusivity (mm2/s).
ABNORMALITY_3 = (0.60, 1.80e-3)


@dataclass(frozen=True)
class Tissue:
    """Mean parameters of a tissue.

    Attributes
    ----------
    t1, t2 : float
        s (Sabidussi et al. 2021, table 1).
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


TISSUES = {
    "gm": Tissue(1.40, 0.110, 0.85, 0.16, 1.14e-3, 0.55),
    "wm": Tissue(0.78, 0.080, 0.65, 0.67, 2.20e-3, 0.85),
    "csf": Tissue(3.50, 2.000, 1.00, 0.02, 2.90e-3, 0.16),
    "bone": Tissue(0.40, 0.030, 0.05, 0.02, 0.50e-3, 0.06),
    "marrow": Tissue(0.58, 0.050, 0.60, 0.02, 0.50e-3, 0.50),
    "scalp": Tissue(0.42, 0.070, 0.80, 0.02, 0.80e-3, 0.95),
    "muscle": Tissue(1.20, 0.050, 0.70, 0.02, 1.40e-3, 0.38),
}
#: Spread of the parameters within a tissue: smooth over this length (mm), and from voxel to voxel.
SMOOTH_LENGTH, SMOOTH_SPREAD, VOXEL_SPREAD = 9.0, 0.05, 0.01


@dataclass(frozen=True)
class Head:
    """One simulated head on one grid.

    Attributes
    ----------
    affine : ndarray
        (4, 4).
    fractions : dict
        Tissue -> (x, y, z) volume fraction; the rest is air.
    parameters : dict
        ``t1``, ``t2`` (s), ``density``, ``fraction``, ``diffusivity`` (mm2/s), ``t1w`` -> (x, y, z): means over the
        tissues of a voxel, so that each voxel obeys the signal models exactly.
    lesion, unmodelled : ndarray
        (x, y, z) bool.
    """

    affine: npt.NDArray[np.float64]
    fractions: dict[str, Volume]
    parameters: dict[str, Volume]
    lesion: npt.NDArray[np.bool_]
    unmodelled: npt.NDArray[np.bool_]

    @property
    def brain(self) -> npt.NDArray[np.bool_]:
        """(x, y, z) bool: at least half grey matter, white matter or CSF."""
        return sum(self.fractions[name] for name in ("gm", "wm", "csf")) >= 0.5

    @property
    def dseg(self) -> npt.NDArray[np.uint8]:
        """(x, y, z) labels of the largest fraction in the brain: 1 GM, 2 WM, 3 CSF."""
        stacked = np.stack([self.fractions[name] for name in ("gm", "wm", "csf")])
        return np.where(self.brain, stacked.argmax(0) + 1, 0).astype(np.uint8)


def grid(voxel_size: float) -> tuple[npt.NDArray[np.float64], tuple[int, int, int]]:
    """Return affine and shape of a grid over the field of view."""
    affine = np.diag([voxel_size, voxel_size, voxel_size, 1.0])
    affine[:3, 3] = CORNER + voxel_size / 2
    nx, ny, nz = (int(n) for n in np.floor(SIZE / voxel_size))
    return affine, (nx, ny, nz)


def subject_transform(index: int) -> npt.NDArray[np.float64]:
    """Return (4, 4): where a point of the subject's head lies in MNI space. Subjects differ in size and pose."""
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(1000 + index)
    transform = np.eye(4)
    angles = rng.uniform(-4, 4, 3)
    transform[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(
        rng.uniform(0.97, 1.04, 3)
    )
    transform[:3, 3] = rng.uniform(-2, 2, 3)
    return transform


def make_head(index: int, voxel_size: float, rng: np.random.Generator) -> Head:
    """Simulate the head of subject `index` on a grid.

    Parameters
    ----------
    index : int
        1 or 2; the second has a lesion and a region that no model describes.
    voxel_size : float
        mm, isotropic.
    rng : Generator
        For the variation of the parameters.
    """
    affine, shape = grid(voxel_size)
    transform = subject_transform(index)
    fractions = _fractions(transform @ affine, shape, voxel_size)
    total = sum(fractions.values())
    points = (transform @ affine @ _homogeneous(shape))[:3].reshape(3, *shape)
    parameters = {}
    for name in ("t1", "t2", "density", "fraction", "diffusivity", "t1w"):
        mean = sum(fractions[key] * getattr(tissue, name) for key, tissue in TISSUES.items())
        value = mean / np.maximum(total, 1e-6)
        if name != "t1w":
            value = value * (1 + _variation(shape, voxel_size, rng))
        parameters[name] = value
    parameters["fraction"] = np.clip(parameters["fraction"], 0.01, 0.95)
    parameters["diffusivity"] = np.clip(parameters["diffusivity"], 1e-4, 2.95e-3)
    parameters["density"] = parameters["density"] * total
    parameters["t1w"] = parameters["t1w"] * total
    lesion, unmodelled = (
        (np.linalg.norm(points - centre.reshape(3, 1, 1, 1), axis=0) < RADIUS) & (index == 2)
        for centre in (LESION_CENTRE, UNMODELLED_CENTRE)
    )
    parameters["fraction"][lesion], parameters["diffusivity"][lesion] = ABNORMALITY_3
    return Head(affine, fractions, parameters, lesion, unmodelled)


def _homogeneous(shape: tuple[int, int, int]) -> npt.NDArray[np.float64]:
    indices = np.indices(shape).reshape(3, -1)
    return np.vstack([indices, np.ones(indices.shape[1])])


def _variation(shape: tuple[int, int, int], voxel_size: float, rng: np.random.Generator) -> Volume:
    """Return relative deviations: a smooth field and voxel noise."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.standard_normal(shape), SMOOTH_LENGTH / voxel_size)
    return SMOOTH_SPREAD * field / field.std() + VOXEL_SPREAD * rng.standard_normal(shape)


def _fractions(
    voxel_to_mni: npt.NDArray[np.float64], shape: tuple[int, int, int], voxel_size: float
) -> dict[str, Volume]:
    """Return the volume fraction of every tissue on a grid: brain from nilearn's maps, shells around it for the rest."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template
    from scipy.ndimage import affine_transform, distance_transform_edt, gaussian_filter

    mask = load_mni152_brain_mask(resolution=2)
    # Smoothing to the size of the target voxels makes sampled values their volume fractions.
    width = max(0.0, voxel_size / 2 - 1) / 2.0
    brain = np.asarray(mask.dataobj, dtype=float)
    gm, wm = (
        np.asarray(load(resolution=2).dataobj) * brain for load in (load_mni152_gm_template, load_mni152_wm_template)
    )
    pad = 12
    maps = [np.pad(item, pad) for item in (gm, wm, brain)]
    distance = distance_transform_edt(maps[2] == 0) * 2.0
    to_source = np.linalg.inv(mask.affine) @ voxel_to_mni

    def sample(source: Volume) -> Volume:
        smooth = gaussian_filter(source, width)
        sampled = affine_transform(smooth, to_source[:3, :3], to_source[:3, 3] + pad, output_shape=shape, order=1)
        return np.asarray(np.clip(sampled, 0, 1))

    # Scalp and skull are thinner above, and there are neck and face below: muscle instead of bone marrow.
    height = np.indices(distance.shape)[2] * 2.0 + mask.affine[2, 3] - pad * 2.0
    low = height < -28
    shells = {
        "csf": (distance > 0) & (distance <= 3),
        "bone": ((distance > 3) & (distance <= 5)) | ((distance > 8) & (distance <= 10)),
        "marrow": (distance > 5) & (distance <= 8),
        "muscle": (distance > 10) & (distance <= 18) & low,
        "scalp": (distance > 10) & (distance <= 15) & ~low,
    }
    gm_part, wm_part, brain_part = (sample(item) for item in maps)
    excess = np.maximum(1.0, (gm_part + wm_part) / np.maximum(brain_part, 1e-6))
    fractions = {"gm": gm_part / excess, "wm": wm_part / excess}
    fractions["csf"] = np.clip(brain_part - fractions["gm"] - fractions["wm"], 0, 1) + sample(
        shells["csf"].astype(float)
    )
    for name in ("bone", "marrow", "scalp", "muscle"):
        fractions[name] = sample(shells[name].astype(float))
    return fractions
