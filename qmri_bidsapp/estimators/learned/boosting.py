"""Gradient-boosted regression trees from the signals of a voxel to its parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from sklearn.ensemble import GradientBoostingRegressor
from typing_extensions import Self, Unpack

from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.estimators.learned.base import TRAINED_ON_SIMULATIONS, Common, LearnedEstimator
from qmri_bidsapp.estimators.learned.examples import Draw
from qmri_bidsapp.estimators.learned.trees import BLOCK_SIZE, MAX_FEATURES, TreeEnsemble, draw_seed, grow_variance
from qmri_bidsapp.models.base import SignalModel

#: Trees of each output grown on the same examples, and share of the examples for each of them.
PART = 10
SUBSAMPLE = 0.25


class GradientBoosting(LearnedEstimator):
    """A sum of small regression trees for each output, each tree grown on the residuals of those before it.

    New examples are drawn for every `PART` trees. The variance comes from `trees.grow_variance`.

    Parameters
    ----------
    model, device, prior, noise, weights, n_combinations
        As for `LearnedEstimator`.
    n_trees, max_depth : int
        Number of trees of each output, and their largest depth.
    learning_rate : float
        Factor of each tree's values.
    min_samples_leaf : int
        Fewest examples in a leaf.
    n_examples : int
        Number of examples for each `PART` trees.
    """

    name: ClassVar[str] = "boosting"
    title: ClassVar[str] = "Gradient-boosted trees, trained on simulated signals"
    reference: ClassVar[str] = "Friedman 2002, Comput Stat Data Anal 38:367"
    option_names: ClassVar[tuple[str, ...]] = (
        "n_trees",
        "max_depth",
        "learning_rate",
        "min_samples_leaf",
        "n_examples",
    )
    methods: ClassVar[str] = (
        "With the estimator boosting, estimates are those of gradient-boosted trees [@friedman] "
        + TRAINED_ON_SIMULATIONS
    )
    bibliography: ClassVar[str] = """
    @article{friedman,
      author = {Friedman JH},
      year = {2002},
      title = {Stochastic gradient boosting},
      journal = {Computational Statistics and Data Analysis},
      volume = {38},
      pages = {367-378},
      doi = {10.1016/S0167-9473(01)00065-2}
    }
    """

    def __init__(
        self,
        model: SignalModel,
        *,
        n_trees: int = 100,
        max_depth: int = 8,
        learning_rate: float = 0.1,
        min_samples_leaf: int = 20,
        n_examples: int = 2**16,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(model, **common)
        if min(n_trees, max_depth, min_samples_leaf) < 1 or n_examples * SUBSAMPLE < 1 or learning_rate <= 0:
            raise UsageError("Boosting needs a positive learning rate, and at least one tree, level and example.")
        self.n_trees = n_trees
        self.max_depth = max_depth
        self.learning_rate = learning_rate
        self.min_samples_leaf = min_samples_leaf
        self.n_examples = n_examples

    @classmethod
    def brief(cls, model: SignalModel, *, device: str = "cpu") -> Self:
        """Return an estimator with few small trees; see `TrainedEstimator.brief`."""
        return cls(model, device=device, n_trees=20, max_depth=5, n_examples=2**10, n_combinations=2**12)

    def _learn(
        self,
        examples: Draw,
        generator: torch.Generator,
        progress: Callable[[int, float], None] | None,
        checkpoint: Path | None,
    ) -> None:
        """Grow the trees; report their number for each output and the error on the last examples.

        There is no checkpoint, since scikit-learn stores its state only by pickle.
        """
        learners = [
            GradientBoostingRegressor(
                init="zero",
                n_estimators=PART,
                learning_rate=self.learning_rate,
                subsample=SUBSAMPLE,
                max_depth=self.max_depth,
                min_samples_leaf=self.min_samples_leaf,
                max_features=min(MAX_FEATURES, len(self._scaling.input_mean)),
                random_state=draw_seed(generator),
                warm_start=True,
            )
            for _ in self._scaling.target_mean
        ]
        for n_grown in range(0, self.n_trees, PART):
            features, targets = (part.cpu().numpy() for part in examples(self.n_examples, generator))
            for learner, target in zip(learners, targets.T, strict=True):
                learner.set_params(n_estimators=min(n_grown + PART, self.n_trees)).fit(features, target)
            if progress is not None:
                loss = sum(float(learner.train_score_[-1]) for learner in learners) / len(learners)
                progress(min(n_grown + PART, self.n_trees), loss)
        self._outputs = [
            TreeEnsemble.from_sklearn(learner.estimators_[:, 0], self.learning_rate).to(self.device)
            for learner in learners
        ]
        self._variance = grow_variance(self._mean, examples, int(SUBSAMPLE * self.n_examples), generator)

    def _mean(self, features: torch.Tensor) -> torch.Tensor:
        """Return the means; those of parameters, but not of the amplitude, are clamped to the bounds."""
        mean = torch.cat([output(features) for output in self._outputs], dim=1)
        low, high = ((bound - self._scaling.target_mean) / self._scaling.target_std for bound in (0.0, 1.0))
        mean[:, 1:] = mean[:, 1:].clamp(low[1:], high[1:])
        return mean

    def _block_size(self) -> int:
        return BLOCK_SIZE

    def _regress(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._mean(features), self._variance(features).sqrt()

    def _state(self) -> dict[str, torch.Tensor]:
        state = self._variance.state("variance.")
        for i, output in enumerate(self._outputs):
            state |= output.state(f"{i}.")
        return state

    def _restore(self, state: dict[str, torch.Tensor]) -> None:
        self._variance = TreeEnsemble.from_state(state, "variance.")
        self._outputs = [TreeEnsemble.from_state(state, f"{i}.") for i in range(len(self._scaling.target_mean))]
