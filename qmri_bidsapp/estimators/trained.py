"""What all estimators that use weights have in common."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from typing_extensions import Self

from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.models.base import SignalModel


class TrainedEstimator(Estimator):
    """Estimates by what was learned from simulations, whether for one protocol or for many.

    Parameters
    ----------
    model, device
        As for `Estimator`.
    weights : path, optional
        Folder with weights, or of such folders.

    Attributes
    ----------
    notes_ : dict
        What the card of the weights says of their training; after `fit`.
    sha256_ : str or None
        Of the weights; after `fit`, None unless they were loaded.
    """

    notes_: dict[str, Any]
    sha256_: str | None = None

    def __init__(self, model: SignalModel, *, device: str = "cpu", weights: str | Path | None = None) -> None:
        super().__init__(model, device=device)
        self.weights = weights

    @classmethod
    @abstractmethod
    def brief(cls, model: SignalModel, *, device: str = "cpu") -> Self:
        """Return an estimator that learns next to nothing, in about a second: as fast in use as any other."""

    @abstractmethod
    def provenance(self) -> str:
        """Return, after `fit`, a sentence on what the weights were trained on."""
