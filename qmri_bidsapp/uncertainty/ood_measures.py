"""Measures of voxels by which they are compared with simulated ones.

They depend neither on the noise, which may be known only after all voxels, nor on the simulated voxels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

from qmri_bidsapp.core.acquisition import Acquisition, Diffusion
from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.core.simulation import reference
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.trained import TrainedEstimator
from qmri_bidsapp.estimators.voxels import covariates_of
from qmri_bidsapp.registry import PREFERENCE, load_estimators
from qmri_bidsapp.uncertainty.ood_directions import ShellFits, nominal_series
from qmri_bidsapp.uncertainty.simulation import SimulatedVoxels

Array = npt.NDArray[np.float64]
Values = npt.NDArray[np.float32]

#: Batch of voxels whose derivatives are computed.
BATCH = 16_384
#: Models with more parameters are not differentiated: their series are compared by direction.
MAX_PARAMETERS = 5
#: Lowest share of a measurement's variance that the fit leaves in its residual.
LEAST_FREEDOM = 0.05


@dataclass(frozen=True)
class Measures:
    """Measures of n voxels; NaN without an estimate or where a measure does not exist.

    Attributes
    ----------
    size : ndarray
        (n,) reference signal, see `core.simulation.reference`.
    misfit : ndarray
        (n,) weighted sum of squared residuals of the estimate, in the squared unit of the signals; for models of
        single directions, minus that of spherical harmonics, which leaves the lack of fit.
    directions : ndarray
        (n,) mean square of the residuals of spherical harmonics without the largest, in the same unit.
    outlier : ndarray
        (n,) largest studentised residual of a single image, in the unit of the signals.
    others : ndarray
        (n,) mean square of the residuals of the other images, in the squared unit of the signals.
    floor : ndarray
        (n,) log-likelihood ratio of Rician to Gaussian noise, see `ood_floor.floor_score`.
    network : ndarray
        (n,) misfit of a learned estimator minus that of least squares; not for models that turn with the tissue.
    at_bound : ndarray
        (n,) bool.
    features : ndarray
        (n, n_features) relative to the reference: signals or, for models that turn with the tissue, rotational
        invariants.
    """

    size: Values
    misfit: Values
    directions: Values
    outlier: Values
    others: Values
    floor: Values
    network: Values
    at_bound: npt.NDArray[np.bool_]
    features: Values

    def __len__(self) -> int:
        return len(self.size)

    def part(self, index: slice | npt.NDArray[Any]) -> Self:
        """Return some of the voxels."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def empty(self, n: int) -> Self:
        """Return uninitialised measures of n voxels, to be filled."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**{name: np.empty((n, *values.shape[1:]), values.dtype) for name, values in arrays.items()})

    def fill(self, index: npt.NDArray[np.intp], part: Self) -> None:
        """Set the voxels of these numbers."""
        for field in fields(self):
            getattr(self, field.name)[index] = getattr(part, field.name)

    def to_arrays(self, prefix: str = "") -> dict[str, npt.NDArray[Any]]:
        """Return all arrays by name."""
        return {f"{prefix}{field.name}": getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], prefix: str = "") -> Self:
        """Rebuild from the arrays of `to_arrays`; KeyError if one is missing."""
        return cls(**{field.name: arrays[f"{prefix}{field.name}"] for field in fields(cls)})


class Meter:
    """Measures voxels.

    Parameters
    ----------
    estimator : Estimator
        Fitted to the protocol.
    acquisition : Acquisition
        Protocol, as the model uses it.
    series : Acquisition, optional
        Protocol of the series whose powder averages the model takes. Without it, or if its directions determine fewer
        harmonics than evenly spread ones, there are no scores by direction.
    """

    def __init__(self, estimator: Estimator, acquisition: Acquisition, series: Acquisition | None = None) -> None:
        self._model, self._acquisition = estimator.model, acquisition
        nominal = nominal_series(self._model, acquisition)
        self._is_averaged = nominal is not None
        simulated = _fits(nominal[0] if nominal else acquisition)
        self._is_by_volume = simulated is not None and simulated.freedom > 0
        own = _fits(series) if self._is_averaged else simulated
        # Residuals of fits of other degrees are not comparable with the simulated ones.
        usable = self._is_by_volume and own is not None and simulated is not None and own.degrees == simulated.degrees
        self._fits = own if usable else None
        # Least squares of models of single directions would take too long.
        compared = isinstance(estimator, TrainedEstimator) and not self._model.directional
        self._classical = _classical(estimator, acquisition) if compared else None

    def measure(
        self,
        signals: npt.NDArray[np.floating],
        maps: ParameterMaps,
        *,
        series: npt.NDArray[np.floating] | None = None,
        covariates: npt.ArrayLike | None = None,
        white: npt.NDArray[np.floating] | None = None,
    ) -> Measures:
        """Measure voxels.

        Parameters
        ----------
        signals : ndarray
            (n, n_measurements), as the estimator was given them.
        maps : ParameterMaps
            Its estimates.
        series : ndarray, optional
            (n, n_volumes) whose powder averages the signals are.
        covariates : array_like, optional
            As the estimator was given them.
        white : ndarray, optional
            (n, n_measurements) where `signals` were denoised: with the noise that was removed. Distances are of these,
            since simulated voxels have white noise.
        """
        measured = torch.as_tensor(np.ascontiguousarray(signals), dtype=torch.float64)
        size = reference(measured, self._acquisition).numpy()
        theta = self._theta(maps, covariates)
        residual = self._residual(measured, theta)
        misfit = np.square(residual).sum(axis=1)
        found = np.isfinite(misfit)
        if measured.shape[1] <= len(self._model.parameters):
            # The fit is exact: residuals are rounding.
            misfit = np.zeros(len(misfit))
        noise = np.zeros(len(misfit))
        directions = outlier = others = floor = np.full(len(misfit), np.nan)
        by_volume = series if self._is_averaged else measured.numpy()
        if not self._is_by_volume:
            outlier, others = self._of_images(residual, theta)
        elif self._fits is not None and by_volume is not None:
            squares, outlier = self._fits.residuals(by_volume)
            directions = others = _without_largest(squares, outlier, self._fits.freedom)
            floor = self._fits.floor(by_volume, np.sqrt(directions))
            # Residuals of the shells are noise and bad volumes; the rest is misfit of the model.
            noise = noise if self._is_averaged else squares
        network = np.full(len(misfit), np.nan)
        if self._classical is not None:
            other = self._classical.predict(signals, covariates=covariates)
            least = np.square(self._residual(measured, self._theta(other, covariates))).sum(axis=1)
            network = np.square(residual).sum(axis=1) - least
        compared = np.asarray(signals if white is None else white)
        with np.errstate(invalid="ignore", divide="ignore"):
            features = self._features(compared) / np.where(size > 0, size, np.nan)
        columns = {"misfit": misfit - noise, "directions": directions, "network": network}
        columns |= {"outlier": outlier, "others": others, "floor": floor}
        return Measures(
            size=np.where(size[:, 0] > 0, size[:, 0], np.nan).astype(np.float32),
            at_bound=maps.status == Status.AT_BOUND,
            features=features.astype(np.float32),
            **{name: _as_float32(np.where(found, values, np.nan)) for name, values in columns.items()},
        )

    def _theta(self, maps: ParameterMaps, covariates: npt.ArrayLike | None) -> torch.Tensor:
        known = covariates_of(self._model, covariates, len(maps.estimate))
        return torch.tensor(np.hstack([maps.estimate[:, : len(self._model.parameters)], known]), dtype=torch.float64)

    def _residual(self, measured: torch.Tensor, theta: torch.Tensor) -> Array:
        """Return the residuals of voxels, scaled to the noise of one raw measurement."""
        with torch.no_grad():
            fitted = torch.cat([self._model.signal(part, self._acquisition) for part in torch.split(theta, BATCH)])
        return np.asarray((measured - fitted).numpy() * np.sqrt(self._acquisition.n_averages))

    def _of_images(self, residual: Array, theta: torch.Tensor) -> tuple[Array, Array]:
        """Return `Measures.outlier` and `Measures.others` by the residuals of the estimate."""
        freedom = residual.shape[1] - len(self._model.parameters)
        if len(self._model.parameters) > MAX_PARAMETERS or freedom < 1:
            nothing = np.full(len(residual), np.nan)
            return nothing, nothing
        left = np.concatenate([self._freedom(part) for part in torch.split(theta, BATCH)])
        largest = np.abs(residual / np.sqrt(np.maximum(left, LEAST_FREEDOM))).max(axis=1)
        return largest, _without_largest(np.square(residual).sum(axis=1), largest, freedom)

    def _freedom(self, theta: torch.Tensor) -> Array:
        """Return the share of each measurement's variance that a fit leaves in its residual, (n, n_measurements)."""
        usable = torch.isfinite(theta).all(1)
        with torch.no_grad():
            jacobian = self._model.jacobian(torch.where(usable[:, None], theta, 1.0), self._acquisition)
        weight = torch.tensor(self._acquisition.n_averages, dtype=theta.dtype).sqrt()
        jacobian = jacobian * weight[:, None]
        length = jacobian.norm(dim=1, keepdim=True).clamp(min=torch.finfo(theta.dtype).tiny)
        orthogonal, _ = torch.linalg.qr(torch.nan_to_num(jacobian / length))
        return np.asarray((1 - orthogonal.square().sum(-1)).numpy())

    def _features(self, signals: npt.NDArray[np.floating]) -> Array:
        if self._model.directional and self._fits is not None:
            return self._fits.features(signals)
        return np.asarray(signals, dtype=np.float64)


def _as_float32(values: Array) -> Values:
    """Return values clipped to the range of float32; those of failed fits may be beyond."""
    limit = float(np.finfo(np.float32).max)
    return np.clip(values, -limit, limit).astype(np.float32)


def _fits(series: Acquisition | None) -> ShellFits | None:
    """Return the fits of shells; None for powder averages and other series."""
    return ShellFits(series) if isinstance(series, Diffusion) else None


def _without_largest(squares: Array, largest: Array, freedom: int) -> Array:
    """Return the mean square of all residuals but the largest (Cook and Weisberg 1982, section 2.2)."""
    return np.asarray(np.maximum(squares - largest**2, 0) / max(freedom - 1, 1))


def measure(estimator: Estimator, acquisition: Acquisition, voxels: SimulatedVoxels) -> Measures:
    """Measure simulated voxels."""
    nominal = nominal_series(estimator.model, acquisition)
    meter = Meter(estimator, acquisition, None if nominal is None else nominal[0])
    return meter.measure(voxels.signals, voxels.maps, series=voxels.series, covariates=voxels.covariates)


def _classical(estimator: Estimator, acquisition: Acquisition) -> Estimator | None:
    """Return the preferred least-squares estimator, fitted; None if there is none."""
    known = load_estimators()
    names = [name for name in reversed(PREFERENCE) if name in known and known[name].supports(estimator.model)]
    return known[names[0]](estimator.model, device=estimator.device).fit(acquisition) if names else None
