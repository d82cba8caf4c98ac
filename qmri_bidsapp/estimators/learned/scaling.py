"""Scaling of features and targets to mean zero and variance one."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from typing_extensions import Self

from qmri_bidsapp.estimators.learned.examples import Draw

#: Smallest standard deviation that is scaled to one, so that nearly constant features are not magnified.
MIN_STD = 1e-4
#: Standard deviation below which a feature is constant but for rounding, such as the mean signal without diffusion
#: weighting over itself. Features are of the order of one, in single precision.
ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class Scaling:
    """Means and standard deviations of the features and targets of a learned estimator.

    Attributes
    ----------
    input_mean, input_std : Tensor
        (n_features,); the standard deviation of a constant feature is infinite, so that its scaled value is zero.
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
        input_std, target_std = (values.std(0).clamp(min=MIN_STD) for values in (features, targets))
        # Trees would split on the rounding errors of a constant feature, and estimates would depend on the processor.
        input_std = torch.where(features.std(0) < ROUNDING, torch.inf, input_std)
        return cls(features.mean(0), input_std, targets.mean(0), target_std)

    @classmethod
    def take(cls, state: dict[str, torch.Tensor]) -> Self:
        """Return the scaling of `to_state`, removing its tensors from `state`."""
        return cls(*(state.pop(field.name) for field in fields(cls)))

    def to_state(self) -> dict[str, torch.Tensor]:
        """Return tensors to be stored with weights."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def features(self, features: torch.Tensor) -> torch.Tensor:
        """Return scaled features."""
        return (features - self.input_mean) / self.input_std

    def of(self, examples: Draw) -> Draw:
        """Return a function that draws scaled examples."""

        def draw(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            features, targets = examples(n, generator)
            return self.features(features), (targets - self.target_mean) / self.target_std

        return draw

    def in_units(self, mean: torch.Tensor, std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return unscaled means and standard deviations of targets, (n, n_targets) float64 each."""
        return (mean * self.target_std + self.target_mean).double(), (std * self.target_std).double()
