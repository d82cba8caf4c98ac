"""Drift of the signal along a diffusion series, from its volumes without weighting."""

from __future__ import annotations

from typing import NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy.stats import f

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.images.volumes import make_image

#: Probability that a series without drift gets a linear one, and one of linear drift a quadratic one.
LEVEL = 0.01
#: Variance of the relative signal below which differences are rounding errors.
ROUNDING = 1e-12
#: Fewest volumes without weighting, and the smallest share of the series that they must span.
MIN_VOLUMES, MIN_SPAN = 4, 0.5


class Drift(NamedTuple):
    """Drift of a series.

    Attributes
    ----------
    factor : ndarray
        (n,) signal relative to that of the first volume: dividing by it corrects the series. Ones where no drift is
        significant.
    note : str
        What was found, or why nothing was estimated.
    """

    factor: npt.NDArray[np.float64]
    note: str

    @property
    def is_corrected(self) -> bool:
        """Whether the series drifts."""
        return bool((self.factor != 1).any())


def estimate_drift(reference: npt.NDArray[np.floating], index: npt.NDArray[np.intp], n_volumes: int) -> Drift:
    """Fit a polynomial of the volume's number to the signal at b = 0 (Vos et al. 2017, Magn Reson Med 77:285).

    The signal of a volume is the median over voxels of its ratio to the mean. The polynomial is linear, and quadratic
    where that explains significantly more.

    Parameters
    ----------
    reference : ndarray
        (n_voxels, n_reference) aligned volumes without weighting, within the head.
    index : ndarray
        (n_reference,) their numbers in the series, from 0.
    n_volumes : int
        Of the series.
    """
    ones = np.ones(n_volumes)
    if len(index) < MIN_VOLUMES:
        return Drift(ones, f"Drift was not estimated: {len(index)} volumes at b = 0 (needs {MIN_VOLUMES}).")
    if np.ptp(index) < MIN_SPAN * (n_volumes - 1):
        where = f"volumes at b = 0 span {np.ptp(index) + 1} of {n_volumes}"
        return Drift(ones, f"Drift was not estimated: {where} (needs {MIN_SPAN:.0%}).")
    mean = reference.mean(axis=1)
    bright = mean > 0
    signal = np.median(reference[bright] / mean[bright, None], axis=0)
    place, everywhere = index / (n_volumes - 1), np.arange(n_volumes) / (n_volumes - 1)
    degree, residual = 0, float(np.square(signal - signal.mean()).sum())
    for higher in (1, 2):
        freedom = len(index) - higher - 1
        fit = np.polynomial.Polynomial.fit(place, signal, higher)
        left = float(np.square(signal - fit(place)).sum())
        statistic = (residual - left) / (higher - degree) / max(left / max(freedom, 1), ROUNDING)
        if freedom > 0 and f.sf(statistic, higher - degree, freedom) < LEVEL:
            degree, residual = higher, left
    if degree == 0:
        spread = f"{100 * signal.std(ddof=1):.2g} %"
        return Drift(
            ones, f"No significant drift of the signal over {len(index)} volumes at b = 0 (they vary by {spread})."
        )
    values = np.polynomial.Polynomial.fit(place, signal, degree)(everywhere)
    factor = np.asarray(values / values[0])
    shape = "linear" if degree == 1 else "quadratic"
    return Drift(
        factor,
        f"Drift of the signal corrected (Vos et al. 2017): {shape}, {100 * (factor[-1] - 1):+.1f} % from the first to "
        f"the last volume, from {len(index)} volumes at b = 0.",
    )


def correct_drift(image: nib.Nifti1Image, acquisition: Diffusion) -> tuple[nib.Nifti1Image, Drift]:
    """Divide the volumes of a series by the drift of its signal, where that is significant.

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z, n) aligned.
    acquisition : Diffusion

    Returns
    -------
    image : Nifti1Image
        The same one without drift.
    drift : Drift
    """
    data = np.asarray(image.dataobj, dtype=np.float32)
    index = acquisition.shells()[0]
    reference = np.nan_to_num(data[..., index])
    lowest = reference.mean(axis=3)
    drift = estimate_drift(reference[lowest >= lowest.mean()], index, acquisition.n_measurements)
    if not drift.is_corrected:
        return image, drift
    return make_image((data / drift.factor).astype(np.float32), image), drift
