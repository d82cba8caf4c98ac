"""Errors of fits to denoised series: measured on a replicate, not derived from the noise."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.fitting.noise import smooth
from qmri_bidsapp.images.volumes import VolumeData, fill

#: Differences beyond this many standard deviations count as this many.
MAX_Z = 5.0
#: Lowest factor: fewer neighbours than it takes to show a smaller one.
MIN_FACTOR = 0.1


class Replicate(NamedTuple):
    """A denoised series with noise drawn anew and denoised again, see `preprocess.dwi.denoise`.

    Attributes
    ----------
    errors : array_like
        (x, y, z, n_measurements) the replicate less the series.
    removed : array_like
        (x, y, z, n_measurements) what denoising removed from it.
    """

    errors: VolumeData
    removed: VolumeData


def error_factors(maps: ParameterMaps, repeated: ParameterMaps, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Return the ratio of the errors of a fit to its standard deviations, from the fit of a replicate.

    Denoising removes noise by different amounts along different changes of the signal, and correlates the errors of
    volumes. So it makes some parameters more precise (kurtosis: 0.4 of the standard deviation for raw noise) and leaves
    others as they are (the signal at b = 0). A replicate is the denoised series with noise drawn anew and denoised
    again: a parametric bootstrap (Efron and Tibshirani 1993, chapter 6). The difference of its estimate from that of
    the series has the size of the error; the mean square over neighbours gives the factor.

    Parameters
    ----------
    maps, repeated : ParameterMaps
        (n_voxels,) fits of the series and of its replicate, with standard deviations for the noise before denoising.
    mask : ndarray
        (x, y, z) bool: where the voxels lie.

    Returns
    -------
    ndarray
        (n_voxels, n_parameters); one where nothing is known.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        z = _difference(maps, repeated) / maps.std
    z[(maps.status != Status.OK) | (repeated.status != Status.OK)] = np.nan
    square = np.square(np.clip(z, -MAX_Z, MAX_Z))
    means = [smooth(fill(column, mask, np.nan))[mask] for column in square.T]
    factor = np.sqrt(np.stack(means, axis=-1))
    return np.where(np.isfinite(factor), np.maximum(factor, MIN_FACTOR), 1).astype(np.float32)


def rescale(maps: ParameterMaps, factor: npt.NDArray[np.float32]) -> ParameterMaps:
    """Return maps whose standard deviations, and limits around the estimate, are multiplied by (n, n_parameters)."""
    limits = {
        name: maps.estimate + (values - maps.estimate) * factor
        for name in ("lower", "upper")
        if (values := getattr(maps, name)) is not None
    }
    return replace(maps, std=maps.std * factor, **limits)


def _difference(maps: ParameterMaps, repeated: ParameterMaps) -> npt.NDArray[np.float64]:
    """Return the differences of estimates; those of angles within half a turn."""
    difference = np.asarray(repeated.estimate, dtype=np.float64) - maps.estimate
    for column, parameter in enumerate(maps.parameters):
        if parameter.is_periodic:
            turn = parameter.bounds[1] - parameter.bounds[0]
            difference[:, column] = (difference[:, column] + turn / 2) % turn - turn / 2
    return difference
