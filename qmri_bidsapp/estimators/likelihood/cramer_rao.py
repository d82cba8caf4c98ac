"""From a minimum to estimates, standard deviations and statuses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.estimators.likelihood.covariance import covariance_root, propagate, scale_columns
from qmri_bidsapp.estimators.likelihood.scaled import ScaledModel, Voxels
from qmri_bidsapp.estimators.likelihood.skewed_errors import error_along
from qmri_bidsapp.estimators.voxels import Solution
from qmri_bidsapp.solvers.cholesky import Triangle

#: (scaled (n, p), noise variance (n,), index (n,)) -> J (n, m, p) of the voxels `index`, with J^T J over the noise
#: variance the information on the scaled parameters.
Sensitivity = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def cramer_rao_solution(
    problem: ScaledModel,
    voxels: Voxels,
    scaled: torch.Tensor,
    variance: torch.Tensor,
    converged: torch.Tensor,
    sensitivity: Sensitivity | None = None,
) -> Solution:
    """Return estimates of all parameters and derived ones, with standard deviations from the information matrix.

    A parameter on a bound has no standard deviation; those of the others hold it fixed there, which is exact if it is
    a physical limit. Only bounds that the program drew mark a voxel. That of a skewed parameter is its expected error;
    see `error_along`.

    Parameters
    ----------
    problem : ScaledModel
    voxels : Voxels
    scaled : Tensor
        (n, n_parameters) estimates.
    variance : Tensor
        (n,) noise variance of one raw measurement, in the unit of `Voxels.target`.
    converged : Tensor
        (n,) bool, whether the minimum was reached.
    sensitivity : callable, optional
        See `Sensitivity`; the Jacobian of the signals, which is that of Gaussian noise, by default.
    """
    if sensitivity is None:
        sensitivity = _jacobian_of(problem, voxels)
    model = problem.model
    scaled = model.canonical(scaled * problem.scale) / problem.scale
    free, inside = problem.is_free(scaled), problem.is_inside(scaled)
    unit = problem.scale.double().expand(len(scaled), -1).clone()
    unit[:, :1] *= voxels.size.double().unsqueeze(-1)
    theta = model.with_covariates(scaled.double() * unit, voxels.covariates.double())
    spreads = []
    for index in problem.batches(len(scaled)):
        root = covariance_root(sensitivity(scaled[index], variance[index], index), variance[index], free[index])
        in_units = scale_columns(root, unit[index].unbind(-1))
        own, spread = propagate(model, theta[index], in_units, free[index], inside[index])
        for column in (i for i, p in enumerate(model.parameters) if p.is_skewed):
            error = _skewed_error(column, problem, sensitivity, scaled[index], variance[index], index, root)
            spread[:, column] = torch.where(free[index, column], error * unit[index, column], torch.nan)
        spreads.append((own, spread))
    estimate, std = (torch.cat(part) for part in zip(*spreads, strict=True))
    status = torch.where(converged, int(Status.OK), int(Status.NOT_CONVERGED))
    status = torch.where(inside.all(-1), status, int(Status.AT_BOUND))
    own = variance * voxels.size.square()
    if voxels.noise_variance is not None:
        own = torch.where(voxels.noise_variance.isfinite(), torch.nan, own)
    return Solution(estimate.cpu().numpy(), std.cpu().numpy(), status.cpu().numpy().astype(np.uint8), own.cpu().numpy())


def _jacobian_of(problem: ScaledModel, voxels: Voxels) -> Sensitivity:
    """Return the sensitivity with Gaussian noise: the Jacobian of the signals."""

    def sensitivity(scaled: torch.Tensor, variance: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return problem.signal(voxels, scaled, index)[1]

    return sensitivity


def _skewed_error(
    column: int,
    problem: ScaledModel,
    sensitivity: Sensitivity,
    scaled: torch.Tensor,
    variance: torch.Tensor,
    index: torch.Tensor,
    root: Triangle,
) -> torch.Tensor:
    """Return the expected error (n,) of a skewed parameter, scaled; see `error_along`."""
    free = problem.is_free(scaled)

    def spread_at(there: torch.Tensor) -> torch.Tensor:
        factor = covariance_root(sensitivity(there, variance, index), variance, free)
        return torch.stack([row[column].square() for row in factor[column:]]).sum(0).sqrt()

    return error_along(column, scaled, root, problem.bounds, spread_at)
