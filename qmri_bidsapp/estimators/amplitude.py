"""The amplitude of a signal of known shape, and the noise, integrated out."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Amplitude(NamedTuple):
    """Distribution of the amplitude for each of some signal shapes: normal, or Student's t of unknown noise.

    Attributes
    ----------
    mean, scale : Tensor
        (n, n_points).
    freedom : Tensor
        (n, 1) degrees of freedom; infinite where the noise is known.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    freedom: torch.Tensor

    def log_mass(self, low: float, high: float) -> torch.Tensor:
        """Return the logarithm of the mass between two limits, (n, n_points)."""
        below, up_to = (self._cumulative(limit) for limit in (low, high))
        return (up_to - below).log()

    def quantile(self, share: torch.Tensor, low: float, high: float) -> torch.Tensor:
        """Return the values (n, n_points) that divide the mass between the limits at shares (n_points,)."""
        below, up_to = (self._cumulative(limit) for limit in (low, high))
        # Near 1 single precision has no room for the tail.
        probability = torch.lerp(below, up_to, share).clamp(1e-6, 1 - 1e-6)
        deviate = _student_of_normal(torch.special.ndtri(probability), self.freedom)
        return (self.mean + self.scale * deviate).clamp(low, high)

    def _cumulative(self, limit: float) -> torch.Tensor:
        return torch.special.ndtr(_normal_of_student((limit - self.mean) / self.scale, self.freedom))


def _normal_of_student(t: torch.Tensor, freedom: torch.Tensor) -> torch.Tensor:
    """Return the normal deviate of the same probability as Student's t (Wallace 1959, Ann Math Stat 30:1121)."""
    size = (8 * freedom + 1) / (8 * freedom + 3) * (freedom * torch.log1p(t.square() / freedom)).sqrt()
    return torch.where(freedom.isinf(), t, torch.copysign(size, t))


def _student_of_normal(z: torch.Tensor, freedom: torch.Tensor) -> torch.Tensor:
    """Return the inverse of `_normal_of_student`."""
    size = (8 * freedom + 3) / (8 * freedom + 1) * z
    return torch.where(freedom.isinf(), z, torch.copysign((freedom * torch.expm1(size.square() / freedom)).sqrt(), z))
