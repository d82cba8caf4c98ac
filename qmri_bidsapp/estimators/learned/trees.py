"""Ensembles of regression trees as plain tensors, grown by scikit-learn and evaluated in parallel on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from sklearn.tree import DecisionTreeRegressor
from typing_extensions import Self

from qmri_bidsapp.errors import WeightsError
from qmri_bidsapp.estimators.learned.examples import Draw

#: Batch size of the evaluation, voxels times trees: large enough to hide the cost of a call to torch, small enough for
#: the processor's cache.
WIDTH = 2**15
#: Voxels predicted together.
BLOCK_SIZE = 2**13
#: Batch size, examples, of loops over very many.
BATCH = 2**13
#: Largest number of features tried at each split.
MAX_FEATURES = 8
#: Number of trees of the variance, and fewest examples in their leaves.
N_VARIANCE_TREES = 20
MIN_VARIANCE_LEAF = 50
#: Ratio of the examples that determine the values of these leaves to those that one tree is grown on.
N_ERRORS = 8
#: Added to squared errors before their logarithm; targets have a variance of one.
TINY = 1e-10


class TreeEnsemble:
    """Sum of regression trees.

    The two children of a node are stored next to each other, the one for values up to the threshold first. The child
    of a leaf is the leaf itself, with an infinite threshold: all voxels take as many steps as the deepest tree has.

    Parameters
    ----------
    root : Tensor
        (n_trees,) int32, root node of each tree.
    child : Tensor
        (n_nodes,) int32, first child of each node.
    feature : Tensor
        (n_nodes,) int16, feature compared with the threshold.
    threshold : Tensor
        (n_nodes,) float32.
    value : Tensor
        (n_leaves, n_outputs) float32, values of the leaves in the order of the nodes.
    """

    FIELDS = ("root", "child", "feature", "threshold", "value")

    def __init__(
        self,
        root: torch.Tensor,
        child: torch.Tensor,
        feature: torch.Tensor,
        threshold: torch.Tensor,
        value: torch.Tensor,
    ) -> None:
        node = torch.arange(len(child), device=child.device)
        is_leaf = child == node
        first = child[~is_leaf]
        reached = torch.cat([root, first, first + 1])
        # Children come after their parent, and every node has one parent or is a root: every path ends.
        if not (bool((first > node[~is_leaf]).all()) and torch.equal(reached.sort().values, node.to(reached.dtype))):
            raise WeightsError("The nodes of a tree do not form a tree: train the weights again.")
        self.root, self.child, self.feature, self.threshold, self.value = root, child, feature, threshold, value
        self._column = feature.int()
        self._row = (is_leaf.cumsum(0) - 1).int()
        self._depth, level = 0, root
        while len(level := child[level[~is_leaf[level]]]):
            self._depth, level = self._depth + 1, torch.cat([level, level + 1])

    @classmethod
    def from_sklearn(cls, trees: Sequence[DecisionTreeRegressor], weight: float = 1.0) -> Self:
        """Return the sum of scikit-learn trees, times a weight."""
        parts = [_arrays(tree) for tree in trees]
        root = np.cumsum([0, *(len(part[0]) for part in parts[:-1])])
        child = np.concatenate([part[0] + first for part, first in zip(parts, root, strict=True)])
        feature, threshold, value = (np.concatenate([part[i] for part in parts]) for i in (1, 2, 3))
        return cls(
            torch.tensor(root, dtype=torch.int32),
            torch.tensor(child, dtype=torch.int32),
            torch.tensor(feature, dtype=torch.int16),
            torch.tensor(threshold),
            torch.tensor(weight * value, dtype=torch.float32),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the sum of ensembles."""
        first = np.cumsum([0, *(len(part.child) for part in parts[:-1])]).tolist()
        moved = {n: part.state() for n, part in zip(first, parts, strict=True)}
        places = (torch.cat([state[name] + n for n, state in moved.items()]) for name in cls.FIELDS[:2])
        return cls(*places, *(torch.cat([state[name] for state in moved.values()]) for name in cls.FIELDS[2:]))

    @classmethod
    def from_state(cls, state: dict[str, torch.Tensor], prefix: str = "") -> Self:
        """Return the ensemble from the tensors of `state`."""
        return cls(*(state[prefix + name] for name in cls.FIELDS))

    def state(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Return the tensors by name, with a prefix."""
        return {prefix + name: getattr(self, name) for name in self.FIELDS}

    def to(self, device: str | torch.device) -> Self:
        """Return the ensemble on a device."""
        return self.from_state({name: value.to(device) for name, value in self.state().items()})

    def replaced(self, value: torch.Tensor) -> Self:
        """Return the same trees with other leaf values."""
        return self.from_state({**self.state(), "value": value})

    def leaves(self, features: torch.Tensor, trees: slice = slice(None)) -> torch.Tensor:
        """Return (n_trees, n) int32 rows of `value`, for (n, n_features) float32 features."""
        n, n_features = features.shape
        flat, root = features.contiguous().view(-1), self.root[trees]
        first = torch.arange(n, dtype=torch.int32, device=flat.device).mul_(n_features).repeat(len(root))
        node = root.repeat_interleave(n)
        for _ in range(self._depth):
            seen = flat.index_select(0, self._column.index_select(0, node).add_(first))
            is_above = seen > self.threshold.index_select(0, node)
            node = self.child.index_select(0, node).add_(is_above)
        return self._row.index_select(0, node).view(len(root), n)

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Return (n, n_outputs) sums over the trees, for (n, n_features) float32 features."""
        n, n_outputs = len(features), self.value.shape[1]
        total = torch.zeros(n, n_outputs, device=features.device)
        for trees in self._blocks(n):
            leaf = self.leaves(features, trees)
            total += self.value.index_select(0, leaf.view(-1)).view(len(leaf), n, n_outputs).sum(0)
        return total

    def means(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """Return (n_leaves, n_columns) means of the values in each leaf; the overall mean for an empty leaf.

        Parameters
        ----------
        batches : iterable of tuple
            (n, n_features) features and (n, n_columns) values.
        """
        total: torch.Tensor | None = None
        for features, values in batches:
            # A column of ones counts.
            counted = torch.cat([values, torch.ones_like(values[:, :1])], dim=1)
            if total is None:
                total = counted.new_zeros(len(self.value), counted.shape[1])
            for trees in self._blocks(len(features)):
                leaf = self.leaves(features, trees)
                total.index_add_(0, leaf.view(-1), counted.repeat(len(leaf), 1))
        assert total is not None
        overall = total.sum(0, keepdim=True)
        total = torch.where(total[:, -1:] > 0, total, overall)
        return total[:, :-1] / total[:, -1:]

    def _blocks(self, n: int) -> list[slice]:
        size = max(1, WIDTH // max(1, n))
        return [slice(first, first + size) for first in range(0, len(self.root), size)]


def grow_variance(
    predict: Callable[[torch.Tensor], torch.Tensor], examples: Draw, n: int, generator: torch.Generator
) -> TreeEnsemble:
    """Return trees whose sum is the mean squared error of a prediction, for each output.

    They are grown on the logarithm of the squared errors, so that they resolve small errors as well as large ones.
    Their leaves hold the mean squared errors of other examples.

    Parameters
    ----------
    predict : callable
        Maps (n, n_features) features to (n, n_targets) means.
    examples : callable
    n : int
        Number of examples that each tree is grown on.
    generator : torch.Generator
    """

    def errors(n: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for first in range(0, n, BATCH):
            features, targets = examples(min(BATCH, n - first), generator)
            yield features, (predict(features) - targets).square()

    trees = []
    for _ in range(N_VARIANCE_TREES):
        features, squared = (torch.cat(part).cpu().numpy() for part in zip(*errors(n), strict=True))
        tree = DecisionTreeRegressor(
            min_samples_leaf=MIN_VARIANCE_LEAF,
            max_features=min(MAX_FEATURES, features.shape[1]),
            random_state=draw_seed(generator),
        )
        trees.append(tree.fit(features, np.log(squared + TINY)))
    ensemble = TreeEnsemble.from_sklearn(trees).to(generator.device)
    return ensemble.replaced(ensemble.means(errors(N_ERRORS * n)) / N_VARIANCE_TREES)


def draw_seed(generator: torch.Generator) -> int:
    """Return a seed for scikit-learn."""
    return int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))


def _arrays(tree: DecisionTreeRegressor) -> tuple[npt.NDArray[np.generic], ...]:
    """Return child, feature, threshold of the nodes and value of the leaves, as for `TreeEnsemble`.

    scikit-learn compares float32 features with float64 thresholds; rounding the latter down to float32 gives the same
    decisions.
    """
    fitted = tree.tree_
    parent, leaf = np.flatnonzero(fitted.children_left >= 0), np.flatnonzero(fitted.children_left < 0)
    place = np.zeros(fitted.node_count, dtype=np.int64)
    place[fitted.children_left[parent]] = 1 + 2 * np.arange(len(parent))
    place[fitted.children_right[parent]] = 2 + 2 * np.arange(len(parent))
    child = np.arange(fitted.node_count)
    child[place[parent]] = place[fitted.children_left[parent]]
    feature = np.zeros(fitted.node_count, dtype=np.int64)
    feature[place[parent]] = fitted.feature[parent]
    threshold = np.full(fitted.node_count, np.inf, dtype=np.float32)
    exact = fitted.threshold[parent]
    rounded = exact.astype(np.float32)
    threshold[place[parent]] = np.where(rounded > exact, np.nextafter(rounded, np.float32(-np.inf)), rounded)
    return child, feature, threshold, fitted.value[leaf[np.argsort(place[leaf])], :, 0]
