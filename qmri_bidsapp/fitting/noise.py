"""The noise of a series: its standard deviation in every voxel, its distribution, and where both come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from qmri_bidsapp.core.acquisition import Acquisition, Diffusion, reference_limit
from qmri_bidsapp.core.noise import NoiseKind, noise_kind
from qmri_bidsapp.core.rice import variance_of_mean
from qmri_bidsapp.images.volumes import VolumeData, iter_voxels

#: Neighbouring b-values that differ by no more (s/mm2), or by 5 %, belong to one shell: below it, perfusion attenuates
#: the signal.
SHELL_TOLERANCE = 5.0
#: With fewer degrees of freedom the noise cannot be estimated; with as many of directions, volumes without weighting,
#: which differ by pulsation as well, are not used.
MIN_FREEDOM, ENOUGH_FREEDOM = 3, 10
#: Steps of the fixed point that turns the noise of magnitudes into that of their real and imaginary parts.
N_STEPS = 8
#: Voxels that are read at once.
CHUNK_SIZE = 32_768
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

        It is the measured one where that is positive, elsewhere that of the residuals of each shell of a diffusion
        series, see `noise_of_shells`. Powder averages leave too few residuals to estimate the noise from; shells do
        not.

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
        if not isinstance(acquisition, Diffusion) or (known is not None and (known > 0).all()):
            return cls(known, floor_removed)
        found = noise_of_shells(data, mask, acquisition, is_magnitude=not floor_removed)
        if known is not None and found is not None:
            found = np.where(known > 0, known, found)
        return cls(known if found is None else found, floor_removed)

    def kind(self, acquisition: Acquisition) -> NoiseKind:
        """Return the distribution of the noise; `acquisition` is the protocol, raw or as the model uses it."""
        return noise_kind(acquisition, floor_removed=self.floor_removed)


def noise_of_shells(
    data: VolumeData, mask: npt.NDArray[np.bool_], acquisition: Diffusion, *, is_magnitude: bool
) -> npt.NDArray[np.float32] | None:
    """Estimate the standard deviation of the noise of one measurement from what varies within shells.

    The volumes of a shell are fitted by an even function of their direction, see `Diffusion.angular_fit`. Volumes
    without weighting are repeats of each other, but differ by pulsation as well: they are used only where directions
    leave too little freedom.

    Parameters
    ----------
    data : array_like
        (x, y, z, n_volumes).
    mask : ndarray
        (x, y, z) bool.
    acquisition : Diffusion
    is_magnitude : bool
        Whether the noise is Rician; magnitudes vary less where the signal is low (Koay and Basser 2006, J Magn Reson
        179:317).

    Returns
    -------
    ndarray or None
        (n_voxels,) of the masked voxels, in C order; NaN where a volume is not finite, or nothing varies. None if
        shells leave fewer than `MIN_FREEDOM` degrees of freedom.
    """
    fit = acquisition.angular_fit(SHELL_TOLERANCE)
    # Volumes that are fitted exactly say nothing about the noise.
    used = np.diag(fit) < 1 - 1e-6
    weighted = used & (np.asarray(acquisition.b_value) > reference_limit(acquisition.b_value))
    if (1 - np.diag(fit))[weighted].sum() >= ENOUGH_FREEDOM:
        used = weighted
    freedom = (1 - np.diag(fit))[used].sum()
    if freedom < MIN_FREEDOM:
        return None
    fitted = np.empty((int(mask.sum()), int(used.sum())), dtype=np.float32)
    variance = np.full(mask.shape, np.nan)
    square = np.empty(len(fitted))
    for index, series in iter_voxels(data, mask, CHUNK_SIZE):
        fitted[index] = series @ fit[:, used].astype(np.float32)
        square[index] = np.square(series[:, used] - fitted[index]).sum(axis=1)
    variance[mask] = square / freedom
    magnitude = np.sqrt(smooth(variance)[mask])
    noise = np.where(np.isfinite(square) & (magnitude > 0), magnitude, np.nan)
    sigma = noise
    for _ in range(N_STEPS if is_magnitude else 0):
        sigma = noise / np.sqrt(variance_of_mean(fitted / sigma[:, None]).mean(axis=1))
    return sigma.astype(np.float32)


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
