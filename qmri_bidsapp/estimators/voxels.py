"""Input and output of every estimator: checks of the arguments, screening of voxels, assembly of the maps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.models.base import SignalModel


class VoxelData(NamedTuple):
    """Checked input of an estimator.

    Attributes
    ----------
    signals : ndarray
        (n, n_measurements), in any unit and dtype; float32 once screened.
    noise_std : ndarray or None
        (n,) float32 standard deviation of the noise of one raw measurement, in the unit of the signals; NaN where it
        is unknown, None where it is unknown for all voxels.
    covariates : ndarray
        (n, n_covariates) float32; NaN where a value is out of its bounds.
    directions : ndarray or None
        (n, n_bundles, 3) float32 fibre directions.
    """

    signals: npt.NDArray[np.generic]
    noise_std: npt.NDArray[np.float32] | None
    covariates: npt.NDArray[np.float32]
    directions: npt.NDArray[np.float32] | None = None

    def part(self, index: slice | npt.NDArray[np.bool_]) -> VoxelData:
        """Return the data of some voxels."""
        signals, noise_std, covariates, directions = self
        return VoxelData(
            signals[index],
            None if noise_std is None else noise_std[index],
            covariates[index],
            None if directions is None else directions[index],
        )

    def screen(self, *, has_sign: bool) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], VoxelData]:
        """Find the voxels that can be fitted.

        Parameters
        ----------
        has_sign : bool
            Whether negative values are signal.

        Returns
        -------
        status : ndarray
            (n,) uint8; OK where the voxel can be fitted.
        usable : ndarray
            (n,) bool, the same.
        voxels : VoxelData
            The usable ones.
        """
        values, status, usable = screen(self.signals, self.covariates, has_sign=has_sign)
        return status, usable, self._replace(signals=values).part(usable)


class Solution(NamedTuple):
    """Results of a method in the voxels that it was given; columns are the parameters, then the derived ones.

    Attributes
    ----------
    estimate, std : ndarray
        (n, n_parameters + n_derived), in each parameter's unit; NaN where undefined.
    status : ndarray
        (n,) uint8, values of `Status`.
    variance : ndarray or None
        (n,) noise variance from residuals, see `ParameterMaps`.
    lower, upper : ndarray or None
        (n, n_parameters + n_derived), limits of the central 95 % interval.
    log_evidence : ndarray or None
        (n,).
    """

    estimate: npt.NDArray[np.floating]
    std: npt.NDArray[np.floating]
    status: npt.NDArray[np.uint8]
    variance: npt.NDArray[np.floating] | None = None
    lower: npt.NDArray[np.floating] | None = None
    upper: npt.NDArray[np.floating] | None = None
    log_evidence: npt.NDArray[np.floating] | None = None


def check_inputs(
    estimator: Estimator,
    signals: npt.ArrayLike,
    *,
    noise_std: npt.ArrayLike | None = None,
    covariates: npt.ArrayLike | None = None,
    directions: npt.ArrayLike | None = None,
) -> VoxelData:
    """Check the arguments of `Estimator.predict`.

    Parameters
    ----------
    estimator : Estimator
        After `fit`.
    signals, noise_std, covariates : array_like
        As for `Estimator.predict`.
    directions : array_like, optional
        (n_voxels, n_bundles, 3).

    Raises
    ------
    ProtocolError
        If `fit` was not called.
    ValueError
        If the shape of the signals does not fit the protocol, or that of the covariates the model.
    """
    if not hasattr(estimator, "acquisition_"):
        raise ProtocolError("The estimator has no protocol yet: call fit(acquisition) first.")
    values = as_signals(signals, estimator.acquisition_.n_measurements)
    return VoxelData(
        values,
        None if noise_std is None else noise_of(noise_std, len(values)),
        covariates_of(estimator.model, covariates, len(values)),
        None if directions is None else np.asarray(directions, dtype=np.float32),
    )


def covariates_of(model: SignalModel, covariates: npt.ArrayLike | None, n_voxels: int) -> npt.NDArray[np.float32]:
    """Return the covariates of all voxels, (n_voxels, n_covariates) float32; NaN where one is out of its bounds.

    Parameters
    ----------
    model : SignalModel
    covariates : array_like or None
        (n_voxels, n_covariates) in the model's order and units; None for neutral values.
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
    """Return the noise of each voxel, (n_voxels,) float32, from an array or one number; NaN where it is unknown."""
    values = np.broadcast_to(np.asarray(noise_std, dtype=np.float32), (n_voxels,))
    return np.where((values > 0) & (values < np.inf), values, np.float32(np.nan))


def assemble(
    model: SignalModel,
    std_kind: str,
    status: npt.NDArray[np.uint8],
    usable: npt.NDArray[np.bool_],
    solution: Solution,
) -> ParameterMaps:
    """Put the results of the usable voxels into maps of all voxels.

    Estimates that are not finite become NaN, and their voxels FAILED.

    Parameters
    ----------
    model, std_kind
        For the maps.
    status, usable : ndarray
        From `VoxelData.screen`.
    solution : Solution
        Of the usable voxels.
    """
    estimate, std, fitted_status, variance, *posterior = solution
    failed = ~np.isfinite(estimate).all(axis=1)
    status = status.copy()
    status[usable] = np.where(failed, Status.FAILED, fitted_status)
    lower, upper, log_evidence = (None if values is None else scatter(values, usable) for values in posterior)
    return ParameterMaps(
        (*model.parameters, *model.derived),
        scatter(np.where(failed[:, None], np.nan, estimate), usable),
        scatter(np.where(failed[:, None] | ~np.isfinite(std), np.nan, std), usable),
        std_kind,
        status,
        lower,
        upper,
        log_evidence,
        None if variance is None else scatter(np.where(failed, np.nan, variance), usable),
    )


def scatter(values: npt.NDArray[np.floating], usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Return (n_voxels, ...) float32: the values of the usable voxels, (n_usable, ...), and NaN in all others."""
    everywhere = np.full((len(usable), *values.shape[1:]), np.nan, dtype=np.float32)
    everywhere[usable] = values
    return everywhere
