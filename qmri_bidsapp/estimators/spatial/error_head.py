"""Standard deviations of a spatial network's errors, from a small head on features of the frozen network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import nn

from qmri_bidsapp.estimators.spatial.slices import Slices
from qmri_bidsapp.models.base import SignalModel

#: Features of the hidden layers.
N_HIDDEN = 32
#: Largest size of an input, in its own standard deviations.
MAX_INPUT = 4.0
#: Limits of the logarithm of a standard deviation in normalised parameters.
LOG_RANGE = (-9.0, 3.0)
#: Half the width of a 95 % interval, in standard deviations.
HALF_WIDTH = 1.96
#: Prefix of the names of the head's tensors in a file of weights.
PREFIX = "error_head."
#: `std_kind` of maps from weights without a head.
NO_HEAD = "none: the weights do not provide it"


class SliceNetwork(nn.Module, ABC):
    """A network from series of slices to normalised parameters, with the features that predict its errors.

    Attributes
    ----------
    model : SignalModel
    n_known : int
        Number of features of `known`.
    """

    model: SignalModel
    n_known: int

    @abstractmethod
    def forward(self, batch: list[Slices]) -> list[torch.Tensor]:
        """Return the normalised parameters after every step, (n_slices, n_parameters, height, width) each."""

    @abstractmethod
    def known(self, batch: list[Slices]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last normalised parameters, and features that predict their errors, (n_slices, n_known, ...)."""


class ErrorHead(nn.Module):
    """Estimates the standard deviations of each voxel's errors from `SliceNetwork.known` of the same voxel.

    Parameters
    ----------
    n_known : int
        Number of features.
    n_parameters : int

    Attributes
    ----------
    input_mean, input_std : Tensor
        (n_known,) of the features.
    factor : Tensor
        (n_parameters,) factors of the standard deviations, calibrated so that 95 % intervals cover 95 %.
    lowest_snr : Tensor
        () lowest ratio of `brightest` to the noise in the training.
    """

    input_mean: torch.Tensor
    input_std: torch.Tensor
    factor: torch.Tensor
    lowest_snr: torch.Tensor

    def __init__(self, n_known: int, n_parameters: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(n_known, N_HIDDEN, 1),
            nn.SiLU(),
            nn.Conv2d(N_HIDDEN, N_HIDDEN, 1),
            nn.SiLU(),
            nn.Conv2d(N_HIDDEN, n_parameters, 1),
        )
        self.register_buffer("input_mean", torch.zeros(n_known))
        self.register_buffer("input_std", torch.ones(n_known))
        self.register_buffer("factor", torch.ones(n_parameters))
        self.register_buffer("lowest_snr", torch.tensor(0.0))

    def forward(self, known: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the standard deviations of normalised parameters, (n, n_parameters, height, width).

        `factor` is not included.
        """
        mean, std = (values.view(-1, 1, 1) for values in (self.input_mean, self.input_std))
        log_std: torch.Tensor = self.layers(((known - mean) / std).clamp(-MAX_INPUT, MAX_INPUT))
        return log_std.clamp(*LOG_RANGE)

    def std(self, known: torch.Tensor) -> torch.Tensor:
        """Return the standard deviations of normalised parameters, (n, n_parameters, height, width)."""
        std: torch.Tensor = self(known).exp() * self.factor.view(-1, 1, 1)
        return std


def brightest(series: Slices, *, per_slice: bool) -> torch.Tensor:
    """Return the root mean square signal of the brightest image, corrected for the power of the noise.

    Parameters
    ----------
    series : Slices
    per_slice : bool
        Whether to return a value for each slice, (n_slices,), or one for all, ().
    """
    start = int(per_slice)
    inside = series.inside.flatten(start)
    number = inside.sum(-1).clamp(min=1)
    # Image by image, to avoid a second copy of the whole series.
    power = [(image.flatten(start).square() * inside).sum(-1) / number for image in series.signals.unbind(-1)]
    # The median, so that a few voxels with a large stated noise do not determine the value of all.
    noise = series.noise_std.expand(series.inside.shape).where(series.inside, torch.nan).flatten(start).nanmedian(-1)
    floor = noise.values.square() * (1 + series.is_rician)
    return (torch.stack(power).amax(0) - floor).clamp(min=0).sqrt()


def join_head(network: nn.Module, head: ErrorHead) -> dict[str, torch.Tensor]:
    """Return the tensors of a network and its head for one file."""
    return {**network.state_dict(), **{f"{PREFIX}{name}": value for name, value in head.state_dict().items()}}


def split_head(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Split the tensors of `join_head` into those of the network and those of its head, which may be none."""
    head = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
    return {name: value for name, value in tensors.items() if not name.startswith(PREFIX)}, head
