"""The noise of a series: its standard deviation in every voxel, its distribution, and where both come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from qmri_bidsapp.core.acquisition import B0_THRESHOLD, Acquisition, Diffusion
from qmri_bidsapp.core.noise import NoiseKind, noise_kind
from qmri_bidsapp.images.volumes import VolumeData

#: Volumes whose b-values differ by no more (s/mm2) are repeats of each other.
REPEAT_TOLERANCE = 5.0
#: With fewer b0 volumes the noise cannot be estimated from them.
MIN_REPEATS = 4
#: Standard deviation, in voxels, of the Gaussian weights with which variances are averaged over neighbours: the noise
#: changes slowly over space, and a few repeats of one voxel determine it poorly.
SMOOTHING = 2.0


@dataclass(frozen=True)
class SeriesNoise:
    """Noise of one series, before its fit.

    Attributes
    ----------
    std : ndarray or None
        (n_voxels,) float32, standard deviation of the noise of one raw measurement in each voxel of the mask, in the
        unit of the images; NaN where it is unknown. None if it is unknown everywhere: estimators then estimate it from
        residuals.
    floor_removed : bool
        Whether preprocessing removed the noise floor of the magnitudes.
    """

    std: npt.NDArray[np.float32] | None = None
    floor_removed: bool = False

    @classmethod
    def of_series(
        cls,
        data: VolumeData,
        mask: npt.NDArray[np.bool_],
        acquisition: Acquisition,
        *,
        measured: npt.NDArray[np.float32] | None = None,
        floor_removed: bool = False,
    ) -> SeriesNoise:
        """Determine the noise of a series.

        It is the measured one where that is positive, elsewhere that of repeated b0 volumes where there are at least
        `MIN_REPEATS`. Only volumes of (nearly) the lowest b-value count as repeats: perfusion attenuates the signal
        below `B0_THRESHOLD`. Powder averages leave too few residuals to estimate the noise from; repeats do not.

        Parameters
        ----------
        data : array_like
            (x, y, z, n_measurements), read one volume at a time.
        mask : ndarray
            (x, y, z) bool.
        acquisition : Acquisition
            Protocol as acquired.
        measured : ndarray, optional
            (x, y, z) standard deviation of the noise of one raw measurement; NaN or zero where it is unknown.
        floor_removed : bool
            Whether preprocessing removed the noise floor of the magnitudes.
        """
        known = None if measured is None else measured[mask]
        repeats = _b0_repeats(acquisition)
        if len(repeats) < MIN_REPEATS or (known is not None and (known > 0).all()):
            return cls(known, floor_removed)
        found = noise_of_repeats(data, mask, repeats)
        return cls(found if known is None else np.where(known > 0, known, found), floor_removed)

    def kind(self, acquisition: Acquisition) -> NoiseKind:
        """Return the distribution of the noise; `acquisition` is the protocol, raw or as the model uses it."""
        return noise_kind(acquisition, floor_removed=self.floor_removed)


def _b0_repeats(acquisition: Acquisition) -> npt.NDArray[np.intp]:
    """Return the indices of the volumes of (nearly) the lowest b-value, if that counts as no weighting."""
    if not isinstance(acquisition, Diffusion):
        return np.array([], dtype=np.intp)
    lowest = acquisition.shells(REPEAT_TOLERANCE)[0]
    return lowest if acquisition.b_value[lowest[0]] <= B0_THRESHOLD else lowest[:0]


def noise_of_repeats(
    data: VolumeData, mask: npt.NDArray[np.bool_], volumes: Sequence[int] | npt.NDArray[np.intp]
) -> npt.NDArray[np.float32]:
    """Estimate the standard deviation of the noise of one measurement from repeated volumes.

    Parameters
    ----------
    data : array_like
        (x, y, z, n_volumes); one volume at a time is read.
    mask : ndarray
        (x, y, z) bool.
    volumes : sequence of int
        Volumes that differ by noise only, at least two.

    Returns
    -------
    ndarray
        (n_voxels,) of the masked voxels, in C order; NaN where a volume is not finite, or nothing varies.
    """
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
