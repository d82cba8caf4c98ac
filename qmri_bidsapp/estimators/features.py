"""What a learned estimator sees of a voxel."""

from __future__ import annotations

import math

import torch

from qmri_bidsapp.core.simulation import Noise


def features_of(
    signal: torch.Tensor, size: torch.Tensor, noise_std: torch.Tensor, covariates: torch.Tensor, noise: Noise
) -> torch.Tensor:
    """Return (n, n_features): relative signals, covariates and, where noise varies, its logarithm, if known.

    Parameters
    ----------
    signal : Tensor
        (n, n_measurements).
    size : Tensor
        (n, 1) reference that they are divided by.
    noise_std : Tensor
        (n, 1) standard deviation of the noise over the reference, NaN where it is not known.
    covariates : Tensor
        (n, n_covariates).
    noise : Noise
        That of the training.
    """
    parts = [signal / size, covariates]
    if not noise.is_fixed:
        low, high = (math.log(value) for value in noise.snr)
        level = (-(noise_std.log()) - low) / (high - low)
        known = torch.isfinite(level)
        parts += [torch.where(known, level.clamp(0, 1), 0.5), known.float()]
    return torch.cat(parts, dim=1)
