"""Monomials of the principal components of features, for regression that is linear in its coefficients."""

from __future__ import annotations

import math

import torch
from torch import nn
from typing_extensions import Self

#: Largest number of principal components, and of monomials.
MAX_COMPONENTS = 6
MAX_MONOMIALS = 500
#: Smallest variance of a component; a smaller one is rounding.
LEAST_VARIANCE = 1e-5


class Monomials(nn.Module):
    """All monomials of principal components up to a degree, (n, n_features) -> (n, n_monomials), the first of them one.

    Components have unit variance in the training, and are clamped to their range there, since polynomials do not
    extrapolate. Monomials are divided by their root mean square.

    Parameters
    ----------
    n_features, n_components : int
    degree : int
        Largest number of factors of a monomial.
    """

    basis: torch.Tensor
    lowest: torch.Tensor
    highest: torch.Tensor
    size: torch.Tensor

    def __init__(self, n_features: int, n_components: int, degree: int) -> None:
        super().__init__()
        self.degree = degree
        self.register_buffer("basis", torch.zeros(n_features, n_components, dtype=torch.float64))
        self.register_buffer("lowest", torch.zeros(n_components, dtype=torch.float64))
        self.register_buffer("highest", torch.zeros(n_components, dtype=torch.float64))
        self.register_buffer("size", torch.ones(math.comb(n_components + degree, degree), dtype=torch.float64))

    @classmethod
    def of(cls, features: torch.Tensor, degree: int) -> Self:
        """Return the monomials for training features (n, n_features); of a lower degree if there would be too many."""
        features = features.double()
        variance, vectors = torch.linalg.eigh(features.T.cov())
        n_components = max(1, min(MAX_COMPONENTS, int((variance > LEAST_VARIANCE).sum())))
        while degree > 1 and math.comb(n_components + degree, degree) > MAX_MONOMIALS:
            degree -= 1
        found = cls(features.shape[1], n_components, degree).to(features.device)
        found.basis.copy_(vectors[:, -n_components:] / variance[-n_components:].clamp(min=LEAST_VARIANCE).sqrt())
        components = features @ found.basis
        found.lowest.copy_(components.amin(0))
        found.highest.copy_(components.amax(0))
        found.size.copy_(found(features).square().mean(0).sqrt().clamp(min=LEAST_VARIANCE))
        return found

    @torch.no_grad()
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the monomials in float64, without gradient."""
        components = (features.double() @ self.basis).clamp(self.lowest, self.highest).T.contiguous()
        n_components = len(components)
        block = torch.ones_like(components[:1])
        blocks, first = [block], [0] * n_components
        for _ in range(self.degree):
            # Products are ordered by their factors: those without a factor before i are at the end.
            parts = [component * block[start:] for component, start in zip(components, first, strict=True)]
            lengths = [len(part) for part in parts]
            first = [sum(lengths[:i]) for i in range(n_components)]
            block = torch.cat(parts)
            blocks.append(block)
        return (torch.cat(blocks) / self.size.unsqueeze(1)).T
