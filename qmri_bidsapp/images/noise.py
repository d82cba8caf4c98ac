"""The noise of a series, from volumes that repeat each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

#: Standard deviation, in voxels, of the neighbourhood over which variances are averaged: noise changes slowly over
#: space, and a voxel's own few repeats say little.
SMOOTHING = 2.0


def noise_of_repeats(
    image_file: str | Path, mask: npt.NDArray[np.bool_], volumes: Sequence[int] | npt.NDArray[np.intp]
) -> npt.NDArray[np.float32]:
    """Return the standard deviation of the noise of one measurement, from volumes that differ by noise only.

    Parameters
    ----------
    image_file : path
        Uncompressed 4-D image (x, y, z, n_volumes); one volume at a time is read.
    mask : ndarray
        (x, y, z) bool.
    volumes : sequence of int
        At least two.

    Returns
    -------
    ndarray
        (n_voxels,) of the masked voxels, in C order; NaN where a volume is not finite, or nothing varies.
    """
    data = nib.load(image_file, mmap=False).dataobj
    mean, square = (np.zeros(int(mask.sum())) for _ in range(2))
    for count, volume in enumerate(volumes, start=1):
        values = np.asarray(data[..., int(volume)], dtype=np.float64)[mask]
        away = values - mean
        mean += away / count
        square += away * (values - mean)
    variance = np.full(mask.shape, np.nan)
    variance[mask] = square / (len(volumes) - 1)
    noise = np.sqrt(smooth(np.where(mask, variance, np.nan)))
    return np.asarray(np.where(np.isfinite(variance) & (noise > 0), noise, np.nan)[mask], dtype=np.float32)


def smooth(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return the mean over the neighbourhood of each voxel, with Gaussian weights; NaN have none.

    Parameters
    ----------
    values : ndarray
        (x, y, z).
    """
    usable = np.isfinite(values)
    weight = gaussian_filter(usable.astype(np.float64), SMOOTHING, mode="constant")
    total = gaussian_filter(np.where(usable, values, 0.0), SMOOTHING, mode="constant", output=np.float64)
    return np.divide(total, weight, out=np.full(values.shape, np.nan), where=weight > 0)
