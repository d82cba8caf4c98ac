"""Training data of learned estimators: features and targets of simulated voxels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.noise import noise_kind
from qmri_bidsapp.core.prior import Prior, Uniform
from qmri_bidsapp.core.simulation import Noise, Simulation, reference
from qmri_bidsapp.estimators.learned.features import Features
from qmri_bidsapp.estimators.learned.targets import Targets
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.rotation import turn

#: Draws n examples: (n, n_features) features and (n, n_targets) targets.
Draw = Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]

#: Signal-to-noise ratios of the default noise.
SNR = (10.0, 100.0)
#: Share of the examples with unknown noise, so that prediction also works without it.
UNKNOWN_NOISE_SHARE = 0.5


def default_noise(acquisition: Acquisition) -> Noise:
    """Return the noise of a series as the app fits it.

    Magnitudes have Rician noise; signed images and diffusion series, whose noise floor the app removes, Gaussian noise.
    """
    return Noise(noise_kind(acquisition, floor_removed=acquisition.noise_floor_removed), SNR)


def simulate_voxels(
    model: SignalModel,
    acquisition: Acquisition,
    prior: Prior,
    noise: Noise,
    n: int,
    rng: np.random.Generator,
    device: str,
) -> Simulation:
    """Return n simulated voxels with amplitude one and tissue in random orientations."""
    parameters = np.insert(prior.draw(n, rng), 0, 1.0, axis=1)
    covariates = Uniform(model.covariates).draw(n, rng)
    theta = model.with_covariates(torch.tensor(parameters), torch.tensor(covariates))
    if model.directional:
        theta = turn(model, theta, torch.tensor(Rotation.random(n, random_state=rng).as_matrix()))
    return Simulation(theta.to(device), lambda part: model.signal(part, acquisition), acquisition, noise)


class Examples:
    """Features and targets of simulated voxels, with new noise in each draw.

    The first target is the logarithm of the amplitude over the reference, the others are positions.

    Parameters
    ----------
    model : SignalModel
    simulation : Simulation
    features : Features
    targets : Targets

    Attributes
    ----------
    truth : Tensor
        (n, n_truth); see `Targets.truth`.
    """

    def __init__(self, model: SignalModel, simulation: Simulation, features: Features, targets: Targets) -> None:
        self._simulation, self._features, self._targets = simulation, features, targets
        self._covariates = simulation.theta[:, len(model.parameters) :].float()
        self.truth = targets.truth(simulation.theta)

    def __len__(self) -> int:
        return len(self._simulation)

    def __call__(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return unscaled features and targets of n voxels, without those that have no reference."""
        index, signal, sigma = self._simulation.draw(n, generator)
        size = reference(signal, self._simulation.acquisition)
        # Pure noise may have no positive reference.
        seen = (size > 0).squeeze(1)
        is_known = torch.rand(n, 1, generator=generator, device=signal.device) >= UNKNOWN_NOISE_SHARE
        index, relative, size = index[seen], (signal / size)[seen], size[seen]
        noise = torch.where(is_known, sigma, torch.nan)[seen] / size
        frames = self._features.frames(relative)
        features = self._features(relative, frames, noise, self._covariates[index])
        return features, torch.cat([-size.log(), self._targets.positions(self.truth[index], frames)], dim=1)
