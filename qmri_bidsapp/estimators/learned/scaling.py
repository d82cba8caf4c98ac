"""Scaling of features and targets to mean zero and variance one."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from typing_extensions import Self

from qmri_bidsapp.estimators.learned.examples import Draw


@dataclass(frozen=True, eq=False)
class Scaling:
    """Means and standard deviations of what a learned estimator sees and tells.

    Attributes
    ----------
    input_mean, input_std : Tensor
        (n_features,).
    target_mean, target_std : Tensor
        (n_targets,).
    """

    input_mean: torch.Tensor
    input_std: torch.Tensor
    target_mean: torch.Tensor
    target_std: torch.Tensor

    @classmethod
    def learn(cls, features: torch.Tensor, targets: torch.Tensor) -> Self:
        """Return the scaling of examples, (n, n_features) and (n, n_targets)."""
        # What does not vary, such as a single measurement over itself, must not be magnified.
        input_std, target_std = (values.std(0).clamp(min=1e-4) for values in (features, targets))
        return cls(features.mean(0), input_std, targets.mean(0), target_std)

    @classmethod
    def take(cls, state: dict[str, torch.Tensor]) -> Self:
        """Take out of `state` what `to_state` put there."""
        return cls(*(state.pop(field.name) for field in fields(cls)))

    def to_state(self) -> dict[str, torch.Tensor]:
        """Return tensors to be stored with weights."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def features(self, features: torch.Tensor) -> torch.Tensor:
        """Return scaled features."""
        return (features - self.input_mean) / self.input_std

    def of(self, examples: Draw) -> Draw:
        """Return what draws scaled examples."""

        def draw(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            features, targets = examples(n, generator)
            return self.features(features), (targets - self.target_mean) / self.target_std

        return draw

    def in_units(self, mean: torch.Tensor, std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return means and standard deviations of targets, (n, n_targets) each, that are not scaled, in float64."""
        return (mean * self.target_std + self.target_mean).double(), (std * self.target_std).double()
