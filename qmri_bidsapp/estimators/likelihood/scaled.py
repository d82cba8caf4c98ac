"""A model and a protocol in scaled parameters: signals, residuals and Jacobians as the solvers take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.parameters import BOUND_TOLERANCE
from qmri_bidsapp.estimators.voxels import VoxelData
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.solvers.problem import Bounds, Evaluate

#: Values that are evaluated at a time: few enough for the processor's cache, enough that threads, which take turns in
#: the interpreter between operations, seldom wait for each other.
BATCH_VALUES = 2**19


class Voxels(NamedTuple):
    """Voxels that are solved together.

    Attributes
    ----------
    target : Tensor
        (n, n_measurements) signals, relative to the voxel's largest, times the square root of the number of averages.
    size : Tensor
        (n,) largest absolute signal.
    covariates : Tensor
        (n, n_covariates).
    noise_variance : Tensor or None
        (n,) variance of one raw measurement, in the unit of `target`; None where it is to be estimated.
    directions : Tensor or None
        (n, n_bundles, 3) directions to start from.
    """

    target: torch.Tensor
    size: torch.Tensor
    covariates: torch.Tensor
    noise_variance: torch.Tensor | None
    directions: torch.Tensor | None = None


class ScaledModel:
    """A model and a protocol, with parameters in units of their scales and signals relative to the largest one.

    Parameters
    ----------
    model : SignalModel
    acquisition : Acquisition
    device : str

    Attributes
    ----------
    scale : Tensor
        (n_parameters,).
    bounds : Bounds
        Of the scaled parameters.
    root_averages : Tensor
        (n_measurements,) square root of the number of averages, the weight of each residual.
    batch : int
        Voxels that are evaluated at a time.
    n_free : int
        Degrees of freedom of the residuals; not positive if there are too few measurements.
    """

    def __init__(self, model: SignalModel, acquisition: Acquisition, device: str) -> None:
        self.model, self.acquisition, self.device = model, acquisition, device
        parameters = model.parameters
        self.scale = self.tensor([p.scale for p in parameters])
        lower, upper = (self.tensor([p.bounds[i] for p in parameters]) / self.scale for i in (0, 1))
        self.bounds = Bounds(lower, upper, torch.tensor([p.is_periodic for p in parameters], device=device))
        lower, upper = (self.tensor([p.drawn_bounds[i] for p in parameters]) / self.scale for i in (0, 1))
        self._drawn = Bounds(lower, upper, self.bounds.is_periodic)
        self.root_averages = self.tensor(acquisition.n_averages).sqrt()
        self._weight = self.root_averages.unsqueeze(-1) * self.scale
        self.batch = max(1, BATCH_VALUES // acquisition.n_measurements)
        self.n_free = acquisition.n_measurements - len(parameters)

    def tensor(self, values: Sequence[float]) -> torch.Tensor:
        """Return values in the precision and on the device of the computation."""
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def voxels(self, data: VoxelData) -> Voxels:
        """Return voxels with relative signals."""
        signal = torch.as_tensor(data.signals, device=self.device)
        size = signal.abs().amax(-1)
        noise, directions = (
            None if values is None else torch.as_tensor(values, device=self.device)
            for values in (data.noise_std, data.directions)
        )
        return Voxels(
            target=signal / size.unsqueeze(-1) * self.root_averages,
            size=size,
            covariates=torch.as_tensor(data.covariates, device=self.device),
            noise_variance=None if noise is None else (noise / size).square(),
            directions=directions,
        )

    def signal(self, voxels: Voxels, scaled: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the predicted `Voxels.target` of the voxels `index`, (n, m), and its Jacobian, (n, m, p)."""
        jacobian = self.jacobian(scaled, voxels.covariates[index])
        # The signal is proportional to the amplitude, so that its derivative holds the signal as well.
        return jacobian[..., 0] * scaled[:, :1], jacobian

    def jacobian(self, scaled: torch.Tensor, covariates: torch.Tensor) -> torch.Tensor:
        """Return the derivatives (n, m, p) of weighted signals by scaled parameters (n, p)."""
        theta = self.model.with_covariates(scaled * self.scale, covariates)
        return self.model.jacobian(theta, self.acquisition) * self._weight

    def residuals(self, voxels: Voxels) -> Evaluate:
        """Return a function that gives residuals and Jacobians of these voxels."""

        def evaluate(scaled: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            signal, jacobian = self.signal(voxels, scaled, index)
            return signal - voxels.target[index], jacobian

        return evaluate

    def is_free(self, scaled: torch.Tensor) -> torch.Tensor:
        """Return which parameters (n, p) are off their bounds, bool."""
        return self.bounds.is_free(scaled, BOUND_TOLERANCE)

    def is_inside(self, scaled: torch.Tensor) -> torch.Tensor:
        """Return which parameters (n, p) are off the bounds that the program drew, see `Parameter.physical`, bool."""
        margin = BOUND_TOLERANCE * (self.bounds.upper - self.bounds.lower)
        lower, upper, is_periodic = self._drawn
        return is_periodic | ((scaled > lower + margin) & (scaled < upper - margin))

    def batches(self, n: int) -> tuple[torch.Tensor, ...]:
        """Return the numbers 0 to n - 1 in batches, small enough for the memory of a Jacobian."""
        return torch.split(torch.arange(n, device=self.device), self.batch)
