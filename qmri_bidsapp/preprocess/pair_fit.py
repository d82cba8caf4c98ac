"""Gauss-Newton fit of the displacement that makes two EPIs of opposite phase encoding alike.

A column of an image along the phase-encoding axis is what the true column became by transport, so that the signal up to
a place is kept: with C the sum of an image from the edge of the column up to a place, C(y + a u(y)) does not depend on
the distortion. The misfit of a voxel is the difference, between both images, of the signal that comes from between its
faces; the displacement u is defined on the faces (staggered grid), so that no signal is lost or made.

The stretching 1 + a du/dy is kept positive by a barrier (Burger, Modersitzki and Ruthotto 2013, SIAM J Sci Comput
35:B132).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qmri_bidsapp.preprocess.bending import Bending, Operator, difference, difference_transposed, solve

#: Misfit, relative to the signal, that counts 1 in the cost. Only its ratio to the weights of the barrier and of the
#: bending energy matters, and that one is chosen from the data.
MISFIT = 0.05
#: Largest change of length of a voxel, relative: the stretching stays within 0.05 and 1.95.
MAX_CHANGE = 0.95
#: Conjugate-gradient steps, and their tolerance, of one Gauss-Newton step.
N_SOLVE, SOLVE_TOLERANCE = 30, 0.05
#: Halvings of a step before it is given up.
N_HALVINGS = 8
#: Signal, relative to the head, above which a voxel counts as part of it.
HEAD = 0.3


class Column:
    """The sum of an image along its last axis, as a cubic spline with knots on the faces of voxels.

    Parameters
    ----------
    image : Tensor
        (x, z, y).
    """

    def __init__(self, image: torch.Tensor) -> None:
        self.n = n = image.shape[-1]
        total = torch.nn.functional.pad(image, (1, 0)).cumsum(-1)
        knots = torch.eye(n + 1, dtype=torch.float64)
        inner = slice(1, n)
        knots[inner] = (
            4 * knots[inner]
            + torch.eye(n + 1, dtype=torch.float64)[: n - 1]
            + torch.eye(n + 1, dtype=torch.float64)[2:]
        ) / 6
        weights = torch.linalg.inv(knots).T.to(image)
        inside = total @ weights
        self._weights = torch.cat(
            [2 * inside[..., :1] - inside[..., 1:2], inside, 2 * inside[..., -1:] - inside[..., -2:-1]], -1
        )

    def at(self, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sum and image at places in units of voxels from the first face; constant and zero beyond."""
        place = place.clamp(0, self.n)
        knot = place.floor().clamp(max=self.n - 1)
        after = place - knot
        before = 1 - after
        index = knot.long()
        values = (before**3 / 6, (4 - 6 * after**2 + 3 * after**3) / 6, (4 - 6 * before**2 + 3 * before**3) / 6)
        slopes = (-(before**2) / 2, (3 * after**2 - 4 * after) / 2, (4 * before - 3 * before**2) / 2)
        total, image = torch.zeros_like(place), torch.zeros_like(place)
        for offset, (value, slope) in enumerate(zip((*values, after**3 / 6), (*slopes, after**2 / 2), strict=True)):
            weight = self._weights.gather(-1, index + offset)
            total, image = total + value * weight, image + slope * weight
        return total, image


@dataclass(frozen=True)
class Misfit:
    """What two images are once a displacement is undone.

    Attributes
    ----------
    up, down : Tensor
        (x, z, y) corrected images.
    slope : Tensor
        (x, z, y + 1) derivative of the difference of the sums by the displacement, at the faces.
    inside : Tensor
        (x, z, y) 1 where both images were measured, 0 elsewhere.
    """

    up: torch.Tensor
    down: torch.Tensor
    slope: torch.Tensor
    inside: torch.Tensor

    @property
    def residual(self) -> torch.Tensor:
        """(x, z, y) difference, zero where one of both was not measured."""
        return (self.up - self.down) * self.inside

    @property
    def head(self) -> torch.Tensor:
        """(x, z, y) bool, where there is signal."""
        return (self.up + self.down) * self.inside > 2 * HEAD


class PairFit:
    """The cost of a displacement for a pair of images at one resolution.

    Parameters
    ----------
    up, down : Tensor
        (x, z, y) images, the phase-encoding axis last, head about 1.
    spacing : sequence of float
        (x, z, y) mm.
    factors : tuple of float
        Displacement of each image in a displacement of 1.
    weight : float
        Of the bending energy, mm^4 per squared voxel of displacement.
    """

    def __init__(
        self,
        up: torch.Tensor,
        down: torch.Tensor,
        spacing: Sequence[float],
        factors: tuple[float, float],
        weight: float,
    ) -> None:
        self.factors, self.weight = factors, weight
        self.spacing = tuple(spacing)
        self.n = up.shape[-1]
        self._faces = torch.arange(self.n + 1, device=up.device, dtype=up.dtype)
        self.down = down
        self._up, self._down = Column(up), Column(down)
        self.bending = Bending((*up.shape[:2], self.n + 1), spacing, up.device)
        self._limit = max(abs(factor) for factor in factors) / MAX_CHANGE

    @property
    def shape(self) -> tuple[int, ...]:
        """(x, z, y + 1) of the displacement."""
        return self.bending.shape

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.down.device

    def misfit(self, displacement: torch.Tensor) -> Misfit:
        """Undo a displacement, (x, z, y + 1) voxels."""
        up, down = (self._faces + factor * displacement for factor in self.factors)
        (total_up, image_up), (total_down, image_down) = self._up.at(up), self._down.at(down)
        measured = (up > 0) & (up < self.n) & (down > 0) & (down < self.n)
        return Misfit(
            difference(total_up, 2),
            difference(total_down, 2),
            self.factors[0] * image_up - self.factors[1] * image_down,
            (measured[..., 1:] & measured[..., :-1]).to(up.dtype),
        )

    def pushed(self, image: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
        """Return an image on the grid of `down`, (x, z, y), with the displacement of `down` undone."""
        return difference(Column(image).at(self._faces + self.factors[1] * displacement)[0], 2)

    def is_allowed(self, displacement: torch.Tensor) -> bool:
        """Return whether no voxel is stretched beyond the limit."""
        return bool((self._limit * difference(displacement, 2)).abs().max() < 1)

    def cost(self, displacement: torch.Tensor, inside: torch.Tensor) -> float:
        """Return the cost over given voxels; infinite where the stretching leaves its limits."""
        if not self.is_allowed(displacement):
            return math.inf
        misfit = self.misfit(displacement)
        change = self._limit * difference(displacement, 2)
        return float(
            ((misfit.up - misfit.down).square() * inside).sum(dtype=torch.float64) / MISFIT**2
            + self.weight * (displacement * self.bending.gradient(displacement)).sum(dtype=torch.float64)
            + (change**4 / (1 - change**2)).sum(dtype=torch.float64)
        )

    def system(self, displacement: torch.Tensor, misfit: Misfit) -> tuple[Operator, Operator]:
        """Return the Gauss-Newton matrix at a displacement as an operator, and an approximate inverse."""
        weight = misfit.inside / MISFIT**2
        change = self._limit * difference(displacement, 2)
        stiffness = 0.5 * self._limit**2 * (12 * change**2 - 6 * change**4 + 2 * change**6) / (1 - change**2) ** 3

        def operator(field: torch.Tensor) -> torch.Tensor:
            data = misfit.slope * difference_transposed(weight * difference(misfit.slope * field, 2), 2)
            barrier = difference_transposed(stiffness * difference(field, 2), 2)
            return data + barrier + self.weight * self.bending.gradient(field)

        average = float((misfit.slope[..., 1:].square() * weight).mean())
        return operator, self.bending.preconditioner(self.weight, average, 1e-4 * average)

    def gradient(self, displacement: torch.Tensor, misfit: Misfit) -> torch.Tensor:
        """Return half the gradient of the cost."""
        change = self._limit * difference(displacement, 2)
        barrier = 0.5 * self._limit * (4 * change**3 - 2 * change**5) / (1 - change**2) ** 2
        return (
            self.pulled(misfit.residual, misfit)
            + difference_transposed(barrier, 2)
            + self.weight * self.bending.gradient(displacement)
        )

    def pulled(self, residual: torch.Tensor, misfit: Misfit) -> torch.Tensor:
        """Return half the gradient of the misfit's part of the cost for a residual, (x, z, y)."""
        return misfit.slope * difference_transposed(residual / MISFIT**2, 2)

    def step(self, displacement: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Return a better displacement, and the largest change, voxels; 0 where no step lowers the cost."""
        misfit = self.misfit(displacement)
        change = self.solve(-self.gradient(displacement, misfit), displacement, misfit)
        before = self.cost(displacement, misfit.inside)
        for _ in range(N_HALVINGS):
            if self.cost(displacement + change, misfit.inside) < before:
                return displacement + change, float(change.abs().max())
            change = change / 2
        return displacement, 0.0

    def solve(self, right: torch.Tensor, displacement: torch.Tensor, misfit: Misfit) -> torch.Tensor:
        """Solve the Gauss-Newton system for a right-hand side."""
        operator, preconditioner = self.system(displacement, misfit)
        return solve(operator, right, preconditioner, n_steps=N_SOLVE, tolerance=SOLVE_TOLERANCE)

    def run(self, displacement: torch.Tensor, n_steps: int, tolerance: float) -> torch.Tensor:
        """Take steps until the largest change is below a tolerance, voxels."""
        for _ in range(n_steps):
            displacement, change = self.step(displacement)
            if change < tolerance:
                break
        return displacement
