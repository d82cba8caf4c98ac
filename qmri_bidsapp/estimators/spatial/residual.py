"""Residual network from the images of one protocol to the maps."""

from __future__ import annotations

import torch
from torch import nn

from qmri_bidsapp.estimators.spatial.error_head import SliceNetwork
from qmri_bidsapp.estimators.spatial.recurrent import likelihood_images, log_noise
from qmri_bidsapp.estimators.spatial.slices import Coordinates, Slices
from qmri_bidsapp.models.base import SignalModel

#: Features of the twelve blocks. Sabidussi et al. 2021, section 4.4.3, state twelve blocks and list eleven: a second 40
#: is added to the descending part, to mirror the ascending one.
CHANNELS = (40, 40, 80, 80, 160, 320, 160, 80, 80, 40, 40, 6)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, plus the input, matched by a 1 x 1 convolution where needed."""

    def __init__(self, n_before: int, n_features: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(n_before, n_features, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_features),
            nn.ReLU(),
            nn.Conv2d(n_features, n_features, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_features),
        )
        self.skip = nn.Identity() if n_before == n_features else nn.Conv2d(n_before, n_features, 1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (n, n_features, height, width)."""
        return torch.relu(self.skip(features) + self.body(features))


class ResidualNetwork(SliceNetwork):
    """Maps the images of one protocol to normalised parameters (He et al. 2016; Sabidussi et al. 2021).

    After training, batch normalisation uses running statistics: a slice's maps do not depend on other slices.

    Parameters
    ----------
    model : SignalModel
    n_measurements : int
        Of the one protocol that the network is trained for.
    channels : tuple of int
        Features of the blocks.
    """

    def __init__(self, model: SignalModel, n_measurements: int, channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__()
        self.model = model
        self.n_known = sum(channels[-2:]) + 3 * len(model.parameters) + 1
        self.first = nn.Sequential(
            nn.Conv2d(n_measurements, channels[0], 1, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU()
        )
        before = (channels[0], *channels[:-1])
        self.blocks = nn.Sequential(*(ResidualBlock(a, b) for a, b in zip(before, channels, strict=True)))
        self.last = nn.Conv2d(channels[-1], len(model.parameters), 1)

    def forward(self, batch: list[Slices]) -> list[torch.Tensor]:
        """Return the normalised parameters, (n_slices, n_parameters, height, width), as the only step."""
        return [self._look(batch)[0]]

    def known(self, batch: list[Slices]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normalised parameters, and features that predict their errors, (n_slices, n_known, height, width).

        The latter are the features of the last two blocks, the parameters, their `recurrent.likelihood_features`, and
        the logarithm of the noise.
        """
        normal, features = self._look(batch)
        coordinates = Coordinates(self.model, str(normal.device))
        measured = likelihood_images(self.model, coordinates, batch, normal)
        return normal, torch.cat([*features, normal, measured, log_noise(batch)], dim=1)

    def _look(self, batch: list[Slices]) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Return the normalised parameters and the features of the last two blocks."""
        inside = torch.cat([series.inside for series in batch]).unsqueeze(1)
        images = torch.cat([series.signals for series in batch]).movedim(-1, 1) * inside
        before = self.blocks[:-1](self.first(images))
        features = self.blocks[-1](before)
        return self.last(features) * inside, (before, features)
