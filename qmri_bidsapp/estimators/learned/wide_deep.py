"""A linear and a deep network in parallel, from the signals of a voxel to its parameters."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from typing_extensions import Unpack

from qmri_bidsapp.estimators.learned.base import TRAINED_ON_SIMULATIONS
from qmri_bidsapp.estimators.learned.examples import Draw
from qmri_bidsapp.estimators.learned.mlp import Deep, MultilayerPerceptron
from qmri_bidsapp.estimators.learned.monomials import Monomials
from qmri_bidsapp.estimators.learned.training import Training
from qmri_bidsapp.models.base import SignalModel

#: Number of examples for the principal components of the wide part.
N_EXAMPLES = 2**14


class WideAndDeep(nn.Module):
    """Sum of a deep network of the features and a linear one of their monomials."""

    def __init__(self, deep: nn.Module, monomials: Monomials, n_outputs: int) -> None:
        super().__init__()
        self.deep = deep
        self.monomials = monomials
        self.wide = nn.utils.skip_init(nn.Linear, len(monomials.size), n_outputs, bias=False)  # type: ignore[no-untyped-call]
        nn.init.zeros_(self.wide.weight)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (n, n_outputs) for (n, n_features)."""
        output: torch.Tensor = self.deep(features) + self.wide(self.monomials(features).float())
        return output


class WideDeep(MultilayerPerceptron):
    """The multilayer perceptron, in parallel with a linear network of products of the features.

    Both are trained together on the sum of their outputs (Cheng et al. 2016), which have the meaning of those of the
    perceptron. Products are those of the features' principal components. The wide part starts at zero.

    Parameters
    ----------
    model, device, prior, noise, weights, n_combinations, training, hidden, activation
        As for `MultilayerPerceptron`. The optimiser of `training` is that of the deep part; its steps and batch size
        apply to both.
    wide_optimiser : str
        Optimiser of the wide part, one of `training.OPTIMISERS`.
    degree : int
        Largest number of factors of a product.
    """

    name: ClassVar[str] = "wide-deep"
    title: ClassVar[str] = "Linear and deep network combined, trained on simulated signals"
    reference: ClassVar[str] = "Cheng et al. 2016, Proc DLRS:7"
    option_names: ClassVar[tuple[str, ...]] = (*MultilayerPerceptron.option_names, "wide_optimiser", "degree")
    methods: ClassVar[str] = (
        "With the estimator wide-deep, estimates are those of a linear model and a deep network combined [@cheng] "
        + TRAINED_ON_SIMULATIONS
    )
    bibliography: ClassVar[str] = """
    @article{cheng,
      author = {Cheng HT, Koc L, Harmsen J, others},
      year = {2016},
      title = {Wide and deep learning for recommender systems},
      journal = {Proceedings of the 1st Workshop on Deep Learning for Recommender Systems},
      volume = {1},
      pages = {7-10},
      doi = {10.1145/2988450.2988454}
    }
    """

    def __init__(
        self,
        model: SignalModel,
        *,
        wide_optimiser: str = "ftrl",
        degree: int = 2,
        **deep: Unpack[Deep],
    ) -> None:
        super().__init__(model, **deep)
        Training(optimiser=wide_optimiser)  # raises UsageError for an unknown one
        self.wide_optimiser = wide_optimiser
        self.degree = degree

    def _start(self, examples: Draw, generator: torch.Generator) -> nn.Module:
        deep = super()._start(examples, generator)
        return self._combine(deep, Monomials.of(examples(N_EXAMPLES, generator)[0], self.degree))

    def _rebuild(self, state: dict[str, torch.Tensor]) -> nn.Module:
        n_features, n_components = state["monomials.basis"].shape
        return self._combine(self._build(), Monomials(n_features, n_components, self.degree))

    def _combine(self, deep: nn.Module, monomials: Monomials) -> WideAndDeep:
        return WideAndDeep(deep, monomials, 2 * len(self._scaling.target_mean)).to(self.device)

    def _optimisers(self) -> tuple[torch.optim.Optimizer, ...]:
        network = self._network
        assert isinstance(network, WideAndDeep)
        wide = Training(optimiser=self.wide_optimiser)
        return self.training.optimise(network.deep.parameters()), wide.optimise(network.wide.parameters())
