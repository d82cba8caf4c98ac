"""SFCN (Peng et al. 2021): a small fully convolutional network that gives a distribution over the motion score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

#: Centres of the first and last bin are half a bin inside these, mm; scores lie between 0 and 4.
LOWEST, HIGHEST = -0.5, 4.5
N_BINS = 50


@dataclass(frozen=True)
class Architecture:
    """Size of the network.

    Attributes
    ----------
    channels : tuple of int
        Of the convolutions.
    dropout : float
        Before the last layer.
    """

    channels: tuple[int, ...] = (16, 32, 64, 128, 128, 32)
    dropout: float = 0.2

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments."""
        return asdict(self)


def bin_centres(like: Tensor) -> Tensor:
    """Return (bin,) mm, on the device of `like`."""
    width = (HIGHEST - LOWEST) / N_BINS
    return torch.linspace(LOWEST + width / 2, HIGHEST - width / 2, N_BINS, dtype=torch.float32, device=like.device)


def soft_labels(score: Tensor, sigma: float = 0.1) -> Tensor:
    """Return the probability of each bin for a Gaussian about the score; (n,) mm -> (n, bin)."""
    edges = torch.linspace(LOWEST, HIGHEST, N_BINS + 1, device=score.device)
    cumulated = torch.special.ndtr((edges - score[:, None]) / sigma)
    probability: Tensor = cumulated.diff(dim=1)
    return probability / probability.sum(1, keepdim=True)


def summarise(log_probability: Tensor, coverage: float = 0.9) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean and the central interval of distributions over the score.

    Parameters
    ----------
    log_probability : Tensor
        (n, bin).
    coverage : float
        Probability of the interval.

    Returns
    -------
    Tensor, Tensor, Tensor
        (n,) mean, lower and upper bound, mm.
    """
    probability = log_probability.exp()
    mean = (probability * bin_centres(probability)).sum(1)
    cumulated = nn.functional.pad(probability.cumsum(1), (1, 0)).contiguous()
    width = (HIGHEST - LOWEST) / N_BINS
    bounds = []
    for level in ((1 - coverage) / 2, (1 + coverage) / 2):
        wanted = torch.full((len(probability), 1), level, device=probability.device)
        upper = torch.searchsorted(cumulated, wanted).clamp(1, N_BINS)
        before, after = cumulated.gather(1, upper - 1), cumulated.gather(1, upper)
        part = (wanted - before) / (after - before).clamp_min(1e-12)
        bounds.append((LOWEST + width * (upper - 1 + part))[:, 0])
    return mean, bounds[0], bounds[1]


class Normalisation(nn.GroupNorm):
    """Each channel of an image less its mean, over the root-mean-square of all channels.

    It needs no batch. Features that are common to all voxels would hide the small ones that tell of motion, so means
    go; how strong channels are against each other tells of motion, so all are divided by the same number.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channel, x, y, z), same shape."""
        return super().forward(x - x.mean((2, 3, 4), keepdim=True))


class SFCN(nn.Module):
    """Convolution, normalisation, pooling, rectification, five times; then one value per bin.

    It differs from the published network in three ways. Its first convolution works on cells of 2 x 2 x 2 voxels, which
    takes the place of the first pooling: all voxels are seen at the cost of the coarser grid. Beside the image it sees
    the image's square root, in which ghosts in air stand out. Its convolutions are normalised within an image
    (`Normalisation`), since small batches give unsteady statistics; only the few features of the embedding are
    normalised over the batch, without which training hardly starts.
    """

    def __init__(self, architecture: Architecture | None = None) -> None:
        super().__init__()
        self.architecture = architecture or Architecture()
        widths = self.architecture.channels
        layers = [_block(2 * 8, widths[0], pool=False)]
        layers += [_block(before, after) for before, after in pairwise(widths[:-1])]
        self.features = nn.Sequential(*layers, nn.Conv3d(widths[-2], widths[-1], 1), nn.ReLU())
        self.standardise = nn.BatchNorm1d(widths[-1])
        self.head = nn.Sequential(nn.Dropout(self.architecture.dropout), nn.Linear(widths[-1], N_BINS))

    def embed(self, image: Tensor) -> Tensor:
        """Return the standardised means of the last features; (n, x, y, z) -> (n, feature)."""
        embedding: Tensor = self.standardise(self._pooled(image))
        return embedding

    @torch.no_grad()
    def calibrate(self, images: Sequence[Tensor]) -> None:
        """Set the statistics by which embeddings are standardised in use; sequence of (n, x, y, z)."""
        pooled = torch.cat([self._pooled(batch) for batch in images])
        variance, mean = torch.var_mean(pooled, dim=0)
        self.standardise.running_mean, self.standardise.running_var = mean, variance

    def _pooled(self, image: Tensor) -> Tensor:
        both = torch.stack([image, image.sqrt()], dim=1)
        pooled: Tensor = self.features(_cells(both)).float().mean((2, 3, 4))
        return pooled

    def forward(self, image: Tensor) -> Tensor:
        """Return the log-probability of every bin.

        Parameters
        ----------
        image : Tensor
            (n, x, y, z) scaled as by `score.scale`.

        Returns
        -------
        Tensor
            (n, bin).
        """
        return torch.log_softmax(self.head(self.embed(image)).float(), dim=1)


def _block(before: int, after: int, *, pool: bool = True) -> nn.Sequential:
    pooling = [nn.MaxPool3d(2)] if pool else []
    return nn.Sequential(nn.Conv3d(before, after, 3, padding=1, bias=False), Normalisation(after), *pooling, nn.ReLU())


def _cells(image: Tensor) -> Tensor:
    """Make channels of the voxels of each 2 x 2 x 2 cell; (n, c, 2x, 2y, 2z) -> (n, 8c, x, y, z)."""
    n, c, x, y, z = image.shape
    cells = image.reshape(n, c, x // 2, 2, y // 2, 2, z // 2, 2)
    return cells.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(n, 8 * c, x // 2, y // 2, z // 2)
