"""Slices of diffusion volumes that lost signal, by comparison with a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

#: Standard deviations below the prediction from which on a slice is an outlier: by chance 3 in 100,000 of slices with
#: normal errors.
THRESHOLD = 4.0
#: Slices with fewer voxels of the head are not judged, their means are too uncertain.
MIN_VOXELS = 50
#: Volumes that the scatter of all slices counts for, beside that of a slice's own.
PRIOR_VOLUMES = 10
#: A standard deviation over the median absolute deviation, for normal errors.
NORMAL_MAD = 1.4826


class Outliers(NamedTuple):
    """Slices of a series.

    Attributes
    ----------
    slices : ndarray
        (n_slices, n) bool, True where signal was lost.
    z : ndarray
        (n_slices, n) mean difference from the prediction over its standard deviation; NaN where it was not judged.
    """

    slices: npt.NDArray[np.bool_]
    z: npt.NDArray[np.float64]


def slice_difference(
    volume: npt.NDArray[np.floating], predicted: npt.NDArray[np.floating], mask: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Return the mean of volume less prediction within the mask, and the number of voxels, for each slice.

    Parameters
    ----------
    volume, predicted, mask : ndarray
        (x, y, z), slices along the third axis.

    Returns
    -------
    difference, count : ndarray
        (n_slices,); the difference is NaN where there are fewer than `MIN_VOXELS`.
    """
    count = mask.sum(axis=(0, 1))
    total = np.where(mask, volume - predicted, 0.0).sum(axis=(0, 1), dtype=np.float64)
    return np.where(count >= MIN_VOXELS, total / np.maximum(count, 1), np.nan), count


def find_outliers(
    difference: npt.NDArray[np.float64], count: npt.NDArray[np.intp], shells: Sequence[npt.NDArray[np.intp]]
) -> Outliers:
    """Find slices whose signal is below the prediction by more than noise and scatter over volumes allow.

    A slice is compared with the same slice of the other volumes of its shell, since a prediction may be wrong in the
    same way for all of them. Medians are robust against the outliers themselves.

    Parameters
    ----------
    difference : ndarray
        (n_slices, n) mean difference from the prediction, see `slice_difference`.
    count : ndarray
        (n_slices, n) number of voxels it is a mean of.
    shells : sequence of ndarray
        Numbers of the volumes of each shell.
    """
    z = np.full(difference.shape, np.nan)
    for shell in shells:
        part, weight = difference[:, shell], np.sqrt(count[:, shell])
        judged = np.isfinite(part).any(axis=1)
        if len(shell) < 2 or not judged.any():
            continue
        part, weight = part[judged], weight[judged]
        scaled = (part - np.nanmedian(part, axis=1, keepdims=True)) * weight
        own = np.square(NORMAL_MAD * np.nanmedian(np.abs(scaled), axis=1, keepdims=True))
        variance = (len(shell) * own + PRIOR_VOLUMES * np.median(own)) / (len(shell) + PRIOR_VOLUMES)
        # A median of few differences from their median is small, see Croux and Rousseeuw (1992).
        variance *= (len(shell) / (len(shell) - 0.8)) ** 2
        z[np.ix_(judged, shell)] = np.divide(
            scaled, np.sqrt(variance), out=np.zeros_like(scaled), where=np.broadcast_to(variance > 0, scaled.shape)
        )
    return Outliers(np.nan_to_num(z) < -THRESHOLD, z)
