"""Directions as polar angle and azimuth, in degrees, about the third voxel axis."""

from __future__ import annotations

import numpy as np
import torch


def unit_vector(angles: torch.Tensor) -> torch.Tensor:
    """Return (..., 3) unit vectors for (..., 2) polar angle and azimuth in degrees."""
    polar, azimuth = torch.deg2rad(angles).unbind(-1)
    sine = polar.sin()
    return torch.stack([sine * azimuth.cos(), sine * azimuth.sin(), polar.cos()], dim=-1)


def angles_of(vector: torch.Tensor) -> torch.Tensor:
    """Return (..., 2) polar angle, 0 to 90, and azimuth, -180 to 180 degrees, of the axis of (..., 3) vectors."""
    upper = torch.where(vector[..., 2:] < 0, -vector, vector)
    x, y, z = upper.unbind(-1)
    return torch.rad2deg(torch.stack([torch.atan2(torch.hypot(x, y), z), torch.atan2(y, x)], dim=-1))


def turns(angles: torch.Tensor) -> torch.Tensor:
    """Return the derivatives of `unit_vector` by both angles, (..., 2, 3), per degree."""
    polar, azimuth = torch.deg2rad(angles).unbind(-1)
    sine, cosine, cos_azimuth, sin_azimuth = polar.sin(), polar.cos(), azimuth.cos(), azimuth.sin()
    by_polar = torch.stack([cosine * cos_azimuth, cosine * sin_azimuth, -sine], dim=-1)
    by_azimuth = torch.stack([-sine * sin_azimuth, sine * cos_azimuth, torch.zeros_like(sine)], dim=-1)
    return torch.deg2rad(torch.stack([by_polar, by_azimuth], dim=-2))


def even_directions(n: int) -> tuple[tuple[float, ...], ...]:
    """Return n unit vectors spread evenly over half a sphere along a golden spiral (Vogel 1979)."""
    z = 1 - (np.arange(n) + 0.5) / n
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(n)
    radius = np.sqrt(1 - z**2)
    return tuple(map(tuple, np.column_stack([radius * np.cos(angle), radius * np.sin(angle), z]).tolist()))
