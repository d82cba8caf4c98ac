"""Denoising of diffusion series by the Marchenko-Pastur distribution of the eigenvalues of noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from qmri_bidsapp.core.rice import variance_of_mean

#: Voxels from the centre of a patch to its border, and between neighbouring patches.
RADIUS, STRIDE = 2, 2
#: Patches that are decomposed at once.
CHUNK = 256
#: Single precision, in 0.6 of the time, is enough for eigenvalues of at most this times their median.
SINGLE_RANGE = 2e4
#: Components beyond those of the signal that `Denoised.fuller` keeps.
N_MORE = 2
#: Steps of the fixed point that turns the noise of magnitudes into that of their real and imaginary parts.
N_STEPS = 8


class Denoised(NamedTuple):
    """Result of `mppca`.

    Attributes
    ----------
    series : ndarray
        (x, y, z, n); zero outside.
    noise_std : ndarray
        (x, y, z) standard deviation of the noise of a magnitude, an average over the patches of a voxel; zero outside.
    fuller : ndarray
        (x, y, z, n) as `series`, but with the `N_MORE` strongest components that are taken for noise: what is lost of
        the signal is among them.
    """

    series: npt.NDArray[np.float32]
    noise_std: npt.NDArray[np.float32]
    fuller: npt.NDArray[np.float32]


def mppca(series: npt.NDArray[np.float32], inside: npt.NDArray[np.bool_], *, device: str = "cpu") -> Denoised:
    """Denoise magnitudes by MP-PCA (Veraart et al. 2016, NeuroImage 142:394) in overlapping patches.

    A voxel is the mean of its patches, with weights that fall with the number of components that a patch keeps (Manjon
    et al. 2013, PLoS ONE 8:e73021, eq. 3).

    Parameters
    ----------
    series : ndarray
        (x, y, z, n), finite; at least a patch (5 voxels) wide.
    inside : ndarray
        (x, y, z) bool, where denoised values are needed.
    device : str
        Torch device.
    """
    shape, n = series.shape[:3], series.shape[3]
    flat = torch.from_numpy(np.ascontiguousarray(series, dtype=np.float32).reshape(-1, n)).to(device)
    total, fuller, weights, variance = (torch.zeros((len(flat), columns), device=device) for columns in (n, n, 1, 1))
    for voxels in _patches(inside):
        index = torch.from_numpy(voxels).to(device)
        patch = flat[index]
        mean = patch.mean(dim=1, keepdim=True)
        kept, more, noise_variance, n_kept = _denoise_patches(patch - mean)
        weight = (1 / (1 + n_kept))[:, None].expand(index.shape).reshape(-1, 1)
        for sums, values in ((total, kept + mean), (fuller, kept + more + mean)):
            sums.index_add_(0, index.ravel(), values.reshape(-1, n) * weight)
        weights.index_add_(0, index.ravel(), weight)
        variance.index_add_(0, index.ravel(), noise_variance[:, None].expand(index.shape).reshape(-1, 1) * weight)
    weights = torch.where(torch.from_numpy(inside.reshape(-1, 1)).to(device), weights, math.inf)
    means = (total.div_(weights).clamp_(min=0), (variance / weights).sqrt(), fuller.div_(weights).clamp_(min=0))
    return Denoised(*(values.reshape(*shape, -1).squeeze(-1).cpu().numpy() for values in means))


def _patches(inside: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray[np.intp]]:
    """Yield (patch, voxel) indices, into the raveled volume, of the patches that hold a voxel inside."""
    width = 2 * RADIUS + 1
    needed = ndimage.maximum_filter(inside, size=width, mode="constant", cval=0)
    starts = [sorted({*range(0, size - width + 1, STRIDE), size - width}) for size in inside.shape]
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 3)
    corners = corners[needed[tuple((corners + RADIUS).T)]]
    offsets = np.indices((width,) * 3).reshape(3, -1).T
    for first in range(0, len(corners), CHUNK):
        voxels = corners[first : first + CHUNK, None] + offsets
        yield np.ravel_multi_index(tuple(np.moveaxis(voxels, -1, 0)), inside.shape)


def _denoise_patches(patch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Remove the components of noise from patches.

    Parameters
    ----------
    patch : Tensor
        (patch, voxel, volume), with the mean over voxels removed.

    Returns
    -------
    kept, more : Tensor
        As `patch`: the components of the signal, and the `N_MORE` strongest of the others.
    noise_variance, n_kept : Tensor
        (patch,) variance of the noise of one value, float32; number of components that were kept.
    """
    n_voxels, n_volumes = patch.shape[1:]
    by_voxel = n_voxels <= n_volumes
    gram = patch @ patch.mT if by_voxel else patch.mT @ patch
    eigenvalues, vectors = _decompose(gram)
    # Removing the mean takes one degree of freedom.
    n_rows = n_voxels - 1
    n_small, n_large = min(n_rows, n_volumes), max(n_rows, n_volumes)
    eigenvalues = eigenvalues[:, -n_small:].clamp(min=0)
    number = torch.arange(1, n_small + 1, device=patch.device)
    # The lowest c eigenvalues are of noise where they spread no further than Marchenko and Pastur's law allows.
    lowest_mean = eigenvalues.cumsum(dim=1) / number
    spread = 4 * (number / n_large).sqrt() * lowest_mean
    is_noise = eigenvalues - eigenvalues[:, :1] <= spread
    n_noise = torch.where(is_noise, number, 1).amax(dim=1)
    noise_variance = _noise_variance(eigenvalues, n_small - n_noise, n_rows, n_volumes)
    # Components of the signal are those beyond the largest eigenvalue of noise.
    edge = noise_variance * (math.sqrt(n_rows) + math.sqrt(n_volumes)) ** 2
    signal = eigenvalues > edge[:, None]
    n_kept = signal.sum(dim=1)
    next_ones = ~signal & (number > (n_small - n_kept - N_MORE)[:, None])
    kept, more = (_project(patch, vectors[:, :, -n_small:], chosen, by_voxel) for chosen in (signal, next_ones))
    return kept, more, noise_variance.float(), n_kept


def _project(patch: torch.Tensor, vectors: torch.Tensor, chosen: torch.Tensor, by_voxel: bool) -> torch.Tensor:
    """Return the components of patches along the chosen ones of their eigenvectors, (patch, row, component)."""
    used = chosen.any(dim=0)
    main = vectors[:, :, used] * chosen[:, None, used]
    return main @ (main.mT @ patch) if by_voxel else (patch @ main) @ main.mT


def _decompose(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ascending eigenvalues (patch, n), float64, and eigenvectors (patch, n, n) of symmetric matrices."""
    values, vectors = torch.linalg.eigh(gram)
    eigenvalues = values.double()
    wide = values[:, -1] > SINGLE_RANGE * values[:, values.shape[1] // 2]
    if wide.any():
        eigenvalues[wide], precise = torch.linalg.eigh(gram[wide].double())
        vectors[wide] = precise.float()
    return eigenvalues, vectors


def _noise_variance(eigenvalues: torch.Tensor, n_kept: torch.Tensor, n_rows: int, n_columns: int) -> torch.Tensor:
    """Return the variance of the noise, (patch,), from ascending eigenvalues without the highest."""
    lowest = torch.arange(eigenvalues.shape[1], device=eigenvalues.device) < eigenvalues.shape[1] - n_kept[:, None]
    return torch.where(lowest, eigenvalues, 0.0).sum(dim=1) / ((n_rows - n_kept) * (n_columns - n_kept))


def sigma_of_magnitudes(
    magnitude: npt.NDArray[np.float32], noise_std: npt.NDArray[np.float32], n_coils: float = 1.0
) -> npt.NDArray[np.float32]:
    """Return the standard deviation of the real and imaginary part of magnitudes of a known standard deviation.

    Magnitudes vary less where the signal is low (Koay and Basser 2006, J Magn Reson 179:317). The known deviation is an
    average over a patch, and so is the correction.

    Parameters
    ----------
    magnitude : ndarray
        (x, y, z, n) denoised: expected magnitudes.
    noise_std : ndarray
        (x, y, z) of `mppca`; zero where it is unknown.
    n_coils : float
        As for `core.rice.signal_of_mean`.

    Returns
    -------
    ndarray
        (x, y, z); zero where it is unknown.
    """
    known = noise_std > 0
    weight = ndimage.uniform_filter(known.astype(np.float64), size=2 * RADIUS + 1, mode="constant")
    sigma = noise_std[known].astype(np.float64)
    for _ in range(N_STEPS):
        relative = np.zeros(noise_std.shape)
        # Volume by volume, to save memory.
        relative[known] = np.mean(
            [variance_of_mean(volume[known] / sigma, n_coils) for volume in np.moveaxis(magnitude, 3, 0)], 0
        )
        average = ndimage.uniform_filter(relative, size=2 * RADIUS + 1, mode="constant")[known] / weight[known]
        sigma = noise_std[known] / np.sqrt(average)
    result = np.zeros(noise_std.shape, dtype=np.float32)
    result[known] = sigma
    return result
