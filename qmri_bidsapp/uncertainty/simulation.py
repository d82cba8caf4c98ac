"""Simulated voxels and their estimates, from which certificates are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.transform import Rotation
from typing_extensions import Self

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.core.prior import Uniform
from qmri_bidsapp.core.simulation import Noise, Simulation, reference
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.rotation import turn
from qmri_bidsapp.uncertainty.moderation import estimate
from qmri_bidsapp.uncertainty.ood_directions import fibre_series, nominal_series
from qmri_bidsapp.uncertainty.space import Space

Array = npt.NDArray[np.float64]

#: Percentiles of box plots.
PERCENTILES = (5, 25, 50, 75, 95)
#: Standard deviation, relative to the neutral value, of an unmeasured covariate: about that of the transmit field in
#: brains at 3 T.
UNMEASURED_SPREAD = 0.12
#: Lowest signal-to-noise ratio that is distinguished from zero.
LEAST_SNR = 0.1


@dataclass(frozen=True)
class Pairs:
    """True parameters and their estimates, of simulated voxels whose estimation did not fail.

    Attributes
    ----------
    truth, estimate, std : ndarray
        (n, n_quantities) float32, see `Space`; amplitudes relative to the true one.
    conditions : ndarray
        (n, 1 + n_covariates) float32, what else is known about a voxel: the logarithm of its signal-to-noise ratio, see
        `conditions_of`, and its covariates, unless they are neutral.
    at_bound : ndarray
        (n,) bool, whether an estimate lies on a bound.
    n_failed : int
        Voxels without a finite estimate, left out.
    """

    truth: npt.NDArray[np.float32]
    estimate: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]
    conditions: npt.NDArray[np.float32]
    at_bound: npt.NDArray[np.bool_]
    n_failed: int

    def __len__(self) -> int:
        return len(self.truth)

    def to_arrays(self, prefix: str) -> dict[str, npt.NDArray[Any]]:
        """Return all arrays by name."""
        return {f"{prefix}{field.name}": np.asarray(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> Self:
        """Rebuild from the arrays of `to_arrays`; KeyError if one is missing."""
        values: dict[str, Any] = {field.name: arrays[f"{prefix}{field.name}"] for field in fields(cls)}
        return cls(**{**values, "n_failed": int(values["n_failed"])})

    def boxes(self, space: Space) -> dict[str, Any]:
        """Return truth, mean and `PERCENTILES` of the estimates of every quantity, for voxels of one tissue."""
        if not len(self):
            return {"truth": {}, "estimates": {}}
        return {
            "truth": {p.name: float(self.truth[0, k]) for k, p in enumerate(space.parameters)},
            "estimates": {
                p.name: {
                    "mean": float(self.estimate[:, k].mean()),
                    "percentiles": np.percentile(self.estimate[:, k], PERCENTILES).tolist(),
                }
                for k, p in enumerate(space.parameters)
            },
        }


@dataclass(frozen=True)
class SimulatedVoxels:
    """Simulated voxels of amplitude one, with their estimates.

    Attributes
    ----------
    theta : Tensor
        (n, n_columns) float64 truths, see `SignalModel.signal`.
    signals : ndarray
        (n, n_measurements) float32, as the estimator was given them.
    noise_std : ndarray
        (n,) float32, of one raw measurement.
    covariates : ndarray or None
        (n, n_covariates); None where they are neutral.
    series : ndarray or None
        (n, n_volumes) float32 whose powder averages the signals are, see `ood_directions.nominal_series`.
    maps : ParameterMaps
    """

    theta: torch.Tensor
    signals: npt.NDArray[np.float32]
    noise_std: npt.NDArray[np.float32]
    covariates: Array | None
    series: npt.NDArray[np.float32] | None
    maps: ParameterMaps


def simulate_voxels(
    estimator: Estimator,
    acquisition: Acquisition,
    values: Array,
    noise: Noise,
    *,
    seed: int,
    noise_is_known: bool,
    covariates_are_known: bool,
    by_volume: bool = False,
) -> SimulatedVoxels:
    """Simulate voxels of amplitude one, and estimate them.

    Parameters
    ----------
    estimator : Estimator
        Fitted to the protocol.
    acquisition : Acquisition
        The protocol, as the model uses it.
    values : ndarray
        (n, n_parameters - 1) true parameters but the amplitude. Their directions are turned at random.
    noise : Noise
    seed : int
    noise_is_known, covariates_are_known
        See `certificate.certify`.
    by_volume : bool
        Whether powder averages are computed from simulated series, to include the effect of directions that are
        spread unevenly.
    """
    model, n = estimator.model, len(values)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    covariates = _covariates(model, n, rng, are_known=covariates_are_known)
    known = covariates if covariates_are_known else None
    parameters = torch.tensor(np.insert(values, 0, 1.0, axis=1))
    theta = model.with_covariates(parameters, None if covariates is None else torch.tensor(covariates))
    if model.directional:
        theta = turn(model, theta, torch.tensor(Rotation.random(n, random_state=rng).as_matrix()))
    nominal = nominal_series(model, acquisition) if by_volume else None
    series = None
    if nominal is None:
        simulation = Simulation(theta, lambda part: model.signal(part, acquisition), acquisition, noise)
        measured, sigma = simulation.measure(torch.arange(n), generator)
        signals = measured.numpy()
    else:
        protocol, matrix = nominal
        simulation = Simulation(theta, lambda part: fibre_series(model, part, protocol, rng), protocol, noise)
        measured, sigma = simulation.measure(torch.arange(n), generator)
        series = measured.numpy()
        signals = series @ matrix.astype(np.float32)
    noise_std = sigma.numpy().ravel()
    given = noise_std if noise_is_known else None
    maps = estimate(estimator, acquisition, signals, noise_std=given, covariates=known, noise_unit=noise_std)
    return SimulatedVoxels(theta, signals, noise_std, known, series, maps)


def pairs_of(model: SignalModel, acquisition: Acquisition, voxels: SimulatedVoxels) -> Pairs:
    """Return truths and estimates of simulated voxels."""
    theta, maps = voxels.theta, voxels.maps
    with torch.no_grad():
        own = model.canonical(theta[:, : len(model.parameters)])
        truth = torch.cat([own, model.derive(theta)], dim=1).float().numpy()
    columns = Space(model).columns
    estimate = maps.estimate[:, columns]
    found = np.isfinite(estimate).all(axis=1) & np.isfinite(truth[:, columns]).all(axis=1)
    size = reference(torch.from_numpy(voxels.signals), acquisition).numpy().ravel()
    return Pairs(
        truth=truth[found][:, columns],
        estimate=estimate[found],
        std=maps.std[found][:, columns],
        conditions=conditions_of(size / voxels.noise_std, voxels.covariates)[found],
        at_bound=maps.status[found] == Status.AT_BOUND,
        n_failed=int((~found).sum()),
    )


def simulate_pairs(
    estimator: Estimator,
    acquisition: Acquisition,
    values: Array,
    noise: Noise,
    *,
    seed: int,
    noise_is_known: bool,
    covariates_are_known: bool,
) -> Pairs:
    """Simulate voxels, and return truths and estimates; see `simulate_voxels`."""
    known = {"noise_is_known": noise_is_known, "covariates_are_known": covariates_are_known}
    voxels = simulate_voxels(estimator, acquisition, values, noise, seed=seed, **known)
    return pairs_of(estimator.model, acquisition, voxels)


def _covariates(model: SignalModel, n: int, rng: np.random.Generator, *, are_known: bool) -> Array | None:
    """Return (n, n_covariates): uniform over their bounds if measured, else spread around the neutral value."""
    if not model.covariates:
        return None
    if are_known:
        return Uniform(model.covariates).draw(n, rng)
    columns = [np.clip(p.scale * (1 + UNMEASURED_SPREAD * rng.standard_normal(n)), *p.bounds) for p in model.covariates]
    return np.stack(columns, axis=1)


def conditions_of(snr: npt.ArrayLike, covariates: npt.ArrayLike | None) -> npt.NDArray[np.float32]:
    """Return what is known about voxels beside their estimates, see `Pairs`.

    Parameters
    ----------
    snr : array_like
        (n,) or (n, 1) ratio of the voxel's measured reference signal (`core.simulation.reference`) to the noise of one
        raw measurement.
    covariates : array_like or None
        (n, n_covariates).
    """
    ratio = np.asarray(snr, dtype=np.float64).reshape(-1, 1)
    known = np.zeros((len(ratio), 0)) if covariates is None else np.asarray(covariates, dtype=np.float64)
    return np.hstack([np.log(np.maximum(ratio, LEAST_SNR)), known]).astype(np.float32)
