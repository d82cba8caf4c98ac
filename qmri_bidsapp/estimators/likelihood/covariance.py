"""Standard deviations from the curvature of the cost, and their propagation to derived parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.solvers.cholesky import Triangle, factorise, inverse_factor

#: Pivot of the scaled information matrix below which it is singular up to rounding: some combination of parameters is
#: undetermined.
PIVOT_TOLERANCE = 1e-7
#: Number of parameters up to which sums of products are faster than a batched product of matrices.
SUMS_UP_TO = 3


def covariance_root(jacobian: torch.Tensor, variance: torch.Tensor, free: torch.Tensor) -> Triangle:
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
    Triangle
        Elements (n_voxels,) float64; NaN where the information matrix is singular.
    """
    gram = _gram(jacobian.double())
    # Scaled to a diagonal of one; a parameter that is held fixed gets the row and column of the identity.
    norm = torch.stack([row[-1] for row in gram], dim=-1)
    usable = free & (norm > 0)
    scale = (torch.where(usable, norm, 1.0).rsqrt() * usable).unbind(-1)
    for i, row in enumerate(gram):
        for j in range(i):
            row[j] = row[j] * scale[i] * scale[j]
        row[i] = torch.ones_like(row[i])
    factor = factorise(gram)
    pivots = torch.stack([row[-1] for row in factor], dim=-1)
    singular = (pivots < PIVOT_TOLERANCE).any(-1) | (free & ~usable).any(-1)
    sigma = torch.where(singular, torch.nan, variance.double().sqrt())
    return scale_columns(inverse_factor(factor), [value * sigma for value in scale])


def scale_columns(triangle: Triangle, scale: Sequence[torch.Tensor]) -> Triangle:
    """Return a triangle with its columns multiplied by (n,) numbers."""
    return [[element * scale[column] for column, element in enumerate(row)] for row in triangle]


def _gram(jacobian: torch.Tensor) -> Triangle:
    """Return the lower triangle of J^T J."""
    n_parameters = jacobian.shape[-1]
    if n_parameters > SUMS_UP_TO:
        product = jacobian.mT @ jacobian
        return [[product[:, i, j] for j in range(i + 1)] for i in range(n_parameters)]
    columns = jacobian.unbind(-1)
    return [[(columns[i] * columns[j]).sum(-1) for j in range(i + 1)] for i in range(n_parameters)]


def propagate(
    model: SignalModel, theta: torch.Tensor, root: Triangle, free: torch.Tensor, inside: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the parameters with the derived ones, and standard deviations, by the delta method for the latter.

    Parameters
    ----------
    model : SignalModel
    theta : Tensor
        (n_voxels, n_parameters + n_covariates) float64, in each parameter's unit; covariates count as exact.
    root : Triangle
        R, with R^T R the covariance, in the same units; elements (n_voxels,) float64.
    free : Tensor
        (n_voxels, n_parameters) bool; a parameter on a bound has no standard deviation.
    inside : Tensor
        (n_voxels, n_parameters) bool; nor has one that is derived from a parameter outside, on a bound that the program
        drew. That of one derived from a parameter on its physical limit is the spread given this limit.

    Returns
    -------
    estimate, std : Tensor
        (n_voxels, n_parameters + n_derived) float64; the standard deviation is NaN where undefined.
    """
    n_parameters = len(model.parameters)
    variances = [
        torch.where(free[:, column], _sum([row[column].square() for row in root[column:]]), torch.nan)
        for column in range(n_parameters)
    ]
    if not model.derived:
        return theta[:, :n_parameters], torch.stack(variances, dim=-1).sqrt()
    derived, pull_back = torch.func.vjp(model.derive, theta)[:2]
    # Voxels do not influence each other, so that one backward pass per derived parameter serves all of them.
    for output in torch.eye(len(model.derived), dtype=theta.dtype, device=theta.device):
        slope = pull_back(output.expand_as(derived))[0][:, :n_parameters]
        columns = slope.unbind(-1)
        spread = _sum([_sum([r * c for r, c in zip(row, columns, strict=False)]).square() for row in root])
        depends_on_bound = ((slope != 0) & ~inside).any(-1)
        # A value that is cut off, such as a fractional anisotropy of one, does not move at all: no spread follows.
        undefined = depends_on_bound | ((slope == 0) | ~free).all(-1)
        variances.append(torch.where(undefined, torch.nan, spread))
    return torch.cat([theta[:, :n_parameters], derived], dim=1), torch.stack(variances, dim=-1).sqrt()


def _sum(terms: list[torch.Tensor]) -> torch.Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
