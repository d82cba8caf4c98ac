"""Results of an estimator: estimates, standard deviations and a status for every voxel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from qmri_bidsapp.core.parameters import Parameter

#: Fields of `ParameterMaps` with a row for each voxel.
_BY_VOXEL = ("estimate", "std", "status", "lower", "upper", "log_evidence", "variance")


class Status(IntEnum):
    """Outcome of the estimation in one voxel. Estimates are NaN unless the status is OK, AT_BOUND or NOT_CONVERGED."""

    OUTSIDE = 0  #: not in the mask
    OK = 1
    NOT_CONVERGED = 2  #: the iteration limit was reached; the estimate is the best point found
    AT_BOUND = 3  #: a parameter is on a bound that is no physical limit; its standard deviation is NaN
    NO_SIGNAL = 4  #: all values are zero or negative
    INVALID_INPUT = 5  #: a value is NaN or infinite
    FAILED = 6  #: the estimate is not finite


@dataclass(frozen=True)
class ParameterMaps:
    """Estimates of one estimator.

    Attributes
    ----------
    parameters : tuple of Parameter
        Parameters of the columns: the model's, then its derived ones.
    estimate : ndarray
        (n_voxels, n_parameters) float32, in each parameter's unit; NaN where the estimation failed.
    std : ndarray
        (n_voxels, n_parameters) float32, standard deviation in the same units; NaN where it is undefined.
    std_kind : str
        How `std` was obtained, e.g. ``"Cramer-Rao"``.
    status : ndarray
        (n_voxels,) uint8, values of `Status`.
    lower, upper : ndarray or None
        (n_voxels, n_parameters) float32, limits of the central 95 % interval, from estimators with a posterior.
    log_evidence : ndarray or None
        (n_voxels,) float32, natural logarithm of the density of the voxel's measurements, from the same.
    variance : ndarray or None
        (n_voxels,) float32, noise variance of one raw measurement, estimated from each voxel's own residuals; `std` is
        proportional to its root. NaN where the noise was given; None from estimators that do not use residuals.
    """

    parameters: tuple[Parameter, ...]
    estimate: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]
    std_kind: str
    status: npt.NDArray[np.uint8]
    lower: npt.NDArray[np.float32] | None = None
    upper: npt.NDArray[np.float32] | None = None
    log_evidence: npt.NDArray[np.float32] | None = None
    variance: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        shape = (len(self.status), len(self.parameters))
        if self.estimate.shape != shape or self.std.shape != shape:
            raise ValueError(f"Estimate {self.estimate.shape} and std {self.std.shape} must both have shape {shape}.")

    def fill(self, index: slice | npt.NDArray[np.intp], part: ParameterMaps) -> None:
        """Write the maps of some voxels, from the same estimator, to their places."""
        for name in _BY_VOXEL:
            values = getattr(self, name)
            if values is not None:
                values[index] = getattr(part, name)

    def part(self, index: slice | npt.NDArray[np.intp]) -> Self:
        """Return the maps of some voxels."""
        found = {name: getattr(self, name) for name in _BY_VOXEL}
        return replace(self, **{name: values[index] for name, values in found.items() if values is not None})

    def counts(self) -> dict[str, int]:
        """Return the number of voxels per status name, for the statuses that occur."""
        values, counts = np.unique(self.status, return_counts=True)
        return {Status(value).name: int(count) for value, count in zip(values, counts, strict=True)}
