"""The amplitude of a signal of known shape, and the noise, integrated out."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class Amplitude(NamedTuple):
    """Distribution of the amplitude for each of some signal shapes: normal, or Student's t of unknown noise.

    Attributes
    ----------
    mean, scale : Tensor
        (n, n_points).
    freedom : float
        Degrees of freedom; infinite where the noise is known.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    freedom: float

    def log_mass(self, low: float, high: float) -> torch.Tensor:
        """Return the logarithm of the mass between two limits, (n, n_points)."""
        return (self._cumulative(high) - self._cumulative(low)).log()

    def quantile(self, share: torch.Tensor, low: float, high: float) -> torch.Tensor:
        """Return the values (n, n_points) that divide the mass between the limits at shares (n_points,)."""
        probability = torch.lerp(self._cumulative(low), self._cumulative(high), share)
        # Near 1 single precision has no room for the tail.
        deviate = _student_of_normal(torch.special.ndtri(probability.clamp(1e-6, 1 - 1e-6)), self.freedom)
        return (self.mean + self.scale * deviate).clamp(low, high)

    def _cumulative(self, limit: float) -> torch.Tensor:
        normal = _normal_of_student((limit - self.mean) / self.scale, self.freedom)
        cumulative: torch.Tensor = torch.special.ndtr(normal)
        return cumulative


def _normal_of_student(t: torch.Tensor, freedom: float) -> torch.Tensor:
    """Return the normal deviate of the same probability as Student's t (Wallace 1959, Ann Math Stat 30:1121)."""
    if math.isinf(freedom):
        return t
    size = (8 * freedom + 1) / (8 * freedom + 3) * (freedom * torch.log1p(t.square() / freedom)).sqrt()
    return torch.copysign(size, t)


def _student_of_normal(z: torch.Tensor, freedom: float) -> torch.Tensor:
    """Return the inverse of `_normal_of_student`."""
    if math.isinf(freedom):
        return z
    size = (8 * freedom + 3) / (8 * freedom + 1) * z
    return torch.copysign((freedom * torch.expm1(size.square() / freedom)).sqrt(), z)
