"""Standard deviations from the curvature of the cost, and their propagation to derived parameters."""

from __future__ import annotations

import torch

from qmri_bidsapp.estimators.cholesky import Triangle, factorise, inverse_factor
from qmri_bidsapp.models.base import SignalModel

#: Pivot of the scaled information matrix below which rounding decides: some combination of parameters is unknown.
PIVOT_TOLERANCE = 1e-7
#: Number of parameters up to which sums of products are faster than a batched product of matrices.
SUMS_UP_TO = 3


def covariance_root(jacobian: torch.Tensor, variance: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """Return R, with R^T R the Cramer-Rao covariance for Gaussian noise, variance * (J^T J)^-1.

    Parameters
    ----------
    jacobian : Tensor
        (n_voxels, n_measurements, n_parameters), weighted by the square root of the number of averages.
    variance : Tensor
        (n_voxels,) noise variance of one measurement.
    free : Tensor
        (n_voxels, n_parameters) bool; a parameter on a bound is held fixed and gets zeros.

    Returns
    -------
    Tensor
        (n_voxels, n_parameters, n_parameters) float64; NaN where the information matrix is singular.
    """
    gram = _gram(jacobian.double())
    # Scaled to a diagonal of one, which is also what stands for a parameter that is held fixed.
    norm = torch.stack([row[-1] for row in gram], dim=-1)
    usable = free & (norm > 0)
    scale = torch.where(usable, norm, 1.0).rsqrt() * usable
    for i, row in enumerate(gram):
        for j in range(i):
            row[j] = row[j] * scale[:, i] * scale[:, j]
        row[i] = torch.ones_like(row[i])
    factor = factorise(gram)
    root = inverse_factor(factor) * (scale * variance.double().sqrt().unsqueeze(-1)).unsqueeze(1)
    pivots = torch.stack([row[-1] for row in factor], dim=-1)
    singular = (pivots < PIVOT_TOLERANCE).any(-1) | (free & ~usable).any(-1)
    root[singular] = torch.nan
    return root


def _gram(jacobian: torch.Tensor) -> Triangle:
    """Return the lower triangle of J^T J."""
    n_parameters = jacobian.shape[-1]
    if n_parameters > SUMS_UP_TO:
        product = jacobian.mT @ jacobian
        return [[product[:, i, j] for j in range(i + 1)] for i in range(n_parameters)]
    columns = jacobian.unbind(-1)
    return [[(columns[i] * columns[j]).sum(-1) for j in range(i + 1)] for i in range(n_parameters)]


def propagate(
    model: SignalModel, theta: torch.Tensor, root: torch.Tensor, free: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the parameters with the derived ones, and standard deviations, by the delta method for the latter.

    Parameters
    ----------
    model : SignalModel
    theta : Tensor
        (n_voxels, n_parameters + n_covariates) float64, in each parameter's unit; covariates count as exact.
    root : Tensor
        (n_voxels, n_parameters, n_parameters) float64 R, with R^T R the covariance, in the same units.
    free : Tensor
        (n_voxels, n_parameters) bool; a parameter on a bound, and what derives from it, has no
        standard deviation.

    Returns
    -------
    estimate, std : Tensor
        (n_voxels, n_parameters + n_derived) float64; the standard deviation is NaN where undefined.
    """
    variance = torch.where(free, root.square().sum(1), torch.nan)
    n_parameters = len(model.parameters)
    if not model.derived:
        return theta[:, :n_parameters], variance.sqrt()
    derived, pull_back = torch.func.vjp(model.derive, theta)[:2]
    # Voxels do not influence each other, so that one backward pass per derived parameter serves all of them.
    outputs = torch.eye(len(model.derived), dtype=theta.dtype, device=theta.device)
    slope = torch.stack([pull_back(output.expand_as(derived))[0][:, :n_parameters] for output in outputs], dim=1)
    propagated = (root @ slope.mT).square().sum(1)
    depends_on_bound = ((slope != 0) & ~free.unsqueeze(1)).any(-1)
    # A value that is cut off, such as a fractional anisotropy of one, does not move at all: no spread follows.
    undefined = depends_on_bound | (slope == 0).all(-1)
    variance = torch.cat([variance, torch.where(undefined, torch.nan, propagated)], dim=1)
    return torch.cat([theta[:, :n_parameters], derived], dim=1), variance.sqrt()
