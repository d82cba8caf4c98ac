"""What every voxelwise estimator does around its method: screening of voxels, assembly of the maps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.models.base import SignalModel


def covariates_of(model: SignalModel, covariates: npt.ArrayLike | None, n_voxels: int) -> npt.NDArray[np.float32]:
    """Return the covariates of all voxels, (n_voxels, n_covariates); NaN where one is out of its bounds.

    Parameters
    ----------
    model : SignalModel
    covariates : array_like or None
        (n_voxels, n_covariates); None for neutral values.
    n_voxels : int

    Raises
    ------
    ValueError
        If the shape does not fit the model.
    """
    shape = (n_voxels, len(model.covariates))
    if covariates is None:
        return np.broadcast_to(np.array([p.scale for p in model.covariates], dtype=np.float32), shape)
    values = np.asarray(covariates, dtype=np.float32)
    if values.shape != shape:
        raise ValueError(f"Covariates of model {model.name} must have shape {shape}, got {values.shape}.")
    low, high = (np.array([p.bounds[i] for p in model.covariates], dtype=np.float32) for i in (0, 1))
    return np.where((values >= low) & (values <= high), values, np.float32(np.nan))


def as_signals(signals: npt.ArrayLike, n_measurements: int) -> npt.NDArray[np.generic]:
    """Return signals as an array, (n_voxels, n_measurements); ValueError if they do not fit the protocol."""
    values = np.asarray(signals)
    if values.ndim != 2 or values.shape[1] != n_measurements:
        raise ValueError(f"Signals must have shape (n_voxels, {n_measurements}), got {values.shape}.")
    return values


def screen(
    signals: npt.NDArray[np.generic], covariates: npt.NDArray[np.float32] | None = None, *, has_sign: bool = False
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Find the voxels that can be fitted.

    Parameters
    ----------
    signals : ndarray
        (n_voxels, n_measurements).
    covariates : ndarray, optional
        (n_voxels, n_covariates) from `covariates_of`; NaN where a voxel cannot be used.
    has_sign : bool
        Whether negative values are signal.

    Returns
    -------
    signals : ndarray
        (n_voxels, n_measurements) float32.
    status : ndarray
        (n_voxels,) uint8; OK where the voxel can be fitted.
    usable : ndarray
        (n_voxels,) bool.
    """
    values = np.asarray(signals, dtype=np.float32)
    status = np.full(len(values), Status.OK, dtype=np.uint8)
    signal = values != 0 if has_sign else values > 0
    status[~signal.any(axis=1)] = Status.NO_SIGNAL
    status[~np.isfinite(values).all(axis=1)] = Status.INVALID_INPUT
    if covariates is not None:
        status[~np.isfinite(covariates).all(axis=1)] = Status.INVALID_INPUT
    return values, status, status == Status.OK


def noise_of(noise_std: npt.ArrayLike, n_voxels: int) -> npt.NDArray[np.float32]:
    """Return the noise of all voxels, (n_voxels,) float32; NaN where it is not known. One number is that of all."""
    values = np.broadcast_to(np.asarray(noise_std, dtype=np.float32), (n_voxels,))
    return np.where((values > 0) & (values < np.inf), values, np.float32(np.nan))


def assemble(
    model: SignalModel,
    std_kind: str,
    status: npt.NDArray[np.uint8],
    usable: npt.NDArray[np.bool_],
    estimate: npt.NDArray[np.floating],
    std: npt.NDArray[np.floating],
    fitted_status: npt.NDArray[np.uint8],
    variance: npt.NDArray[np.floating] | None = None,
) -> ParameterMaps:
    """Put the results of the usable voxels into maps of all voxels.

    What is not finite becomes NaN and FAILED.

    Parameters
    ----------
    model, std_kind
        For the maps.
    status, usable : ndarray
        From `screen`.
    estimate, std : ndarray
        (n_usable, n_parameters + n_derived), in each parameter's unit.
    fitted_status : ndarray
        (n_usable,) uint8.
    variance : ndarray, optional
        (n_usable,), see `ParameterMaps`.
    """
    parameters = (*model.parameters, *model.derived)
    failed = ~np.isfinite(estimate).all(axis=1)
    estimates = scatter(np.where(failed[:, None], np.nan, estimate), usable)
    stds = scatter(np.where(failed[:, None] | ~np.isfinite(std), np.nan, std), usable)
    status = status.copy()
    status[usable] = np.where(failed, Status.FAILED, fitted_status)
    own = None if variance is None else scatter(np.where(failed, np.nan, variance), usable)
    return ParameterMaps(parameters, estimates, stds, std_kind, status, variance=own)


def scatter(values: npt.NDArray[np.floating], usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Return values of all voxels, (n_voxels, ...) float32: those of the usable ones, (n_usable, ...), and NaN."""
    everywhere = np.full((len(usable), *values.shape[1:]), np.nan, dtype=np.float32)
    everywhere[usable] = values
    return everywhere
