"""SFCN (Peng et al. 2021) on planes: a small network that predicts a distribution over the motion score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

#: Outer edges of the first and last bin, mm; scores lie between 0 and 4.
LOWEST, HIGHEST = -0.5, 4.5
N_BINS = 50
#: Planes of the input: limits along each axis, in units of its length, and step between planes at inference.
MIDDLE, STEP = (0.15, 0.85), 3


@dataclass(frozen=True)
class Architecture:
    """Size of the network.

    Attributes
    ----------
    channels : tuple of int
        Channels of the convolutions of planes; each but the last halves the plane.
    hidden : int
        Width of the layer before the last.
    dropout : float
        Rate before the last layer.
    """

    channels: tuple[int, ...] = (16, 32, 64, 96, 96, 48)
    hidden: int = 96
    dropout: float = 0.2

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments."""
        return asdict(self)


def bin_centres(like: Tensor) -> Tensor:
    """Return (bin,) mm, on the device of `like`."""
    width = (HIGHEST - LOWEST) / N_BINS
    return torch.linspace(LOWEST + width / 2, HIGHEST - width / 2, N_BINS, dtype=torch.float32, device=like.device)


def soft_labels(score: Tensor, sigma: float = 0.2) -> Tensor:
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


class SFCN(nn.Module):
    """Five blocks of convolution, normalisation, pooling and rectification on planes; then one value per bin.

    The published network convolves the whole volume. This one convolves sagittal, coronal and axial planes: two of the
    three orientations contain the axis along which motion causes ghosts, and a plane has the full resolution of the
    volume at a hundredth of its cost. The embedding is the mean of the features of the planes of each orientation. A
    second channel is the square root of the image, in which ghosts in air stand out. The first convolution has a
    stride of two instead of pooling: at full size it would take half of the time.
    """

    def __init__(self, architecture: Architecture | None = None) -> None:
        super().__init__()
        self.architecture = architecture or Architecture()
        widths = self.architecture.channels
        first = [nn.Conv2d(2, widths[0], 6, stride=2, padding=2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
        layers = [nn.Sequential(*first), *(_block(before, after) for before, after in pairwise(widths[:-1]))]
        last = [nn.Conv2d(widths[-2], widths[-1], 1), nn.BatchNorm2d(widths[-1]), nn.ReLU()]
        self.features = nn.Sequential(*layers, *last)
        self.head = nn.Sequential(
            nn.Linear(3 * widths[-1], self.architecture.hidden),
            nn.ReLU(),
            nn.Dropout(self.architecture.dropout),
            nn.Linear(self.architecture.hidden, N_BINS),
        )

    def embed_planes(self, planes: Sequence[Tensor]) -> Tensor:
        """Return the mean features of each orientation; three tensors (n, plane, height, width) -> (n, feature)."""
        means = []
        for part in planes:
            flat = part.flatten(0, 1)
            both = torch.stack([flat, flat.sqrt()], dim=1).contiguous(memory_format=torch.channels_last)
            means.append(self.features(both).float().mean((2, 3)).unflatten(0, part.shape[:2]).mean(1))
        return torch.cat(means, dim=1)

    def hidden(self, features: Tensor) -> Tensor:
        """Return the layer before the last, (n, hidden), from embeddings."""
        hidden: Tensor = self.head[:-1](features)
        return hidden

    def from_hidden(self, hidden: Tensor) -> Tensor:
        """Return the log-probability of every bin, (n, bin), from the layer before the last."""
        return torch.log_softmax(self.head[-1](hidden).float(), dim=1)

    def from_features(self, features: Tensor) -> Tensor:
        """Return the log-probability of every bin, (n, bin), from embeddings."""
        return self.from_hidden(self.hidden(features))

    def embed(self, image: Tensor) -> Tensor:
        """Return the mean features of evenly spaced planes; (n, x, y, z) -> (n, feature)."""
        return self.embed_planes(planes_of(image))

    def forward(self, image: Tensor) -> Tensor:
        """Return the log-probability of every bin.

        Parameters
        ----------
        image : Tensor
            (n, x, y, z) from `network_input.prepare`.

        Returns
        -------
        Tensor
            (n, bin).
        """
        return self.from_features(self.embed(image))


def plane_range(n: int) -> tuple[int, int]:
    """Return the first plane of the input, and the one after the last, of an axis with `n` planes."""
    return round(MIDDLE[0] * n), round(MIDDLE[1] * n)


def planes_of(image: Tensor) -> list[Tensor]:
    """Return every `STEP`-th plane of each orientation; (n, x, y, z) -> three of (n, plane, height, width)."""
    planes = []
    for axis in range(3):
        first, end = plane_range(image.shape[axis + 1])
        planes.append(image.movedim(axis + 1, 1)[:, first:end:STEP])
    return planes


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.ReLU(),
    )
