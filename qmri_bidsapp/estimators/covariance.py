"""Standard deviations from the curvature of the cost, and their propagation to derived parameters."""

from __future__ import annotations

import torch

from qmri_bidsapp.models.base import SignalModel


def parameter_covariance(jacobian: torch.Tensor, variance: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """Return the Cramer-Rao covariance for Gaussian noise, variance * (J^T J)^-1.

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
    jacobian = jacobian.double() * free.unsqueeze(1)
    scale = jacobian.square().sum(1).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    scaled = jacobian / scale.unsqueeze(1)
    information = scaled.mT @ scaled + torch.diag_embed((~free).double())
    inverse, info = torch.linalg.inv_ex(information)
    inverse = inverse * free.unsqueeze(1) * free.unsqueeze(2)
    inverse[info > 0] = torch.nan
    covariance: torch.Tensor = variance.double()[:, None, None] * inverse / (scale.unsqueeze(1) * scale.unsqueeze(2))
    return covariance


def propagate(
    model: SignalModel, theta: torch.Tensor, covariance: torch.Tensor, free: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the parameters with the derived ones, and standard deviations, by the delta method for the latter.

    Parameters
    ----------
    model : SignalModel
    theta : Tensor
        (n_voxels, n_parameters + n_covariates) float64, in each parameter's unit; covariates count as exact.
    covariance : Tensor
        (n_voxels, n_parameters, n_parameters) float64, in the same units.
    free : Tensor
        (n_voxels, n_parameters) bool; a parameter on a bound, and what derives from it, has no
        standard deviation.

    Returns
    -------
    estimate, std : Tensor
        (n_voxels, n_parameters + n_derived) float64; the standard deviation is NaN where undefined.
    """
    variance = torch.diagonal(covariance, dim1=1, dim2=2)
    variance = torch.where(free & (variance >= 0), variance, torch.nan)
    n_parameters = len(model.parameters)
    if not model.derived:
        return theta[:, :n_parameters], variance.sqrt()
    derived, pull_back = torch.func.vjp(model.derive, theta)[:2]
    # Voxels do not influence each other, so that one backward pass per derived parameter serves all of them.
    outputs = torch.eye(len(model.derived), dtype=theta.dtype, device=theta.device)
    slope = torch.stack([pull_back(output.expand_as(derived))[0][:, :n_parameters] for output in outputs], dim=1)
    propagated = ((slope @ covariance) * slope).sum(-1)
    depends_on_bound = ((slope != 0) & ~free.unsqueeze(1)).any(-1)
    # A value that is cut off, such as a fractional anisotropy of one, does not move at all: no spread follows.
    undefined = depends_on_bound | (slope == 0).all(-1)
    variance = torch.cat([variance, torch.where(undefined, torch.nan, propagated)], dim=1)
    return torch.cat([theta[:, :n_parameters], derived], dim=1), variance.sqrt()
