"""Slices of diffusion volumes that lost signal, by comparison with a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.images.volumes import make_image
from qmri_bidsapp.preprocess.prediction import LeaveOneOut

#: Standard deviations below the prediction from which on a slice is an outlier: by chance 3 in 100,000 of slices with
#: normal errors.
THRESHOLD = 4.0
#: Smallest share of its signal that an outlier lost: with little noise, differences of interpolation are significant.
MIN_LOSS = 0.05
#: Slices with fewer voxels of the head are not judged, their means are too uncertain.
MIN_VOXELS = 50
#: Fewer volumes of a shell do not tell which slices are unlike the others.
MIN_SHELL = 8
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
    volume: npt.NDArray[np.floating], predicted: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Return the mean of volume less prediction in each slice.

    Parameters
    ----------
    volume, predicted : ndarray
        (x, y, z), slices along the third axis; the prediction is NaN where it is not known.

    Returns
    -------
    difference, level, count : ndarray
        (n_slices,) mean difference, mean of the prediction, both NaN where it is known in fewer than `MIN_VOXELS`
        voxels, and the number of these.
    """
    known = np.isfinite(predicted)
    count = known.sum(axis=(0, 1))
    means = [
        np.where(count >= MIN_VOXELS, np.where(known, values, 0).sum(axis=(0, 1)) / np.maximum(count, 1), np.nan)
        for values in (volume - predicted, predicted)
    ]
    return means[0], means[1], count


def find_outliers(
    difference: npt.NDArray[np.float64],
    level: npt.NDArray[np.float64],
    count: npt.NDArray[np.intp],
    shells: Sequence[npt.NDArray[np.intp]],
) -> Outliers:
    """Find slices whose signal is below the prediction by more than noise and scatter over volumes allow.

    A slice is compared with the same slice of the other volumes of its shell, since a prediction may be wrong in the
    same way for all of them. Medians are robust against the outliers themselves.

    Parameters
    ----------
    difference, level, count : ndarray
        (n_slices, n) of each volume, see `slice_difference`.
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
    is_weak = np.nan_to_num(difference) < -MIN_LOSS * np.nan_to_num(level)
    return Outliers(is_weak & (np.nan_to_num(z) < -THRESHOLD), z)


def replace_lost_slices(
    image: nib.Nifti1Image, acquisition: Diffusion
) -> tuple[nib.Nifti1Image, npt.NDArray[np.bool_], str]:
    """Replace slices that lost signal by the prediction of the other volumes.

    A leave-one-out prediction adds nothing to what the others say, so that every model is fitted as if the slice were
    missing.

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z, n) aligned.
    acquisition : Diffusion
        With the directions of the aligned volumes.

    Returns
    -------
    image : Nifti1Image
        The same one if no slice lost signal.
    lost : ndarray
        (n_slices, n) bool.
    note : str
        How many slices were replaced, or why none was judged.
    """
    shape = (image.shape[2], image.shape[3])
    shells = [shell for shell in acquisition.shells() if len(shell) >= MIN_SHELL]
    if not shells:
        reason = f"no shell has {MIN_SHELL} volumes"
        return image, np.zeros(shape, dtype=bool), f"Slices were not searched for lost signal: {reason}."
    data = np.asarray(image.dataobj, dtype=np.float32)
    lowest = np.nan_to_num(data[..., acquisition.shells()[0]]).mean(axis=3)
    head = (lowest >= lowest.mean()) & np.isfinite(data).all(axis=3)
    values = data[head]
    others = LeaveOneOut.of(values, acquisition)
    found = np.full((3, *shape), np.nan)
    predicted = np.full(head.shape, np.nan, dtype=np.float32)
    for volume in np.concatenate(shells):
        predicted[head] = values @ others.matrix[volume].astype(np.float32)
        found[..., volume] = slice_difference(data[..., volume], predicted)
    lost = find_outliers(found[0], found[1], np.nan_to_num(found[2]).astype(np.intp), shells).slices
    if not lost.any():
        return image, lost, ""
    repaired = data.copy()
    for volume in np.flatnonzero(lost.any(axis=0)):
        predicted[head] = values @ others.matrix[volume].astype(np.float32)
        where = head & lost[:, volume]
        repaired[..., volume][where] = predicted[where]
    n_judged = int((found[2] >= MIN_VOXELS).sum())
    note = (
        f"{lost.sum()} of {n_judged} slices lost signal (in {lost.any(axis=0).sum()} volumes) and were replaced by "
        "what the other volumes predict."
    )
    return make_image(repaired, image), lost, note
