"""Errors of fits to denoised series: measured on a replicate, not derived from the noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.fitting.noise import noise_of_shells, smooth
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
    is_resampled : bool
        Whether volumes were resampled after denoising: the series then has errors of alignment and interpolation too.
    """

    errors: VolumeData
    removed: VolumeData
    is_resampled: bool = False


@dataclass(frozen=True)
class _Sum:
    """Two series, added when they are read."""

    first: VolumeData
    second: VolumeData

    @property
    def shape(self) -> tuple[int, ...]:
        return self.first.shape

    def __getitem__(self, index: Any) -> Any:
        return self.first[index] + self.second[index]


def scatter_of_resampling(
    data: VolumeData, replicate: Replicate, mask: npt.NDArray[np.bool_], acquisition: Diffusion
) -> npt.NDArray[np.float64] | None:
    """Return the variance within shells that the noise of a resampled series does not explain.

    Volumes that were moved differ by errors of alignment and of interpolation, most at edges. They are what residuals
    of each shell (see `noise.noise_of_shells`) have beyond those of the replicate's noise, and what a smooth function
    of the direction does not follow.

    Parameters
    ----------
    data : array_like
        (x, y, z, n_measurements) the series.
    replicate : Replicate
    mask : ndarray
        (x, y, z) bool.
    acquisition : Diffusion

    Returns
    -------
    ndarray or None
        (n_voxels,); zero where it is not known. None if shells leave too few residuals.
    """
    own = noise_of_shells(data, mask, acquisition, is_magnitude=False)
    # It has the noise of the series and that of the replicate, of the same size.
    both = noise_of_shells(_Sum(data, replicate.errors), mask, acquisition, is_magnitude=False)
    if own is None or both is None:
        return None
    return np.nan_to_num(np.maximum(2 * np.square(own, dtype=np.float64) - np.square(both, dtype=np.float64), 0))


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
