"""Augmentation: variation other than motion, drawn and recorded in one step and applied in another.

Shape, contrast and sharpness belong to a head (`Anatomy`); the receive field, noise and position to an acquisition
(`ScanSettings`). Sharpness is drawn independently of motion, so that blur does not predict the score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qmri_bidsapp.motion.displacement import Floats, rotation_matrix
from qmri_bidsapp.motion.network_input import Grid

#: Control points of deformations and fields.
CONTROL_POINTS = (6, 7, 7)
#: Range of acquired voxel sizes, mm, before one axis is made coarser.
RESOLUTION = (0.65, 2.1)
#: Range of the standard deviation of noise, in units of the 99th percentile, and share of the images with noise.
NOISE, NOISY = (0.003, 0.05), 0.85


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One head.

    Attributes
    ----------
    displacement : ndarray or None
        (3, x, y, z) of control points, mm; None leaves the shape unchanged.
    affine : ndarray
        (3, 3) linear transform, applied with the displacement.
    flip : bool
        Whether left and right are exchanged.
    gamma : float
        Exponent of the intensities, in units of their maximum.
    resolution : ndarray
        (3,) acquired voxel size, mm: its Nyquist frequency limits the band.
    taper : float
        Share of the band, at its end, that is tapered: scanners filter to different degrees.
    """

    displacement: Floats | None
    affine: Floats
    flip: bool
    gamma: float
    resolution: Floats
    taper: float


@dataclass(frozen=True, eq=False)
class ScanSettings:
    """Effects of one acquisition other than motion.

    Attributes
    ----------
    bias : ndarray
        (x, y, z) control points of the logarithm of the receive field.
    noise : float
        Standard deviation in each of real and imaginary part, in units of the 99th percentile.
    noise_seed : int
    shift : tuple of int
        Voxels by which the head is off-centre.
    keep_zeros : bool
        Whether voxels without signal are blanked after the motion, as by removal of the face; always so in stripped
        heads.
    """

    bias: Floats
    noise: float
    noise_seed: int
    shift: tuple[int, int, int]
    keep_zeros: bool


def draw_anatomy(rng: np.random.Generator, *, deform: float = 0.5) -> Anatomy:
    """Draw a head; `deform` is the share of heads whose shape changes."""
    displacement = rng.normal(0, rng.uniform(1, 4), (3, *CONTROL_POINTS)) if rng.uniform() < deform else None
    resolution = np.full(3, np.exp(rng.uniform(*np.log(RESOLUTION))))
    if rng.uniform() < 0.3:
        resolution[rng.integers(3)] *= rng.uniform(1, 1.4)
    return Anatomy(
        displacement=displacement,
        affine=rotation_matrix(rng.normal(0, 5, 3)) @ np.diag(rng.uniform(0.92, 1.08, 3)),
        flip=bool(rng.uniform() < 0.5),
        gamma=float(np.exp(rng.normal(0, 0.2))),
        resolution=resolution,
        taper=rng.uniform(0.05, 0.5),
    )


def draw_acquisition(rng: np.random.Generator, grid: Grid) -> ScanSettings:
    """Draw the effects of one acquisition."""
    strength = rng.uniform(0, 0.35)
    shift = [int(rng.integers(-min(margin), min(margin) + 1)) for margin in grid.margin]
    return ScanSettings(
        bias=rng.normal(0, strength, (4, 4, 4)),
        noise=float(np.exp(rng.uniform(np.log(NOISE[0]), np.log(NOISE[1])))) if rng.uniform() < NOISY else 0.0,
        noise_seed=int(rng.integers(2**31)),
        shift=(shift[0], shift[1], shift[2]),
        keep_zeros=bool(rng.uniform() < 0.3),
    )


def deform(volume: Tensor, anatomy: Anatomy, extent: Floats, shape: tuple[int, int, int], *, nearest: bool) -> Tensor:
    """Return a deformed volume on a grid of the same extent.

    Parameters
    ----------
    volume : Tensor
        (x, y, z) band-limited to what `shape` can represent, on a grid fine enough for linear interpolation.
    anatomy : Anatomy
        Its displacement is not None.
    extent : ndarray
        (3,) mm.
    shape : tuple of int
        Shape of the result.
    nearest : bool
        Nearest neighbours, for labels; else linear interpolation.
    """
    assert anatomy.displacement is not None
    device = volume.device
    field = torch.as_tensor(anatomy.displacement, dtype=torch.float32, device=device)[None]
    field = functional.interpolate(field, size=shape, mode="trilinear", align_corners=True)[0]
    # grid_sample: -1 and 1 are the outer faces; its last axis is (z, y, x).
    axes = [((torch.arange(n, device=device) + 0.5) / n - 0.5) * float(e) for n, e in zip(shape, extent, strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    matrix = torch.as_tensor(anatomy.affine, dtype=torch.float32, device=device)
    points = torch.einsum("ij,jxyz->ixyz", matrix, points) + field
    half = torch.as_tensor(extent / 2, dtype=torch.float32, device=device)
    coordinates = (points / half[:, None, None, None]).permute(1, 2, 3, 0).flip(-1)[None]
    mode = "nearest" if nearest else "bilinear"
    return functional.grid_sample(volume[None, None].float(), coordinates, mode=mode, align_corners=False)[0, 0]


def augment_head(volume: Tensor, anatomy: Anatomy, spacing: float) -> Tensor:
    """Apply contrast, sharpness and flip; `deform` changes the shape.

    Parameters
    ----------
    volume : Tensor
        (x, y, z) not negative.
    anatomy : Anatomy
    spacing : float
        mm.
    """
    bright = volume.max().clamp_min(1e-12)
    volume = bright * (volume / bright) ** anatomy.gamma
    k_space = torch.fft.rfftn(volume)
    for axis, size in enumerate(anatomy.resolution.tolist()):
        make = torch.fft.rfftfreq if axis == 2 else torch.fft.fftfreq
        relative = 2 * size * make(volume.shape[axis], spacing, device=volume.device).abs()
        end = ((relative - (1 - anatomy.taper)) / anatomy.taper).clamp(0, 1)
        k_space = k_space * (0.5 + 0.5 * torch.cos(np.pi * end)).reshape([-1 if i == axis else 1 for i in range(3)])
    image: Tensor = torch.fft.irfftn(k_space, s=volume.shape).clamp_min(0)
    return image.flip(0) if anatomy.flip else image


def augment_acquisition(volume: Tensor, blank: Tensor | None, acquisition: ScanSettings, grid: Grid) -> Tensor:
    """Apply receive field, noise and blanking, and crop to the grid of the network.

    Parameters
    ----------
    volume : Tensor
        (x, y, z) of `grid.work_shape`.
    blank : Tensor or None
        (x, y, z) bool, voxels to blank.
    acquisition : ScanSettings
    grid : Grid

    Returns
    -------
    Tensor
        `grid.shape`.
    """
    device = volume.device
    log_field = torch.as_tensor(acquisition.bias, dtype=torch.float32, device=device)[None, None]
    field = functional.interpolate(log_field, size=volume.shape, mode="trilinear", align_corners=True)[0, 0].exp()
    volume = volume * field
    if acquisition.noise:
        bright = torch.quantile(volume[::3, ::3, ::3].flatten(), 0.99)
        generator = torch.Generator(device).manual_seed(acquisition.noise_seed)
        noise = torch.randn((2, *volume.shape), generator=generator, device=device) * (acquisition.noise * bright)
        volume = torch.hypot(volume + noise[0], noise[1])
    if blank is not None:
        volume = volume * ~blank
    window = [
        slice(before + move, before + move + n)
        for n, (before, _), move in zip(grid.shape, grid.margin, acquisition.shift, strict=True)
    ]
    return volume[window[0], window[1], window[2]]
