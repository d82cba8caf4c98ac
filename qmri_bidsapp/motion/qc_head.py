"""A lab's own quality grades from the embedding of the motion network, with few labels.

The grades are ordinal: a network with one hidden layer has K - 1 outputs, the probabilities that the grade is above
each grade but the last (Frank and Hall 2001). All grades have the same weight, so that rare bad ones count.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neural_network import MLPClassifier

from qmri_bidsapp.artifacts.weights import load_weights, save_weights, sha256_of
from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.motion.displacement import Floats

#: Hidden units, and strength of the L2 penalty: labels are few.
HIDDEN, ALPHA = 16, 1.0
MAX_FOLDS = 5
MAX_ITERATIONS = 500


@dataclass(frozen=True, eq=False)
class QualityHead:
    """A trained network in plain arrays.

    Attributes
    ----------
    grades : tuple of float
        Ascending.
    mean, scale : ndarray
        (feature,) mean and standard deviation that embeddings are standardised with.
    weights, offsets : tuple of ndarray
        Of the hidden layer, (feature, hidden) and (hidden,), and of the output, (hidden, K - 1) and (K - 1,).
    sha256 : str
        Of the file of weights; empty before it is saved.
    """

    grades: tuple[float, ...]
    mean: Floats
    scale: Floats
    weights: tuple[Floats, Floats]
    offsets: tuple[Floats, Floats]
    sha256: str = ""

    @classmethod
    def learn(cls, embeddings: Floats, grades: Floats, *, seed: int = 0) -> QualityHead:
        """Train on (n, feature) embeddings and (n,) grades.

        Raises
        ------
        UsageError
            If there are fewer than two grades.
        """
        known = np.unique(grades)
        if len(known) < 2:
            raise UsageError(f"A quality-control head needs at least two grades, got {len(known)}.")
        mean, scale = embeddings.mean(0), embeddings.std(0)
        scale = np.where(scale > 1e-12, scale, 1.0)
        above = (grades[:, None] > known[None, :-1]).astype(int)
        counts = {grade: np.sum(grades == grade) for grade in known}
        weight = np.array([len(grades) / (len(known) * counts[grade]) for grade in grades])
        network = MLPClassifier((HIDDEN,), solver="lbfgs", alpha=ALPHA, max_iter=MAX_ITERATIONS, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            network.fit((embeddings - mean) / scale, above[:, 0] if len(known) == 2 else above, sample_weight=weight)
        first, last = (np.asarray(part, dtype=float) for part in network.coefs_)
        one, two = (np.asarray(part, dtype=float) for part in network.intercepts_)
        return cls(tuple(float(grade) for grade in known), mean, scale, (first, last), (one, two))

    def predict(self, embeddings: Floats) -> Floats:
        """Return the probability of each grade; (n, feature) -> (n, grade)."""
        hidden = np.maximum((embeddings - self.mean) / self.scale @ self.weights[0] + self.offsets[0], 0)
        above = expit(hidden @ self.weights[1] + self.offsets[1])
        # A grade above 2 is above 1 as well.
        above = np.minimum.accumulate(above, axis=1)
        edges = np.hstack([np.ones((len(above), 1)), above, np.zeros((len(above), 1))])
        probability: Floats = edges[:, :-1] - edges[:, 1:]
        return probability

    def probabilities(self, embedding: Sequence[float]) -> dict[str, float]:
        """Return grade -> probability for one embedding."""
        found = self.predict(np.asarray(embedding, dtype=float)[None])[0]
        return {f"{grade:g}": float(value) for grade, value in zip(self.grades, found, strict=True)}

    def save(self, folder: Path, motion_sha256: str, notes: Mapping[str, Any]) -> None:
        """Write weights and card; `motion_sha256` belongs to the network whose embeddings the head was trained on."""
        tensors = {
            "mean": self.mean,
            "scale": self.scale,
            "hidden.weight": self.weights[0],
            "hidden.offset": self.offsets[0],
            "output.weight": self.weights[1],
            "output.offset": self.offsets[1],
        }
        plain = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()}
        save_weights(folder, plain, _identity(motion_sha256), {**notes, "grades": list(self.grades)})

    @classmethod
    def load(cls, folder: Path, motion_sha256: str) -> QualityHead:
        """Read a head that `save` wrote.

        Raises
        ------
        WeightsError
            If it is damaged, or was trained on embeddings of another network.
        """
        tensors, notes = load_weights(folder, _identity(motion_sha256))
        arrays = {name: tensor.double().numpy() for name, tensor in tensors.items()}
        return cls(
            tuple(notes["grades"]),
            arrays["mean"],
            arrays["scale"],
            (arrays["hidden.weight"], arrays["output.weight"]),
            (arrays["hidden.offset"], arrays["output.offset"]),
            sha256_of(folder),
        )


def _identity(motion_sha256: str) -> dict[str, Any]:
    return {"model": "quality grade of a T1w", "estimator": "mlp", "embedding": motion_sha256}


def cross_validate(embeddings: Floats, grades: Floats, subjects: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """Return the accuracy of the predicted grades of subjects that were not in training.

    Parameters
    ----------
    embeddings : ndarray
        (n, feature).
    grades : ndarray
        (n,).
    subjects : sequence of str
        (n,); all images of a subject are in one fold.
    seed : int

    Returns
    -------
    dict
        ``balanced_accuracy`` (random guesses: one over the number of grades), ``f1`` by grade, ``confusion`` (rows: the
        lab's grades, columns: those predicted), ``mean_absolute_error`` in steps between grades, ``grades``, ``n``,
        ``n_subjects``, ``folds``.

    Raises
    ------
    UsageError
        If a grade has fewer than two subjects.
    """
    known = np.unique(grades)
    people = np.asarray(subjects)
    fewest = min(len(np.unique(people[grades == grade])) for grade in known)
    if fewest < 2:
        scarce = [f"{grade:g}" for grade in known if len(np.unique(people[grades == grade])) < 2]
        raise UsageError(f"Validation needs at least two subjects of each grade, got one of grade {', '.join(scarce)}.")
    folds = min(MAX_FOLDS, fewest)
    place = np.searchsorted(known, grades)
    predicted = np.zeros(len(grades), dtype=int)
    splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(embeddings, place, people)
    for rest, part in splits:
        head = QualityHead.learn(embeddings[rest], grades[rest], seed=seed)
        best = np.asarray(head.grades)[head.predict(embeddings[part]).argmax(1)]
        predicted[part] = np.searchsorted(known, best)
    labels = list(range(len(known)))
    names = [f"{grade:g}" for grade in known]
    f1 = f1_score(place, predicted, labels=labels, average=None, zero_division=0)
    return {
        "balanced_accuracy": float(balanced_accuracy_score(place, predicted)),
        "f1": {name: float(value) for name, value in zip(names, f1, strict=True)},
        "confusion": confusion_matrix(place, predicted, labels=labels).tolist(),
        "mean_absolute_error": float(np.abs(place - predicted).mean()),
        "grades": names,
        "n": len(grades),
        "n_subjects": len(np.unique(people)),
        "folds": folds,
    }
