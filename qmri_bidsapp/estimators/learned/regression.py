"""From signals to estimates by a trained regression: features, scaling, blocks of voxels, targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.core.simulation import reference
from qmri_bidsapp.estimators.learned.features import Features
from qmri_bidsapp.estimators.learned.scaling import Scaling
from qmri_bidsapp.estimators.learned.targets import Targets
from qmri_bidsapp.models.base import SignalModel

#: Noise above that of the training, as a distance of the signal-to-noise ratio from the lowest of the training, from
#: which a voxel has no standard deviations. Below it, noise in the voxel's reference explains the difference.
SNR_MARGIN = 2.0

#: Maps (n, n_features) scaled features to mean and standard deviation, (n, n_targets) each, of scaled targets.
Regress = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, eq=False)
class VoxelRegression:
    """Estimates a model's parameters from signals, with a regression of scaled targets on scaled features.

    Attributes
    ----------
    model : SignalModel
    acquisition : Acquisition
    features : Features
    scaling : Scaling
    targets : Targets
    lowest_snr : float
        Of the training.
    regress : callable
        See `Regress`.
    block_size : int
        Voxels regressed together: intermediate values then stay in the cache.
    """

    model: SignalModel
    acquisition: Acquisition
    features: Features
    scaling: Scaling
    targets: Targets
    lowest_snr: float
    regress: Regress
    block_size: int

    def scaled(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of scaled targets for scaled features, block by block."""
        parts = [self.regress(part) for part in torch.split(features, self.block_size)]
        mean, std = (torch.cat(part) for part in zip(*parts, strict=True))
        return mean, std

    def estimate(
        self, signal: torch.Tensor, sigma: torch.Tensor, covariates: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return estimates and standard deviations, (n, n_parameters + n_derived) each, and statuses, (n,).

        Both are NaN without a positive reference. A posterior mean is on a bound only if the voxel is unlike those of
        the training; it has no standard deviation there.

        Parameters
        ----------
        signal : Tensor
            (n, n_measurements).
        sigma : Tensor
            (n, 1) standard deviation of the noise, in the unit of the signals; NaN where unknown.
        covariates : Tensor
            (n, n_covariates).
        """
        size = reference(signal, self.acquisition)
        size = torch.where(size > 0, size, torch.nan)
        relative = signal / size
        frames = self.features.frames(torch.where(torch.isfinite(size), relative, 0.0))
        features = self.features(relative, frames, sigma / size, covariates)
        mean, std = self.scaling.in_units(*self.scaled(self.scaling.features(features)))
        std = torch.where(sigma * (self.lowest_snr - SNR_MARGIN) > size, torch.nan, std)
        amplitude = (size * mean[:, :1].float().exp()).double()
        mean = torch.where(torch.isfinite(size), mean, 0.5)
        value, spread, is_free = self.targets.estimates(mean[:, 1:], std[:, 1:], frames)
        estimate = torch.cat([amplitude, value], dim=1)
        spread = torch.cat([std[:, :1] * amplitude, spread], dim=1)
        status = torch.where(is_free, int(Status.OK), int(Status.AT_BOUND)).to(torch.uint8)
        return estimate, spread, status

    @torch.no_grad()
    def of_probes(self, probes: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return estimates and standard deviations of probes, of all parameters but angles, in their units.

        Parameters
        ----------
        probes : mapping
            ``theta``, ``signal`` and ``sigma`` of the voxels stored with weights; see `weight_checks.check_probes`.
        """
        covariates = probes["theta"][:, len(self.model.parameters) :].float()
        estimate, std, _ = self.estimate(probes["signal"], probes["sigma"], covariates)
        everything = (*self.model.parameters, *self.model.derived)
        columns = [i for i, parameter in enumerate(everything) if not parameter.is_periodic]
        return estimate[:, columns], std[:, columns]
