"""Protocols: what the scanner did, frozen, validated and hashable.

All times are in seconds, b-values in s/mm2, directions are unit vectors in the axes of the gradient table (BIDS/FSL
convention).
"""

from __future__ import annotations

from qmri_bidsapp.core.acquisition.base import Acquisition
from qmri_bidsapp.core.acquisition.diffusion import Diffusion, SphericalMean
from qmri_bidsapp.core.acquisition.relaxometry import (
    InversionRecovery,
    MultiEcho,
    SpoiledGradientEcho,
    T2Preparation,
)
from qmri_bidsapp.core.acquisition.shells import B0_THRESHOLD, reference_limit

__all__ = [
    "B0_THRESHOLD",
    "Acquisition",
    "Diffusion",
    "InversionRecovery",
    "MultiEcho",
    "SphericalMean",
    "SpoiledGradientEcho",
    "T2Preparation",
    "reference_limit",
]
