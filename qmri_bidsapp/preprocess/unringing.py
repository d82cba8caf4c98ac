"""Removal of Gibbs ringing by local subvoxel shifts."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

#: Largest shift, voxels, and steps from none to it: beyond half a voxel the next voxel has the better place, and larger
#: shifts (DIPY's go to 0.9) sharpen anatomy.
MAX_SHIFT, N_STEPS = 0.5, 5
#: The variation beside a voxel is over the differences between its neighbours of distance 1 and 2, 2 and 3, 3 and 4.
WINDOW = 3
#: Voxels beyond either end of a line, which continues at the other: where the variation beside the ends is taken.
MARGIN = WINDOW + 1
#: Values of the lines that are shifted at once: all intermediate results fit the cache of a processor.
CHUNK = 2**16
#: On other devices.
DEVICE_CHUNK = 2**24


def remove_ringing(series: npt.NDArray[np.float32], *, device: str = "cpu") -> npt.NDArray[np.float32]:
    r"""Remove Gibbs ringing within slices by local subvoxel shifts (Kellner et al. 2016, Magn Reson Med 76:1574).

    The image is unringed along each axis, and both results are combined in k-space with the weights
    :math:`(1 + \cos k_y) / (2 + \cos k_x + \cos k_y)` for the axis x, and one minus that for y: either axis is
    corrected where its ringing is.

    Parameters
    ----------
    series : ndarray
        (x, y, z, n) magnitudes, finite, whose k-space was acquired in full along x and y; slices along z.
    device : str
        Torch device.

    Returns
    -------
    ndarray
        (x, y, z, n), not negative.
    """
    n_x, n_y = series.shape[:2]
    shifts = [shift_operators(n, device) for n in (n_x, n_y)]
    k_x, k_y = (1 + torch.cos(2 * math.pi * torch.fft.fftfreq(n, device=device)) for n in (n_x, n_y))
    k_x, k_y = k_x[:, None, None], k_y[: n_y // 2 + 1, None]
    # Both are zero in the corner of k-space.
    weight = torch.where(k_x + k_y > 0, k_y / (k_x + k_y).clamp(min=torch.finfo(torch.float32).tiny), 0.5)
    result = np.empty_like(series, dtype=np.float32)
    # Slice by slice, to save memory.
    for place in range(series.shape[2]):
        plane = torch.from_numpy(np.ascontiguousarray(series[:, :, place], dtype=np.float32)).to(device)
        along_x = unring_lines(plane.reshape(n_x, -1), shifts[0]).view(plane.shape)
        lines = plane.transpose(0, 1).reshape(n_y, -1)
        along_y = unring_lines(lines, shifts[1]).view(n_y, n_x, -1).transpose(0, 1)
        spectrum = weight * torch.fft.rfft2(along_x - along_y, dim=(0, 1))
        combined = along_y + torch.fft.irfft2(spectrum, s=(n_x, n_y), dim=(0, 1))
        result[:, :, place] = combined.clamp(min=0).cpu().numpy()
    return result


def shift_operators(n: int, device: str = "cpu") -> list[tuple[float, torch.Tensor]]:
    """Return shifts, voxels, and for each the matrix (n + 2 MARGIN, n) that samples a line of n at the shifted places.

    Lines are periodic and band-limited, as they are after truncation of k-space.
    """
    shifts = torch.arange(-N_STEPS, N_STEPS + 1, dtype=torch.float64) * (MAX_SHIFT / N_STEPS)
    # No shift comes first: it is kept among equals.
    shifts = shifts[shifts.abs().argsort(stable=True)]
    places = torch.arange(-MARGIN, n + MARGIN, dtype=torch.float64)
    angle = (shifts[:, None, None] + places[:, None] - torch.arange(n)) * (math.pi / n)
    scale = n * (angle.tan() if n % 2 == 0 else angle.sin())
    kernel = torch.where(angle.sin().abs() < 1e-9, 1.0, (n * angle).sin() / scale).float().to(device)
    return list(zip(shifts.tolist(), kernel, strict=True))


def unring_lines(lines: torch.Tensor, operators: list[tuple[float, torch.Tensor]]) -> torch.Tensor:
    """Remove ringing along lines, at each voxel by the shift of least variation beside it.

    The ringing of a step vanishes where samples fall on its zeros. Values at the voxels come from the shifted samples
    by linear interpolation.

    Parameters
    ----------
    lines : Tensor
        (n, line).
    operators : list
        Of `shift_operators`.

    Returns
    -------
    Tensor
        (n, line).
    """
    n = len(lines)
    result = torch.empty_like(lines)
    width = max(1, (CHUNK if lines.device.type == "cpu" else DEVICE_CHUNK) // n)
    for first in range(0, lines.shape[1], width):
        part = lines[:, first : first + width].contiguous()
        value, least = part, torch.full_like(part, math.inf)
        for shift, operator in operators:
            samples = operator @ part
            change = (samples[1:] - samples[:-1]).abs_()
            variation = change[: 1 - WINDOW] + change[1 : 2 - WINDOW]
            variation += change[WINDOW - 1 :]
            # Of the differences that begin MARGIN voxels before, and of those that begin one voxel after.
            variation = torch.minimum(variation[:n], variation[-n:])
            neighbour = MARGIN - int(np.sign(shift))
            here = torch.lerp(samples[MARGIN : MARGIN + n], samples[neighbour : neighbour + n], abs(shift))
            value = torch.where(variation < least, here, value)
            least = torch.minimum(variation, least)
        result[:, first : first + width] = value
    return result
