"""Points at which integrals over a few parameters are evaluated: lattices, and boxes around a posterior."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

#: Multipliers of a lattice that are compared.
N_CANDIDATES = 128
#: Share of an interval at either end that must hold hardly any mass, unless a bound is there.
EDGE = 0.05
#: Points lie at sinh(t) / SPREAD, in units of the box, for even steps of t up to REACH, which leads to a distance of 1.
REACH = 3.0
SPREAD = math.sinh(REACH)

#: Half-width of the box in standard deviations.
HALF_WIDTH = 12.0
#: The posterior is resolved where this many points lie within so much of the largest log weight.
N_NEAR = 16
NEAR = 2.0
#: Added to standard deviations, as a share of the parameter's range: no box is without extent.
SMALLEST = 1e-6
#: By which factor the next box may be narrower.
SHRINK = 3.0


@cache
def korobov_lattice(n_points: int, n_axes: int) -> npt.NDArray[np.float64]:
    """Return (n_points, n_axes) points in the unit cube, a rank-1 lattice (Sloan and Joe 1994, section 4.3).

    Unlike a grid it has as many values along each axis as there are points, so that marginal distributions are as
    well resolved as the joint one. The multiplier of Korobov's form is the one of the least P2.

    Parameters
    ----------
    n_points : int
        A power of two.
    n_axes : int
    """
    multipliers = range(1, n_points // 2, max(2, n_points // (2 * N_CANDIDATES)))
    candidates = [_korobov(n_points, n_axes, multiplier) for multiplier in multipliers]
    return (min(candidates, key=_p2) + 0.5) / n_points


def _korobov(n_points: int, n_axes: int, multiplier: int) -> npt.NDArray[np.int64]:
    """Return the integers i (1, a, a^2, ...) mod n."""
    generator = [pow(multiplier, axis, n_points) for axis in range(n_axes)]
    return np.outer(np.arange(n_points), generator) % n_points


def _p2(lattice: npt.NDArray[np.int64]) -> float:
    """Return the worst error for periodic integrands whose Fourier coefficients fall with the square of frequency."""
    x = lattice / len(lattice)
    return float((1 + 2 * np.pi**2 * (x * x - x + 1 / 6)).prod(-1).mean() - 1)


class Box(NamedTuple):
    """Parts of the unit cube, one per voxel: sheared along the correlations of a posterior.

    Attributes
    ----------
    centre : Tensor
        (n, n_axes).
    root : Tensor
        (n, n_axes, n_axes), lower triangular. The box is centre + root z, with z from -1 to 1, as far as it lies in
        the cube.
    """

    centre: torch.Tensor
    root: torch.Tensor

    def select(self, index: torch.Tensor) -> Box:
        """Return the boxes of some voxels."""
        return Box(self.centre[index], self.root[index])


class Points(NamedTuple):
    """Points in boxes.

    Attributes
    ----------
    position : Tensor
        (n, n_points, n_axes) in the unit cube.
    log_volume : Tensor
        (n, n_points), of the part of the cube that the point stands for, times the number of points.
    at_edge : Tensor
        (n, n_points) bool: near a face of the box that is not one of the cube.
    """

    position: torch.Tensor
    log_volume: torch.Tensor
    at_edge: torch.Tensor


def whole_cube(n: int, like: torch.Tensor) -> Box:
    """Return the box that is the unit cube, n times, with the dtype, device and number of axes of `like`."""
    half = torch.full((n, like.shape[-1]), 0.5, dtype=like.dtype, device=like.device)
    return Box(half, torch.diag_embed(half))


def points_in(box: Box, unit: torch.Tensor) -> Points:
    """Map points of the unit cube, (n_points, n_axes), into boxes.

    Along each axis the interval of the box, which depends on the coordinates before, is cut at the cube's faces;
    integrands that end at a bound are then integrated by a midpoint rule up to that bound.
    """
    columns: list[torch.Tensor] = []
    relative: list[torch.Tensor] = []
    log_volume = torch.zeros_like(unit[:, 0])
    at_edge = torch.zeros_like(log_volume, dtype=torch.bool)
    for axis in range(unit.shape[-1]):
        half = box.root[:, axis, axis, None]
        middle = box.centre[:, axis, None]
        for before in range(axis):
            middle = middle + box.root[:, axis, before, None] * relative[before]
        # Even steps of the inverse hyperbolic sine: dense about the centre, and far into the tails.
        lower, upper = (((bound - middle) / half * SPREAD).asinh().clamp(-REACH, REACH) for bound in (0.0, 1.0))
        width, share = upper - lower, unit[:, axis]
        step = lower + share * width
        relative.append(step.sinh() / SPREAD)
        columns.append((middle + half * relative[-1]).clamp(0.0, 1.0))
        log_volume = log_volume + (half * width * step.cosh() / SPREAD).log()
        at_edge = at_edge | ((share < EDGE) & (lower <= -REACH)) | ((share > 1 - EDGE) & (upper >= REACH))
    return Points(torch.stack(columns, dim=-1), log_volume, at_edge)


def gap_of(log_weight: torch.Tensor) -> torch.Tensor:
    """Return (n,) by how much the best of log weights (n, n_points) exceeds the last of the best `N_NEAR`."""
    best = log_weight.topk(N_NEAR).values
    return best[:, 0] - best[:, -1]


def next_box(position: torch.Tensor, log_weight: torch.Tensor, freedom: float) -> Box:
    """Return the box around the posterior, estimated from points that may not resolve it.

    Where few points share the mass, weights are tempered: noise is taken as larger, by a factor in variance. The true
    covariance is then smaller by that factor if it is Gaussian; others are approached in steps. Student's t is
    taken as the Gaussian of the noise at its best point first, as its tails would hide the peak.
    """
    below = log_weight - log_weight.amax(-1, keepdim=True)
    gaussian = below if math.isinf(freedom) else -freedom / 2 * torch.expm1(-2 / freedom * below)
    temperature = (gap_of(gaussian) / NEAR).clamp(1.0, 1e30).unsqueeze(-1)
    if not math.isinf(freedom):
        gaussian = torch.where(temperature > 1, gaussian, below)
    weight = (gaussian / temperature).softmax(-1)
    centre, covariance = _moments(position, weight)
    covariance = covariance + SMALLEST**2 * torch.eye(centre.shape[-1], device=centre.device)
    root: torch.Tensor = torch.linalg.cholesky_ex(covariance)[0]
    return Box(centre, root * (HALF_WIDTH * temperature.rsqrt().clamp(min=1 / SHRINK)).unsqueeze(-1))


def _moments(position: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean (n, n_axes) and covariance (n, n_axes, n_axes) of positions, ([n, ]n_points, n_axes)."""
    if position.ndim == 2:
        # All voxels share the positions: the sums are one product.
        products = position.unsqueeze(1) * position.unsqueeze(2)
        mean = weight @ position
        square = (weight @ products.flatten(1)).reshape(-1, *products.shape[1:])
        return mean, square - mean.unsqueeze(1) * mean.unsqueeze(2)
    weight = weight.unsqueeze(-1)
    mean = (weight * position).sum(1)
    offset = position - mean.unsqueeze(1)
    return mean, (weight * offset).mT @ offset
