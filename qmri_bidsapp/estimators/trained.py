"""Estimators that use trained weights."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from typing_extensions import Self

from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.models.base import SignalModel


class TrainedEstimator(Estimator):
    """Estimator whose weights were trained on simulations, for one protocol or for many.

    Parameters
    ----------
    model, device
        As for `Estimator`.
    weights : path, optional
        Folder with weights, or folder of such folders.

    Attributes
    ----------
    notes_ : dict
        Description of the training, from the card of the weights; after `fit`.
    sha256_ : str or None
        Hash of the weights' file; after `fit`, None if they were trained and not loaded.
    """

    notes_: dict[str, Any]
    sha256_: str | None = None

    def __init__(self, model: SignalModel, *, device: str = "cpu", weights: str | Path | None = None) -> None:
        super().__init__(model, device=device)
        self.weights = weights

    @classmethod
    @abstractmethod
    def brief(cls, model: SignalModel, *, device: str = "cpu") -> Self:
        """Return an inaccurate estimator that trains in about a second, for tests and for timing `predict`."""

    @abstractmethod
    def provenance(self) -> str:
        """Return, after `fit`, a sentence on what the weights were trained on."""
