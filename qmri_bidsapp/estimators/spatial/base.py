"""What estimators that apply a trained spatial network, slice by slice, have in common."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

from qmri_bidsapp.artifacts.weights import find_weights, load_weights, sha256_of
from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.core.noise import noise_kind
from qmri_bidsapp.errors import ProtocolError, UsageError, WeightsError
from qmri_bidsapp.estimators.likelihood.varpro import VariableProjection
from qmri_bidsapp.estimators.parallel import for_each_chunk
from qmri_bidsapp.estimators.spatial.error_head import NO_HEAD, ErrorHead, SliceNetwork, brightest, split_head
from qmri_bidsapp.estimators.spatial.slices import Coordinates, Slices, supports_coordinates, typical_signal
from qmri_bidsapp.estimators.trained import TrainedEstimator
from qmri_bidsapp.estimators.voxels import Solution, assemble, check_inputs
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.solvers.gradient_descent import seeded

#: Fewest measurements of a protocol.
MIN_MEASUREMENTS = 4
#: Voxels of a chunk of slices.
CHUNK_VOXELS = 2**14
#: Weights that come with the program, in folders named by estimator and model.
SHIPPED = Path(__file__).parents[2] / "weights"
#: Voxels from whose residuals the noise is estimated.
NOISE_SAMPLE = 4096


class SpatialNetwork(TrainedEstimator):
    """A network that maps slices to parameters, trained on virtual heads (`qmri train`).

    Slices are perpendicular to the axis of the widest spacing. The network ignores voxels outside the mask or without
    a finite signal. Standard deviations come from a small head on the frozen network (`error_head.ErrorHead`), which
    learned the network's errors on virtual heads; they do not hold for voxels unlike those of the training. They are
    NaN on bounds, where the noise exceeds that of the training, and everywhere if the weights have no such head.

    Parameters
    ----------
    model : SignalModel
    device : str
    weights : path, optional
        Folder with weights from ``qmri train``, or folder of such folders. Default: the weights shipped with the
        program, if there are any.
    noise : {"rician", "gaussian"}, optional
        Distribution of the noise in the likelihood that the network sees. Default: Rician for magnitudes, Gaussian
        for series with signs.
    """

    std_kind: ClassVar[str] = "standard deviation of the error under the training distribution, learned"
    is_spatial: ClassVar[bool] = True
    #: Raised whenever the same weights would give other maps: new layers, inputs, normal forms or first guess. It is
    #: part of the weights' identity.
    network_version: ClassVar[str]
    #: Whether one network serves all protocols.
    is_general: ClassVar[bool]
    _is_untrained: bool = False

    def __init__(
        self,
        model: SignalModel,
        *,
        device: str = "cpu",
        weights: str | Path | None = None,
        noise: Literal["rician", "gaussian"] | None = None,
    ) -> None:
        super().__init__(model, device=device, weights=weights)
        self.noise = noise

    @classmethod
    def supports(cls, model: SignalModel) -> bool:
        """Return whether virtual heads have the model's parameters."""
        return supports_coordinates(model)

    @classmethod
    def check(cls, model: SignalModel, acquisition: Acquisition) -> None:
        """Raise ProtocolError also if there are fewer than `MIN_MEASUREMENTS`; see `Estimator.check`."""
        super().check(model, acquisition)
        if acquisition.n_measurements < MIN_MEASUREMENTS:
            raise ProtocolError(
                f"Estimator {cls.name} needs at least {MIN_MEASUREMENTS} measurements, "
                f"got {acquisition.n_measurements}: use estimator nlls."
            )

    @classmethod
    def shipped(cls, model: SignalModel) -> Path | None:
        """Return the folder of the weights shipped with the program for a model; None if there are none."""
        folder = SHIPPED / f"{cls.name}-{model.name}"
        return folder if folder.is_dir() else None

    @classmethod
    def brief(cls, model: SignalModel, *, device: str = "cpu") -> Self:
        """Return an untrained estimator; see `TrainedEstimator.brief`."""
        estimator = cls(model, device=device)
        estimator._is_untrained = True
        return estimator

    @classmethod
    def identity(cls, model: SignalModel, acquisition: Acquisition | None) -> dict[str, Any]:
        """Return what must be the same in training and in use, as plain data; protocol None stands for all."""
        return {
            "estimator": cls.name,
            "model": {"name": model.name, "bounds": {p.name: list(p.bounds) for p in model.parameters}},
            "protocol": None if acquisition is None else acquisition.to_dict(),
            "version": cls.network_version,
        }

    def load(self, acquisition: Acquisition) -> tuple[Path, dict[str, torch.Tensor], dict[str, Any]]:
        """Return the weights for a protocol: their folder, the tensors and the notes of the card.

        Raises
        ------
        ProtocolError
            If this estimator does not support the protocol.
        UsageError
            If there are no weights.
        WeightsError
            If they are damaged, or belong to another model, protocol or version.
        """
        self.check(self.model, acquisition)
        folder = self.shipped(self.model) if self.weights is None else Path(self.weights)
        if folder is None:
            raise UsageError(
                f"Estimator {self.name} needs weights for {self.model.name}, and the program ships none: train "
                f"some with `qmri train {self.model.name} FOLDER --estimator {self.name} --labels DIR`, and name the "
                "folder with --weights."
            )
        protocols = (acquisition, None) if self.is_general else (acquisition,)
        identities = [self.identity(self.model, protocol) for protocol in protocols]
        found = find_weights(folder, *identities)
        return found, *load_weights(found, *identities)

    def fit(self, acquisition: Acquisition, *, seed: int = 0) -> Self:
        """Read the weights; `seed` chooses the voxels from which the noise is estimated."""
        self.check(self.model, acquisition)
        with seeded(seed):
            network = self.build(self.model, acquisition)
            head = ErrorHead(network.n_known, len(self.model.parameters))
        has_head = True
        if not self._is_untrained:
            folder, tensors, self.notes_ = self.load(acquisition)
            self.sha256_ = sha256_of(folder)
            tensors, of_head = split_head(tensors)
            try:
                network.load_state_dict(tensors)
                if has_head := bool(of_head):
                    head.load_state_dict(of_head)
            except RuntimeError as error:
                raise WeightsError(f"The weights in {folder} belong to another network: train them again.") from error
        self.acquisition_ = acquisition
        self._seed = seed
        self._network = network.to(self.device).eval().requires_grad_(False)
        self._head = head.to(self.device).eval().requires_grad_(False) if has_head else None
        if not has_head:
            self.std_kind = NO_HEAD  # type: ignore[misc]
        self._coordinates = Coordinates(self.model, self.device)
        return self

    def provenance(self) -> str:
        """Return a sentence with the number of heads, the noise and the protocols; note a missing error head."""
        notes = self.notes_
        distribution = notes["distribution"]
        low, high = distribution["snr"]
        silent = " These weights provide no standard deviations." if self._head is None else ""
        before = f", after {notes['started_from']['iterations']} of other weights," if "started_from" in notes else ""
        return (
            f"Trained for {notes['iterations']} iterations{before} on patches of virtual heads made from "
            f"{notes['n_label_maps']} label maps, SNR {low:g} to {high:g}, {distribution['protocols']}.{silent}"
        )

    def network(self) -> SliceNetwork:
        """Return a trainable copy of the network; call `fit` before."""
        return copy.deepcopy(self._network).train().requires_grad_(True)

    @classmethod
    @abstractmethod
    def build(cls, model: SignalModel, acquisition: Acquisition) -> SliceNetwork:
        """Return the untrained network."""

    def predict(
        self,
        signals: npt.ArrayLike,
        *,
        noise_std: npt.ArrayLike | None = None,
        covariates: npt.ArrayLike | None = None,
    ) -> ParameterMaps:
        """Estimate voxels without their neighbours, each as its own slice; see `Estimator.predict`."""
        mask = np.ones((1, 1, len(np.asarray(signals))), dtype=bool)
        return self._predict(signals, mask, 2, noise_std, covariates)

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

        Where `noise_std` is unknown, one value for all voxels is estimated from the residuals of least squares.
        """
        return self._predict(signals, mask, max(range(3), key=lambda i: (spacing[i], i)), noise_std, covariates)

    def _predict(
        self,
        signals: npt.ArrayLike,
        mask: npt.NDArray[np.bool_],
        axis: int,
        noise_std: npt.ArrayLike | None,
        covariates: npt.ArrayLike | None,
    ) -> ParameterMaps:
        """Return maps, estimated from the slices perpendicular to an axis."""
        data = check_inputs(self, signals, noise_std=noise_std, covariates=covariates)
        status, usable, voxels = data.screen(has_sign=self.acquisition_.has_sign)
        estimate = std = np.empty((0, len(self.model.parameters) + len(self.model.derived)))
        if usable.any():
            inside = np.zeros(mask.shape, dtype=bool)
            inside[mask] = usable
            estimate, std = self._estimate(np.asarray(voxels.signals, np.float32), inside, axis, voxels.noise_std)
        fitted = np.full(len(estimate), Status.OK, dtype=np.uint8)
        return assemble(self.model, self.std_kind, status, usable, Solution(estimate, std, fitted))

    def _estimate(
        self,
        values: npt.NDArray[np.float32],
        inside: npt.NDArray[np.bool_],
        axis: int,
        noise: npt.NDArray[np.float32] | None,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return parameters and derived ones, (n, n_all), of n voxels in C order, and their standard deviations."""
        indices = np.nonzero(inside)
        box = tuple(slice(index.min(), index.max() + 1) for index in indices)

        def slices(content: npt.NDArray[np.generic], outside: float) -> torch.Tensor:
            volume = np.full((*inside.shape, *content.shape[1:]), outside, dtype=content.dtype)
            volume[indices] = content
            return torch.as_tensor(np.ascontiguousarray(np.moveaxis(volume[box], axis, 0)), device=self.device)

        usable = slices(np.ones(len(values), dtype=bool), False)
        signals = slices(values, 0.0)
        # Slices of single voxels are unrelated: each has its own unit.
        is_alone = usable[0].numel() == 1
        unit = signals.abs().amax(-1) if is_alone else typical_signal(signals, usable).expand(usable.shape)
        unit = torch.where(usable, unit, 1.0)
        signals /= unit.unsqueeze(-1)
        noise_std = slices(self._complete(noise, values), 1.0) / unit
        whole = Slices(self.acquisition_, signals, usable, noise_std, self._is_rician())
        normal, spread = signals.new_empty(2, *usable.shape, len(self.model.parameters))

        def work(part: slice) -> None:
            series = whole._replace(signals=signals[part], inside=usable[part], noise_std=noise_std[part])
            if self._head is None:
                normal[part], spread[part] = self._network([series])[-1].movedim(1, -1), torch.nan
            else:
                found, known = self._network.known([series])
                normal[part], spread[part] = found.movedim(1, -1), self._head.std(known).movedim(1, -1)

        largest = max(1, CHUNK_VOXELS // usable[0].numel())
        for_each_chunk(work, len(usable), largest, self.device)
        if self._head is not None:
            brightness = brightest(whole, per_slice=is_alone).view(-1, 1, 1)
            spread[noise_std * self._head.lowest_snr > brightness] = torch.nan

        def voxels(content: torch.Tensor) -> torch.Tensor:
            return content.movedim(0, axis)[usable.movedim(0, axis)]

        theta = self._coordinates.physical(voxels(normal))
        std = self._coordinates.slope(theta) * voxels(spread)
        std[~self._coordinates.is_free(theta)] = torch.nan
        theta = theta.double()
        for columns in (theta, std):
            columns[:, 0] *= voxels(unit)
        derived, pull_back = torch.func.vjp(self.model.derive, theta)[:2]
        stds = [std]
        for output in torch.eye(len(self.model.derived), dtype=theta.dtype, device=theta.device):
            slope = pull_back(output.expand_as(derived))[0]
            # Each depends on a single parameter, so that correlations of the errors do not matter.
            stds.append(torch.where(slope == 0, 0.0, slope * std).norm(dim=-1, keepdim=True))
        return torch.cat([theta, derived], dim=-1).cpu().numpy(), torch.cat(stds, dim=-1).cpu().numpy()

    def _is_rician(self) -> bool:
        """Return whether the noise is Rician."""
        return (self.noise or noise_kind(self.acquisition_, floor_removed=False)) == "rician"

    def _complete(
        self, noise: npt.NDArray[np.float32] | None, values: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Return the noise of all voxels, (n,), estimated where it is unknown."""
        known = np.full(len(values), np.nan, dtype=np.float32) if noise is None else noise
        good = np.isfinite(known) & (known > 0)
        return known if good.all() else np.where(good, known, np.float32(self._noise(values)))

    def _noise(self, values: npt.NDArray[np.float32]) -> float:
        """Return the standard deviation of the noise, from the median squared residual of some of (n, m) signals."""
        rng = np.random.default_rng(self._seed)
        sample = rng.permutation(values)[:NOISE_SAMPLE]
        found = VariableProjection(self.model, device=self.device).fit(self.acquisition_).predict(sample)
        theta = torch.as_tensor(found.estimate[:, : len(self.model.parameters)])
        residual = self.model.signal(theta, self.acquisition_).numpy() - sample
        n_free = self.acquisition_.n_measurements - len(self.model.parameters)
        # Median of chi-squared (Wilson and Hilferty 1931).
        variance = np.nanmedian((residual**2).sum(-1)) / (n_free * (1 - 2 / (9 * n_free)) ** 3)
        return float(max(np.sqrt(variance), np.finfo(np.float32).eps * np.abs(sample).max()))
