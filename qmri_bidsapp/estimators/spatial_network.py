"""Estimators that apply a trained spatial network, slice by slice."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from typing_extensions import Self

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.errors import ProtocolError, UsageError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.parallel import for_each_chunk
from qmri_bidsapp.estimators.recurrent import RecurrentInferenceMachine
from qmri_bidsapp.estimators.residual import ResidualNetwork
from qmri_bidsapp.estimators.series import Coordinates, Series, supports_coordinates, typical_signal
from qmri_bidsapp.estimators.spatial_training import read_checkpoint
from qmri_bidsapp.estimators.varpro import VariableProjection
from qmri_bidsapp.estimators.voxels import as_signals, assemble, covariates_of, noise_of, screen
from qmri_bidsapp.models.base import SignalModel

#: Fewest measurements of a protocol.
MIN_MEASUREMENTS = 4
#: Voxels of a chunk of slices.
CHUNK_VOXELS = 2**14
#: Voxels from whose residuals the noise is estimated.
NOISE_SAMPLE = 4096


class SpatialNetwork(Estimator):
    """A network that maps slices to parameters, trained on virtual heads (`qmri train`).

    Slices are those across the widest spacing. Voxels outside the mask, or without a finite signal, tell the network
    nothing. There are no standard deviations: the network gives the centre of what it expects, not its spread, and
    the Cramer-Rao bound does not hold for an estimate that leans on its neighbours.

    Parameters
    ----------
    model : SignalModel
    device : str
    weights : path, optional
        Folder that ``qmri train`` wrote.
    """

    std_kind: ClassVar[str] = "none"
    is_spatial: ClassVar[bool] = True

    def __init__(self, model: SignalModel, *, device: str = "cpu", weights: str | Path | None = None) -> None:
        super().__init__(model, device=device)
        self.weights = weights

    @classmethod
    def supports(cls, model: SignalModel) -> bool:
        """Tell whether virtual heads have the model's parameters."""
        return supports_coordinates(model)

    @classmethod
    def check(cls, model: SignalModel, acquisition: Acquisition) -> None:
        """Ask for four measurements."""
        super().check(model, acquisition)
        if acquisition.n_measurements < MIN_MEASUREMENTS:
            raise ProtocolError(
                f"Estimator {cls.name} needs at least {MIN_MEASUREMENTS} measurements, "
                f"got {acquisition.n_measurements}: use estimator nlls."
            )

    def fit(self, acquisition: Acquisition, *, seed: int = 0) -> Self:
        """Read the weights; `seed` is for the choice of voxels that tell the noise."""
        self.check(self.model, acquisition)
        if self.weights is None:
            raise UsageError(f"Estimator {self.name} needs weights: train them by `qmri train {self.name}`.")
        state = read_checkpoint(Path(self.weights))
        self._refuse_foreign(state["card"], acquisition)
        self.acquisition_ = acquisition
        self._seed = seed
        self._network = self._build(acquisition)
        self._network.load_state_dict(state["average"])
        self._network.to(self.device).eval().requires_grad_(False)
        self._coordinates = Coordinates(self.model, self.device)
        return self

    def _refuse_foreign(self, card: dict[str, Any], acquisition: Acquisition) -> None:
        """Raise UsageError if weights are of another network or model, ProtocolError if for another protocol."""
        if (card["network"], card["model"]) != (self.name, self.model.name):
            raise UsageError(
                f"{self.weights} holds weights of {card['network']} for {card['model']}, "
                f"not of {self.name} for {self.model.name}."
            )
        if card["protocol"] is not None and Acquisition.from_dict(card["protocol"]) != acquisition:
            raise ProtocolError(f"{self.weights} was trained for another protocol than this one; train it anew.")

    @abstractmethod
    def _build(self, acquisition: Acquisition) -> nn.Module:
        """Return the network, untrained."""

    def predict(
        self,
        signals: npt.ArrayLike,
        *,
        noise_std: npt.ArrayLike | None = None,
        covariates: npt.ArrayLike | None = None,
    ) -> ParameterMaps:
        """Estimate voxels without neighbours, each as a slice of its own; see `Estimator.predict`."""
        mask = np.ones((1, 1, len(np.asarray(signals))), dtype=bool)
        return self.predict_volume(signals, mask, noise_std=noise_std, covariates=covariates)

    def predict_volume(
        self,
        signals: npt.ArrayLike,
        mask: npt.NDArray[np.bool_],
        *,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        noise_std: npt.ArrayLike | None = None,
        covariates: npt.ArrayLike | None = None,
    ) -> ParameterMaps:
        """Estimate the voxels of a mask; see `Estimator.predict_volume`.

        Where `noise_std` is not known, one number for all voxels comes from the residuals of least squares.
        """
        if not hasattr(self, "acquisition_"):
            raise ProtocolError("The estimator has no protocol yet: call fit(acquisition) first.")
        signals = as_signals(signals, self.acquisition_.n_measurements)
        known = covariates_of(self.model, covariates, len(signals))
        values, status, usable = screen(signals, known, has_sign=self.acquisition_.has_sign)
        estimate = np.empty((0, len(self.model.parameters) + len(self.model.derived)))
        if usable.any():
            inside = np.zeros(mask.shape, dtype=bool)
            inside[mask] = usable
            noise = None if noise_std is None else noise_of(noise_std, len(values))[usable]
            estimate = self._estimate(values[usable], inside, spacing, noise)
        std = np.full_like(estimate, np.nan)
        fitted = np.full(len(estimate), Status.OK, dtype=np.uint8)
        return assemble(self.model, self.std_kind, status, usable, estimate, std, fitted)

    def _estimate(
        self,
        values: npt.NDArray[np.float32],
        inside: npt.NDArray[np.bool_],
        spacing: Sequence[float],
        noise: npt.NDArray[np.float32] | None,
    ) -> npt.NDArray[np.float64]:
        """Return the parameters, derived ones included, (n, n_parameters), of the n voxels inside, in C order."""
        axis = max(range(3), key=lambda i: (spacing[i], i))
        indices = np.nonzero(inside)
        box = tuple(slice(index.min(), index.max() + 1) for index in indices)

        def slices(content: npt.NDArray[np.generic], outside: float) -> torch.Tensor:
            volume = np.full((*inside.shape, *content.shape[1:]), outside, dtype=content.dtype)
            volume[indices] = content
            return torch.as_tensor(np.ascontiguousarray(np.moveaxis(volume[box], axis, 0)), device=self.device)

        usable = slices(np.ones(len(values), dtype=bool), False)
        signals = slices(values, 0.0)
        unit = typical_signal(signals, usable)
        signals /= unit
        noise_std = slices(self._complete(noise, values), 1.0) / unit
        normal = torch.empty((*usable.shape, len(self.model.parameters)), device=self.device)

        def work(part: slice) -> None:
            series = Series(self.acquisition_, signals[part], usable[part], noise_std[part])
            normal[part] = self._network([series])[-1].movedim(1, -1)

        largest = max(1, CHUNK_VOXELS // usable[0].numel())
        for_each_chunk(work, len(usable), largest, self.device)
        theta = self._coordinates.physical(normal.movedim(0, axis)[usable.movedim(0, axis)]).double()
        theta[:, 0] *= unit
        return torch.cat([theta, self.model.derive(theta)], dim=-1).cpu().numpy()

    def _complete(
        self, noise: npt.NDArray[np.float32] | None, values: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Return the noise of all voxels, (n,), estimated where it is not given."""
        known = np.full(len(values), np.nan, dtype=np.float32) if noise is None else noise
        good = np.isfinite(known) & (known > 0)
        return known if good.all() else np.where(good, known, np.float32(self._noise(values)))

    def _noise(self, values: npt.NDArray[np.float32]) -> float:
        """Return the standard deviation of the noise, from the median of residuals in some of (n, m) signals."""
        rng = np.random.default_rng(self._seed)
        sample = rng.permutation(values)[:NOISE_SAMPLE]
        found = VariableProjection(self.model, device=self.device).fit(self.acquisition_).predict(sample)
        theta = torch.as_tensor(found.estimate[:, : len(self.model.parameters)])
        residual = self.model.signal(theta, self.acquisition_).numpy() - sample
        n_free = self.acquisition_.n_measurements - len(self.model.parameters)
        # Median of chi-squared (Wilson and Hilferty 1931).
        variance = np.nanmedian((residual**2).sum(-1)) / (n_free * (1 - 2 / (9 * n_free)) ** 3)
        return float(max(np.sqrt(variance), np.finfo(np.float32).eps * np.abs(sample).max()))


class RecurrentInference(SpatialNetwork):
    """Recurrent inference machine; see `recurrent.RecurrentInferenceMachine`."""

    name: ClassVar[str] = "rim"
    title: ClassVar[str] = "Recurrent inference machine"
    reference: ClassVar[str] = (
        "Sabidussi et al. 2021, Med Image Anal 74:102220; Putzky and Welling 2017, arXiv:1706.04008"
    )

    def _build(self, acquisition: Acquisition) -> nn.Module:
        """Return the network, which is for any number of measurements."""
        return RecurrentInferenceMachine(self.model)


class ResidualEstimation(SpatialNetwork):
    """Residual network; see `residual.ResidualNetwork`."""

    name: ClassVar[str] = "resnet"
    title: ClassVar[str] = "Residual network"
    reference: ClassVar[str] = "Sabidussi et al. 2021, Med Image Anal 74:102220; He et al. 2016, CVPR 770"

    def _build(self, acquisition: Acquisition) -> nn.Module:
        """Return the network for as many measurements."""
        return ResidualNetwork(self.model, acquisition.n_measurements)
