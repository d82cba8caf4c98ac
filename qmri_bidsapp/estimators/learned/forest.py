"""A random forest from the signals of a voxel to its parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sklearn.tree import DecisionTreeRegressor
from typing_extensions import Self, Unpack

from qmri_bidsapp.artifacts.atomic import atomic_file
from qmri_bidsapp.errors import UsageError, WeightsError
from qmri_bidsapp.estimators.learned.base import TRAINED_ON_SIMULATIONS, Common, LearnedEstimator
from qmri_bidsapp.estimators.learned.examples import Draw
from qmri_bidsapp.estimators.learned.trees import BLOCK_SIZE, MAX_FEATURES, TreeEnsemble, draw_seed, grow_variance
from qmri_bidsapp.models.base import SignalModel

#: Trees between checkpoints and reports of progress.
PART = 10
#: Least distance from a bound, relative to its range, in the logit.
EDGE = 1e-4
#: Number of examples for the error reported during training.
N_PROGRESS = 2**12


class RandomForest(LearnedEstimator):
    """Mean of regression trees of all parameters together, each grown on its own examples and noise.

    Trees average logits of the position within the bounds, as in Gyori et al. 2021, section 2.3.2. The estimate has
    less bias and more variance than a mean of positions, and cannot reach a bound.

    Examples are simulated in any number: each tree has its own, and no bootstrap sampling is needed. The variance comes
    from `trees.grow_variance`.

    Parameters
    ----------
    model, device, prior, noise, weights, n_combinations
        As for `LearnedEstimator`.
    n_trees, max_depth : int
        As in Gyori et al. 2021, section 2.3.2.
    min_samples_leaf : int
        Fewest examples in a leaf.
    n_examples : int
        Number of examples that each tree is grown on.
    """

    name: ClassVar[str] = "forest"
    title: ClassVar[str] = "Random forest, trained on simulated signals"
    reference: ClassVar[str] = "Gyori et al. 2021, Magn Reson Med 87:932; Breiman 2001, Mach Learn 45:5"
    option_names: ClassVar[tuple[str, ...]] = ("n_trees", "max_depth", "min_samples_leaf", "n_examples")
    methods: ClassVar[str] = (
        "With the estimator forest, estimates are those of a random forest [@gyori] " + TRAINED_ON_SIMULATIONS
    )

    def __init__(
        self,
        model: SignalModel,
        *,
        n_trees: int = 200,
        max_depth: int = 20,
        min_samples_leaf: int = 5,
        n_examples: int = 2**15,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(model, **common)
        if min(n_trees, max_depth, min_samples_leaf, n_examples) < 1:
            raise UsageError("A forest needs at least one tree, one level, and one example in a leaf and of a tree.")
        self.n_trees = n_trees
        self.max_depth = max_depth
        self.min_samples_leaf = min_samples_leaf
        self.n_examples = n_examples

    @classmethod
    def brief(cls, model: SignalModel, *, device: str = "cpu") -> Self:
        """Return an estimator with few small trees; see `TrainedEstimator.brief`."""
        return cls(model, device=device, n_trees=20, n_examples=2**10, n_combinations=2**12)

    def _learn(
        self,
        examples: Draw,
        generator: torch.Generator,
        progress: Callable[[int, float], None] | None,
        checkpoint: Path | None,
    ) -> None:
        """Grow the trees, from a checkpoint if it exists, and learn their errors; report those of the last trees."""
        unseen, targets = examples(N_PROGRESS, generator)
        forest = _resume(checkpoint, generator) if checkpoint and checkpoint.exists() else None
        while forest is None or len(forest.root) < self.n_trees:
            n_grown = len(forest.root) if forest else 0
            part = self._grow(min(PART, self.n_trees - n_grown), examples, generator)
            forest = TreeEnsemble.joined([forest, part]) if forest else part
            if progress is not None:
                progress(len(forest.root), float((self._mean(part, unseen) - targets).square().mean()))
            if checkpoint is not None:
                with atomic_file(checkpoint) as temporary:
                    save_file({**forest.state(), "generator": generator.get_state()}, temporary)
        assert forest is not None
        self._forest = forest
        self._variance = grow_variance(
            lambda features: self._mean(forest, features), examples, self.n_examples, generator
        )
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)

    def _grow(self, n: int, examples: Draw, generator: torch.Generator) -> TreeEnsemble:
        """Return n trees, each weighted by one over the number of all trees."""
        trees = []
        for _ in range(n):
            features, targets = examples(self.n_examples, generator)
            share = targets[:, 1:] * self._scaling.target_std[1:] + self._scaling.target_mean[1:]
            logits = share.clamp(EDGE, 1 - EDGE).logit()
            tree = DecisionTreeRegressor(
                max_depth=self.max_depth,
                min_samples_leaf=self.min_samples_leaf,
                max_features=min(MAX_FEATURES, features.shape[1]),
                random_state=draw_seed(generator),
            )
            trees.append(tree.fit(features.cpu().numpy(), torch.cat([targets[:, :1], logits], dim=1).cpu().numpy()))
        return TreeEnsemble.from_sklearn(trees, 1 / self.n_trees).to(self.device)

    def _mean(self, forest: TreeEnsemble, features: torch.Tensor) -> torch.Tensor:
        """Return the mean of all trees, or of a part of them, for scaled features."""
        mean = forest(features) * (self.n_trees / len(forest.root))
        share = (mean[:, 1:].sigmoid() - self._scaling.target_mean[1:]) / self._scaling.target_std[1:]
        return torch.cat([mean[:, :1], share], dim=1)

    def _block_size(self) -> int:
        return BLOCK_SIZE

    def _regress(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._mean(self._forest, features), self._variance(features).sqrt()

    def _state(self) -> dict[str, torch.Tensor]:
        return {**self._forest.state("forest."), **self._variance.state("variance.")}

    def _restore(self, state: dict[str, torch.Tensor]) -> None:
        self._forest = TreeEnsemble.from_state(state, "forest.")
        self._variance = TreeEnsemble.from_state(state, "variance.")


def _resume(checkpoint: Path, generator: torch.Generator) -> TreeEnsemble:
    """Return the trees of a checkpoint, and restore the state of the generator."""
    try:
        state = load_file(checkpoint)
        generator.set_state(state["generator"])
        return TreeEnsemble.from_state(state).to(generator.device)
    except (SafetensorError, KeyError, RuntimeError, IndexError) as error:
        raise WeightsError(f"{checkpoint} is no checkpoint of this training: delete it to start again.") from error
