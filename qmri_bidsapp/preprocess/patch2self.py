"""Denoising of diffusion series by predicting each volume from the others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.acquisition import Diffusion, reference_limit

#: Added to the covariance of the volumes, relative to their mean variance, so that equal or empty volumes do no harm.
RIDGE = 1e-9


def patch2self(
    series: npt.NDArray[np.float32], inside: npt.NDArray[np.bool_], acquisition: Diffusion
) -> npt.NDArray[np.float32]:
    """Denoise by Patch2Self (Fadnavis et al. 2020, NeurIPS 33:16293) with patches of one voxel.

    Each volume is replaced by its linear regression on the others, over all voxels; volumes with and without weighting
    are apart. Noise that is independent between volumes cannot be predicted. All regressions come from one inverse of
    the covariance, without the random projections of DIPY's.

    Parameters
    ----------
    series : ndarray
        (x, y, z, n), finite.
    inside : ndarray
        (x, y, z) bool, where denoised values are needed; other voxels are no part of the regressions.
    acquisition : Diffusion
        Of n volumes.

    Returns
    -------
    ndarray
        (x, y, z, n), not negative; zero outside. A volume without any other of its kind stays as it is.
    """
    values = series[inside].astype(np.float64)
    is_weighted = np.asarray(acquisition.b_value) > reference_limit(acquisition.b_value)
    for volumes in (np.flatnonzero(~is_weighted), np.flatnonzero(is_weighted)):
        if len(volumes) > 1:
            mean = values[:, volumes].mean(axis=0)
            centred = values[:, volumes] - mean
            covariance = centred.T @ centred
            covariance += RIDGE * np.trace(covariance) / len(volumes) * np.eye(len(volumes))
            precision = np.linalg.inv(covariance)
            values[:, volumes] = mean + centred - centred @ precision / np.diag(precision)
    result = np.zeros_like(series, dtype=np.float32)
    result[inside] = np.maximum(values, 0)
    return result
