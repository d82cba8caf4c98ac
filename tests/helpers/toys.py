"""A model and estimators whose errors are known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch

from qmri_bidsapp.core.acquisition import SphericalMean
from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.models.base import SignalModel

#: The first measurement, of which the amplitude follows, has next to no noise.
PROTOCOL = SphericalMean((0.0, 1000.0), (10**9, 1))
SIGMA = 0.1
NOISE = Noise("gaussian", (1 / SIGMA, 1 / SIGMA))


class Line(SignalModel):
    """Two measurements, the amplitude and the amplitude times x: the ratio is x with Gaussian noise."""

    name: ClassVar[str] = "line"
    title: ClassVar[str] = "Line"
    reference: ClassVar[str] = "none"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("s0", "arbitrary", (0.0, 5.0), 1.0, "Amplitude"),
        Parameter("x", "1", (0.0, 1.0), 1.0, "Position"),
    )
    acquisition_type = SphericalMean
    bids_suffixes: ClassVar[tuple[str, ...]] = ()

    def signal(self, theta: torch.Tensor, acquisition: SphericalMean) -> torch.Tensor:
        return torch.stack([theta[..., 0], theta[..., 0] * theta[..., 1]], dim=-1)


class Toy(Estimator):
    """Any function of the ratio of the two measurements."""

    name: ClassVar[str] = "toy"
    title: ClassVar[str] = "Toy"
    std_kind: ClassVar[str] = "stated"
    reference: ClassVar[str] = "none"

    def __init__(self, function: Callable[[np.ndarray], np.ndarray], *, std: float = SIGMA) -> None:
        super().__init__(Line())
        self._function, self._std = function, std

    @classmethod
    def supports(cls, model: SignalModel) -> bool:
        return isinstance(model, Line)

    def fit(self, acquisition, *, seed=0):
        return self

    def predict(self, signals, *, noise_std=None, covariates=None):
        signals = np.asarray(signals)
        estimate = np.stack([signals[:, 0], self._function(signals[:, 1] / signals[:, 0])], axis=1).astype(np.float32)
        status = np.where(np.isfinite(estimate).all(axis=1), Status.OK, Status.FAILED).astype(np.uint8)
        return ParameterMaps(self.model.parameters, estimate, np.full_like(estimate, self._std), "stated", status)
