"""Standard deviations of parameters that the signal determines ever less along their range."""

from __future__ import annotations

from collections.abc import Callable

import torch

from qmri_bidsapp.solvers.cholesky import Triangle, dense
from qmri_bidsapp.solvers.problem import Bounds

#: Where standard deviations are computed, in those at the estimate: further on the side where they are larger.
NODES = (-3.0, 0.0, 3.0, 6.0)
#: Where the density is, in the same unit: errors are skewed, so that it reaches far to one side.
REACH, N_POINTS = 8.0, 65
#: Distance from the bounds, relative to the range, within which a signal may not determine the parameter at all.
INSET = 1e-3


def error_along(
    column: int, theta: torch.Tensor, root: Triangle, bounds: Bounds, spread_at: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    r"""Return the expected error of an estimate, given the measurements, root mean square, (n,).

    If the truth were :math:`\theta`, the estimate :math:`\hat\theta` would be normal around it with the standard
    deviation :math:`\sigma(\theta)` that holds there. The density of the truth under a uniform prior is then

    .. math:: p(\theta \mid \hat\theta) \propto \exp(-(\hat\theta - \theta)^2 / 2 \sigma^2(\theta)) / \sigma(\theta),

    within the bounds. Where :math:`\sigma` is the same everywhere its root mean square distance from
    :math:`\hat\theta` is :math:`\sigma`. The other parameters follow, along the ridge of the linearised density.

    Parameters
    ----------
    column : int
        Of the parameter.
    theta : Tensor
        (n, n_parameters) estimates.
    root : Triangle
        R, with R^T R their covariance; elements (n,) float64.
    bounds : Bounds
    spread_at : callable
        Returns the standard deviations of this parameter, (n,), at other values of the parameters.
    """
    factor = dense(root)
    own = factor[:, :, column]
    spread = own.square().sum(-1).sqrt()
    along = ((own.unsqueeze(1) @ factor).squeeze(1) / spread.unsqueeze(-1)).nan_to_num()
    margin = INSET * (bounds.upper - bounds.lower)
    inside = Bounds(bounds.lower + margin, bounds.upper - margin, bounds.is_periodic)
    estimate, places, sizes = theta[:, column].double(), [], []
    for step in NODES:
        there = inside.bring_back(theta + (step * along).to(theta)) if step else theta
        size = spread_at(there) if step else spread
        places.append(there[:, column].double())
        # Where the information matrix is singular, the value at the estimate stands in.
        sizes.append(torch.where(size.isfinite() & (size > 0), size, spread).log())
    lowest = (estimate - REACH * spread).clamp(min=float(bounds.lower[column])).unsqueeze(-1)
    highest = (estimate + REACH * spread).clamp(max=float(bounds.upper[column])).unsqueeze(-1)
    points = lowest + torch.linspace(0, 1, N_POINTS, dtype=torch.float64, device=theta.device) * (highest - lowest)
    logarithm = _interpolate(points, places, sizes)
    distance = points - estimate.unsqueeze(-1)
    exponent = -0.5 * (distance / logarithm.exp()).square() - logarithm
    density = torch.softmax(exponent, dim=-1)
    return (density * distance.square()).sum(-1).sqrt()


def _interpolate(points: torch.Tensor, places: list[torch.Tensor], values: list[torch.Tensor]) -> torch.Tensor:
    """Return (n, k) values at points (n, k), linear between those (n,) at rising places (n,), and constant beyond."""
    result = values[0].unsqueeze(-1).expand_as(points)
    for left, right, low, high in zip(places, places[1:], values, values[1:], strict=False):
        width = (right - left).unsqueeze(-1)
        part = ((points - left.unsqueeze(-1)) / width.clamp(min=torch.finfo(width.dtype).tiny)).clamp(0, 1)
        result = result + torch.where(width > 0, part * (high - low).unsqueeze(-1), 0.0)
    return result
