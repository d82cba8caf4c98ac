"""Distance of an embedding from those of the training images, as a p-value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.model_selection import GroupKFold
from torch import Tensor

from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.motion.displacement import Floats

N_FOLDS = 5
MEAN, PRECISION, DISTANCES = "familiarity.mean", "familiarity.precision", "familiarity.distances"


@dataclass(frozen=True, eq=False)
class Familiarity:
    """Mahalanobis distance of an embedding, and its cross-validated distribution over the training images.

    Attributes
    ----------
    mean : Tensor
        (feature,).
    precision : Tensor
        (feature, feature) inverse covariance.
    distances : Tensor
        (n,) squared distances, sorted.
    """

    mean: Tensor
    precision: Tensor
    distances: Tensor

    @classmethod
    def learn(cls, embeddings: Tensor, groups: Sequence[int]) -> Familiarity:
        """Estimate the distribution of embeddings.

        The distances are cross-validated: those of each fifth of the groups use mean and covariance of the others.
        Distances of the images behind the covariance would be too small, and the p-values of new images too low. The
        covariance is shrunk (Ledoit and Wolf 2004).

        Parameters
        ----------
        embeddings : Tensor
            (n, feature).
        groups : sequence of int
            (n,) head that the image shows.

        Raises
        ------
        UsageError
            If there are fewer groups than folds.
        """
        values, labels = embeddings.double().cpu().numpy(), np.asarray(groups)
        if len(np.unique(labels)) < N_FOLDS:
            raise UsageError(f"Statistics of embeddings need at least {N_FOLDS} heads, got {len(np.unique(labels))}.")
        distances = np.empty(len(values))
        for rest, part in GroupKFold(N_FOLDS).split(values, groups=labels):
            distances[part] = _squared_distance(values[part], *_statistics(values[rest]))
        mean, precision = _statistics(values)
        return cls(torch.from_numpy(mean), torch.from_numpy(precision), torch.from_numpy(np.sort(distances)))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Familiarity:
        """Return the instance that `to_tensors` stored."""
        return cls(*(tensors[name].double() for name in (MEAN, PRECISION, DISTANCES)))

    def to_tensors(self) -> dict[str, Tensor]:
        """Return tensors to be stored with weights."""
        return {MEAN: self.mean, PRECISION: self.precision, DISTANCES: self.distances}

    def p_value(self, embedding: Tensor) -> float:
        """Return the share of training images at least as far from the mean, (feature,) -> p; at least 1 / (n + 1)."""
        distance = _squared_distance(embedding.double().cpu().numpy()[None], self.mean.numpy(), self.precision.numpy())
        n = len(self.distances)
        if not np.isfinite(distance[0]):
            return 1 / (n + 1)
        return float((1 + n - np.searchsorted(self.distances.numpy(), distance[0])) / (n + 1))


def _statistics(values: Floats) -> tuple[Floats, Floats]:
    covariance, _ = ledoit_wolf(values)
    # A feature that never varies would make any other value infinitely far.
    floor = 1e-6 * max(float(np.trace(covariance)) / len(covariance), 1e-12)
    return values.mean(0), np.linalg.inv(covariance + floor * np.eye(len(covariance)))


def _squared_distance(values: Floats, mean: Floats, precision: Floats) -> Floats:
    centred = values - mean
    found: Floats = np.einsum("ni,ij,nj->n", centred, precision, centred)
    return found
