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


def standard_deviations(
    model: SignalModel, theta: torch.Tensor, covariance: torch.Tensor, free: torch.Tensor
) -> torch.Tensor:
    """Return standard deviations of the parameters and, by the delta method, of the derived parameters.

    Parameters
    ----------
    model : SignalModel
    theta : Tensor
        (n_voxels, n_parameters + n_covariates), in each parameter's unit; covariates count as exact.
    covariance : Tensor
        (n_voxels, n_parameters, n_parameters), in the same units.
    free : Tensor
        (n_voxels, n_parameters) bool; a parameter on a bound, and what derives from it, has no
        standard deviation.

    Returns
    -------
    Tensor
        (n_voxels, n_parameters + n_derived) float64; NaN where undefined.
    """
    if not len(theta):
        return theta.new_empty((0, len(model.parameters) + len(model.derived)), dtype=torch.float64)
    variance = torch.diagonal(covariance, dim1=1, dim2=2)
    variance = torch.where(free & (variance >= 0), variance, torch.nan)
    if model.derived:
        slope = torch.func.vmap(torch.func.jacrev(model.derive))(theta.double())[..., : len(model.parameters)]
        derived = (slope @ covariance @ slope.mT).diagonal(dim1=1, dim2=2)
        depends_on_bound = ((slope != 0) & ~free.unsqueeze(1)).any(-1)
        variance = torch.cat([variance, torch.where(depends_on_bound, torch.nan, derived)], dim=1)
    return variance.sqrt()
