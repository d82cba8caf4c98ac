"""Simulated motion against TorchIO's (Perez-Garcia et al. 2021), from the same poses at the same times.

What TorchIO does in another way, and how each is met here:

- Its slow phase-encoding axis is the last one of the volume: axes are permuted, and the affine with them.
- It rotates about the origin of the world, whatever the volume: the affine puts the centre of the head there.
- Its parameters are the transform of points of the image to points of the head at rest, the inverse of a pose, in
  LPS coordinates, with Euler angles z x y.
- The centre of k-space is always the image as given, and the pose that it replaces comes first: poses are given
  relative to that at the centre.
- A movement within the time of one plane counts from that plane, here from the next.
- It interpolates, linearly by default: that is the difference of up to 4 % of the effect of the motion. Its cubic
  B-splines leave a hundredth of it.
- It keeps the real part of the image where a scanner gives the magnitude, here as well. Only this is not a matter of
  parameters: the class below leaves all to TorchIO but this last step.
"""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from qmri_bidsapp.motion.displacement import rotation_matrix
from qmri_bidsapp.motion.training.simulation import LINEAR, Motion, apply_motion

torchio = pytest.importorskip("torchio", reason="TorchIO comes with the extra `training`")

#: Shape, voxel size (mm), and voxel that the head turns about.
GRIDS = {
    "isotropic": ((60, 60, 60), (1.2, 1.2, 1.2), (29.5, 29.5, 29.5)),
    "anisotropic": ((44, 61, 56), (1.7, 1.2, 1.3), (24.0, 28.5, 25.0)),
}
ROTATIONS = np.array([[6.0, -9.0, 7.0], [-7.0, 5.0, -8.0], [8.0, 9.0, -6.0], [-9.0, -7.0, 10.0]])
TRANSLATIONS = np.array([[2.3, -3.1, 1.7], [-2.6, 1.3, 3.4], [3.7, 2.2, -2.9], [-1.8, -3.3, 2.4]])
#: Near the centre of k-space, where a smooth head has its power; not the same on both sides.
ONSETS = np.array([0.431, 0.473, 0.568])
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


class _MagnitudeMotion(torchio.transforms.Motion):
    @staticmethod
    def inv_fourier_transform(tensor: torch.Tensor) -> torch.Tensor:
        return torchio.transforms.Motion.inv_fourier_transform(tensor).abs()


def _blobs(grid: str) -> torch.Tensor:
    """Gaussians near the middle: band-limited for all purposes, and nothing at the edges."""
    shape, voxel_size, _ = GRIDS[grid]
    axes = [(np.arange(n) - (n - 1) / 2) * size for n, size in zip(shape, voxel_size, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    rng = np.random.default_rng(1)
    centres, widths = rng.uniform(-12, 12, (6, 3)), rng.uniform(4.5, 5.5, (6, 3))
    return torch.tensor(
        sum(np.exp(-0.5 * (((points - c) / w) ** 2).sum(-1)) for c, w in zip(centres, widths, strict=True))
    )


def _motion(grid: str, axis: int, kind: str, size: float = 1.0) -> Motion:
    return Motion(
        rotations=ROTATIONS * size * (kind != "translations"),
        translations=TRANSLATIONS * size * (kind != "rotations"),
        onsets=ONSETS,
        axis=axis,
        order=LINEAR,
        reverse=False,
        centre=0.5,
        resolution=GRIDS[grid][1][axis],
    )


def _parameters(motion: Motion, n_planes: int) -> dict[str, np.ndarray]:
    """Return the same motion as TorchIO's degrees, translation and times."""
    centre = int(np.searchsorted(motion.onsets, 0.5, side="right"))
    # A point of the head is at R x + t; seen from the pose at the centre of k-space, at A x + b.
    rotations = rotation_matrix(motion.rotations)
    a = rotations @ rotations[centre].T
    b = motion.translations - a @ motion.translations[centre]
    matrices = RAS_TO_LPS @ np.swapaxes(a, -1, -2) @ RAS_TO_LPS
    shifts = -(matrices @ RAS_TO_LPS @ b[..., None])[..., 0]
    # The first pose takes the place of that at the centre.
    order = [0 if i == centre else i for i in range(1, len(a))]
    # SimpleITK: R = R_z R_x R_y.
    degrees = Rotation.from_matrix(matrices[order]).as_euler("ZXY", degrees=True)[:, [1, 2, 0]]
    # Planes i from the negative end: TorchIO begins with the integer part of n times; here time is i / n where n is
    # even and (i + 1/2) / n where n is odd, and the first plane at or after the onset begins.
    times = motion.onsets + (1 if n_planes % 2 == 0 else 0.5) / n_planes
    return {"degrees": degrees, "translation": shifts[order], "times": times}


def _torchio(volume: torch.Tensor, motion: Motion, grid: str, interpolation: str, *, real: bool = False) -> np.ndarray:
    _, voxel_size, centre = GRIDS[grid]
    axes = [*(axis for axis in range(3) if axis != motion.axis), motion.axis]
    affine = np.eye(4)
    affine[:3, :3] = np.diag(voxel_size)[:, axes]
    affine[:3, 3] = -np.multiply(voxel_size, centre)
    transform = (torchio.transforms.Motion if real else _MagnitudeMotion)(
        **_parameters(motion, volume.shape[motion.axis]), image_interpolation=interpolation
    )
    image = torchio.ScalarImage(tensor=volume.permute(axes)[None].float(), affine=affine)
    return transform(image).data[0].permute(*np.argsort(axes).tolist()).double().numpy()


def _ours(volume: torch.Tensor, motion: Motion, grid: str) -> np.ndarray:
    _, voxel_size, centre = GRIDS[grid]
    return apply_motion(volume, motion, voxel_size, centre=centre).numpy()


def _difference(ours: np.ndarray, theirs: np.ndarray, volume: torch.Tensor) -> float:
    """Return the difference as a fraction of the effect of the motion."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs - volume.numpy()))


@pytest.mark.parametrize("kind", ["translations", "rotations", "both"])
@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("grid", list(GRIDS))
def test_images_agree(grid: str, axis: int, kind: str) -> None:
    volume, motion = _blobs(grid), _motion(grid, axis, kind)
    ours = _ours(volume, motion, grid)
    linear = _torchio(volume, motion, grid, "linear")
    assert np.linalg.norm(linear - volume.numpy()) > 0.08 * np.linalg.norm(volume)
    assert _difference(ours, linear, volume) < 0.05
    assert _difference(ours, _torchio(volume, motion, grid, "bspline"), volume) < 0.001
    # What a mistake would look like.
    inverted = dataclasses.replace(motion, rotations=-motion.rotations, translations=-motion.translations)
    assert _difference(_ours(volume, inverted, grid), linear, volume) > 0.5
    backwards = dataclasses.replace(motion, rotations=motion.rotations[::-1], translations=motion.translations[::-1])
    assert _difference(_ours(volume, backwards, grid), linear, volume) > 0.5
    late = dataclasses.replace(motion, onsets=motion.onsets + 1 / volume.shape[axis])
    assert _difference(_ours(volume, late, grid), linear, volume) > 0.2


@pytest.mark.parametrize("axis", range(3))
def test_real_part_agrees_where_the_signal_is_strong(axis: int) -> None:
    """TorchIO untouched: beside a strong signal the imaginary part is of second order in the size of the movements."""
    volume = _blobs("anisotropic")
    strong = (volume > 0.5 * volume.max()).numpy()
    differences = []
    for size in (0.5, 0.25):
        motion = _motion("anisotropic", axis, "both", size)
        theirs = _torchio(volume, motion, "anisotropic", "bspline", real=True)
        ours = _ours(volume, motion, "anisotropic")
        differences.append(_difference(ours[strong], theirs[strong], volume[strong]))
    assert differences[0] < 0.1
    assert differences[1] < 0.6 * differences[0]
