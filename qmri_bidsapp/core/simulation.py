"""Simulated measurements: parameters from a prior, signals from a model, and noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from typing_extensions import Self

from qmri_bidsapp.core.acquisition import Acquisition, reference_limit
from qmri_bidsapp.core.noise import NoiseKind
from qmri_bidsapp.errors import PriorError

#: b-values that differ by no more from the lowest, s/mm2, are measurements of the same signal.
B0_TOLERANCE = 5.0


@dataclass(frozen=True)
class Noise:
    """Noise of one raw measurement.

    Attributes
    ----------
    kind : {"gaussian", "rician"}
        Rician: of the magnitude of a signal with such noise in the real and the imaginary part.
    snr : tuple of float
        Lowest and highest ratio of a voxel's reference signal (see `reference`) to the standard deviation; the
        logarithm is uniform between them. Infinite for no noise.
    """

    kind: NoiseKind
    snr: tuple[float, float]

    def __post_init__(self) -> None:
        if self.kind not in ("gaussian", "rician"):
            raise PriorError(f"Noise must be gaussian or rician, got {self.kind!r}.")
        if not 0 < self.snr[0] <= self.snr[1]:
            raise PriorError(f"The signal-to-noise ratio must be positive, the lower value first, got {self.snr}.")
        if math.isinf(self.snr[1]) and self.snr[0] != self.snr[1]:
            raise PriorError("A range of signal-to-noise ratios must be finite.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; an infinite ratio becomes text."""
        return {"kind": self.kind, "snr": [value if math.isfinite(value) else str(value) for value in self.snr]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the noise of `to_dict`."""
        low, high = map(float, data["snr"])
        return cls(data["kind"], (low, high))

    @property
    def is_fixed(self) -> bool:
        """Whether there is one signal-to-noise ratio only."""
        return self.snr[0] == self.snr[1]

    def levels(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Return (n, 1) standard deviations, relative to the reference signal."""
        if self.is_fixed:
            return torch.full((n, 1), 1 / self.snr[0], device=generator.device)
        low, high = (math.log(value) for value in self.snr)
        share = torch.rand(n, 1, generator=generator, device=generator.device)
        return torch.exp(-(low + (high - low) * share))

    def add(
        self, signal: torch.Tensor, sigma: torch.Tensor, acquisition: Acquisition, generator: torch.Generator
    ) -> torch.Tensor:
        """Return signals with noise, averaged as the protocol's measurements are.

        Parameters
        ----------
        signal : Tensor
            (n, n_measurements).
        sigma : Tensor
            (n, 1) standard deviation of the noise of one raw measurement, in the unit of the signal.
        acquisition : Acquisition
            All raw measurements that are averaged into one value have the same signal, as in Gyori et al. 2021
            (section 2.3.1).
        generator : torch.Generator
        """
        averages = acquisition.n_averages
        if self.kind == "gaussian":
            # The mean of n Gaussian values, without drawing them.
            weight = torch.tensor(averages, dtype=signal.dtype, device=signal.device).rsqrt()
            return signal + sigma * weight * _normal(signal, generator)
        columns = []
        for column, n in zip(signal.unbind(-1), averages, strict=True):
            raw = column.unsqueeze(-1).expand(-1, n)
            columns.append(torch.hypot(raw + sigma * _normal(raw, generator), sigma * _normal(raw, generator)).mean(-1))
        return torch.stack(columns, dim=-1)


def _normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def reference(signal: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
    """Return the reference by which a voxel's signals are divided, in training and in use, (n, 1).

    Parameters
    ----------
    signal : Tensor
        (n, n_measurements).
    acquisition : Acquisition

    Returns
    -------
    Tensor
        The mean over measurements without diffusion weighting where there are any, else the largest absolute value.
    """
    b_value = np.asarray(getattr(acquisition, "b_value", ()), dtype=float)
    if not len(b_value) or b_value.min() > reference_limit(b_value.tolist()):
        return signal.abs().amax(-1, keepdim=True)
    weight = np.asarray(acquisition.n_averages) * (b_value <= b_value.min() + B0_TOLERANCE)
    return signal @ torch.tensor(weight / weight.sum(), dtype=signal.dtype, device=signal.device).unsqueeze(-1)


class Simulation:
    """Noise-free signals of a prior; every draw adds new noise.

    Parameters
    ----------
    theta : Tensor
        (n, n_columns) float64, the argument of `signal`.
    signal : callable
        Takes (n, n_columns) parameters, returns (n, n_measurements) noise-free signals.
    acquisition : Acquisition
    noise : Noise

    Attributes
    ----------
    theta : Tensor
        As given.
    clean : Tensor
        (n, n_measurements) float32.
    """

    #: Batch size of the computation of signals.
    BATCH = 2**14

    def __init__(
        self,
        theta: torch.Tensor,
        signal: Callable[[torch.Tensor], torch.Tensor],
        acquisition: Acquisition,
        noise: Noise,
    ) -> None:
        self.theta, self.acquisition, self.noise = theta, acquisition, noise
        with torch.no_grad():
            clean = torch.cat([signal(part) for part in torch.split(theta, self.BATCH)])
            self.clean = clean.float()
            self._reference = reference(clean, acquisition).float()

    def __len__(self) -> int:
        return len(self.clean)

    def draw(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the index of n random voxels (n,), their noisy signals (n, n_measurements), and their noise (n, 1).

        The noise is the standard deviation of one raw measurement, in the unit of the signals.
        """
        index = torch.randint(len(self), (n,), generator=generator, device=self.clean.device)
        return index, *self.measure(index, generator)

    def measure(self, index: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return noisy signals and the noise of the given voxels; see `draw`."""
        sigma = self.noise.levels(len(index), generator) * self._reference[index]
        return self.noise.add(self.clean[index], sigma, self.acquisition, generator), sigma
