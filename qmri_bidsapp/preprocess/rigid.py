"""Rigid registration with ANTs, on nibabel images."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

#: ANTs and ITK count millimetres along left, posterior, superior; nibabel along right, anterior, superior.
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: Fewer slices than this do not determine the through-plane motion.
MIN_SLICES = 8
#: A region of less than this extent (mm) along two axes does not determine motion: its registration follows noise and
#: contrast.
MIN_EXTENT = 80.0
#: A head cannot have moved further within a series; a larger result is a failed registration.
MAX_ROTATION = np.deg2rad(15.0)
MAX_TRANSLATION = 15.0
SEED = 1
#: Number of voxels that the metric samples; at least a quarter of the image, all of a small one.
N_SAMPLES = 25_000
#: How registrations proceed. "far": between series, from the centres of mass. "near": within a series whose contrast
#: changes, from the header. "quick": within a series of one contrast, at half the resolution, several times faster.
SCHEDULES: dict[str, dict[str, Any]] = {
    "far": {
        "aff_iterations": (200, 100, 50),
        "aff_shrink_factors": (4, 2, 1),
        "aff_smoothing_sigmas": (2, 1, 0),
    },
    "near": {
        "aff_iterations": (60, 30),
        "aff_shrink_factors": (2, 1),
        "aff_smoothing_sigmas": (1, 0),
        "initial_transform": "Identity",
    },
    "quick": {
        "aff_iterations": (60,),
        "aff_shrink_factors": (2,),
        "aff_smoothing_sigmas": (1,),
        "initial_transform": "Identity",
    },
}


@dataclass(frozen=True)
class Rigid:
    """A rigid motion as a (4, 4) matrix, RAS mm: maps points of the reference to points of the moving image."""

    matrix: npt.NDArray[np.float64]

    @property
    def parameters(self) -> npt.NDArray[np.float64]:
        """(6,) rotation about x, y, z, radian, and translation, mm."""
        from scipy.spatial.transform import Rotation

        angles = Rotation.from_matrix(self.matrix[:3, :3]).as_euler("xyz")
        return np.concatenate([angles, self.matrix[:3, 3]])

    def displacement(self, points: npt.NDArray[np.float64]) -> float:
        """Return the root mean square displacement of (n, 3) points, mm."""
        moved = points @ self.matrix[:3, :3].T + self.matrix[:3, 3]
        return float(np.sqrt(np.square(moved - points).sum(axis=1).mean()))

    @property
    def is_plausible(self) -> bool:
        """Whether the rotation is one that a head can make within a series."""
        from scipy.spatial.transform import Rotation

        return float(Rotation.from_matrix(self.matrix[:3, :3]).magnitude()) <= MAX_ROTATION


IDENTITY = Rigid(np.eye(4))


def too_small(image: nib.Nifti1Image) -> str | None:
    """Return why an image, (x, y, z) or (x, y, z, n), does not determine rigid motion; None if it does."""
    if image.shape[2] < MIN_SLICES:
        return f"{image.shape[2]} slices do not determine motion (at least {MIN_SLICES} needed)"
    extent = np.linalg.norm(image.affine[:3, :3], axis=0) * image.shape[:3]
    if np.sort(extent)[1] < MIN_EXTENT:
        size = " x ".join(f"{length:.0f}" for length in extent)
        return f"a region of {size} mm does not determine motion (at least {MIN_EXTENT:g} mm along two axes needed)"
    return None


def head_points(image: nib.Nifti1Image) -> npt.NDArray[np.float64]:
    """Return the places, (n, 3) mm, where an image (x, y, z) is brighter than on average: points within the head."""
    data = np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32))
    return np.asarray(np.argwhere(data >= data.mean()) @ image.affine[:3, :3].T + image.affine[:3, 3])


def load_ants() -> Any:
    """Import ANTs so that the same input gives the same output: a fixed seed and one thread.

    With several threads, sums are taken in varying order and registrations differ between runs. ITK reads the
    variable when its first filter starts; antspyx ignores the `random_seed` of `ants.registration`.
    """
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    import ants

    ants.config.set_ants_deterministic(on=False, seed_value=SEED)
    return ants


def to_ants(image: nib.Nifti1Image) -> Any:
    """Return a 3-D image as an ANTs image with the same geometry."""
    ants = load_ants()
    lps = RAS_TO_LPS @ image.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return ants.from_numpy(
        np.ascontiguousarray(image.dataobj, dtype=np.float32),
        origin=lps[:3, 3].tolist(),
        spacing=spacing.tolist(),
        direction=lps[:3, :3] / spacing,
    )


def register(fixed: nib.Nifti1Image, moving: nib.Nifti1Image, *, effort: str) -> Rigid:
    """Find the rigid motion that aligns two images, by mutual information.

    Parameters
    ----------
    fixed, moving : Nifti1Image
        3-D; contrasts may differ.
    effort : str
        Key of `SCHEDULES`.
    """
    ants = load_ants()
    with tempfile.TemporaryDirectory() as folder:
        found = ants.registration(
            to_ants(fixed),
            to_ants(moving),
            type_of_transform="Rigid",
            aff_metric="mattes",
            aff_random_sampling_rate=float(np.clip(N_SAMPLES / np.prod(fixed.shape), 0.25, 1.0)),
            outprefix=str(Path(folder) / "rigid_"),
            **SCHEDULES[effort],
        )
        matrix = _read_matrix(found["fwdtransforms"][0])
    return Rigid(RAS_TO_LPS @ matrix @ RAS_TO_LPS)


def _read_matrix(path: str) -> npt.NDArray[np.float64]:
    """Read an ITK transform file as a (4, 4) matrix, LPS mm."""
    transform = load_ants().read_transform(path)
    # The image of the origin and of the axes gives the matrix whatever ITK's parameterisation.
    origin = np.array(transform.apply_to_point((0.0, 0.0, 0.0)))
    columns = [np.array(transform.apply_to_point(tuple(axis))) - origin for axis in np.eye(3)]
    matrix = np.eye(4)
    matrix[:3, :3] = np.column_stack(columns)
    matrix[:3, 3] = origin
    return matrix


def resample(
    moving: nib.Nifti1Image, reference: nib.Nifti1Image, motion: Rigid, *, order: int
) -> npt.NDArray[np.float32]:
    """Return the moving image's values on the reference's grid, (x, y, z) float32.

    Parameters
    ----------
    moving, reference : Nifti1Image
        3-D.
    motion : Rigid
        From the reference to the moving image.
    order : int
        0 for labels, 3 (cubic splines) for images. Beyond the moving image, labels are zero; values of an image are
        those of its edge up to half a voxel away, and NaN further out.
    """
    from scipy.ndimage import affine_transform

    voxels = np.linalg.inv(moving.affine) @ motion.matrix @ reference.affine
    data = np.asarray(moving.dataobj, dtype=np.float32)
    place = {"matrix": voxels[:3, :3], "offset": voxels[:3, 3], "output_shape": reference.shape[:3]}
    if order == 0:
        return np.asarray(affine_transform(data, **place, order=0), dtype=np.float32)
    moved = affine_transform(data, **place, order=order, mode="nearest")
    inside = affine_transform(np.ones(data.shape, np.uint8), **place, order=0, mode="grid-constant")
    return np.where(inside > 0, moved, np.nan).astype(np.float32)
