"""Base of learned estimators: training on simulated voxels, weights on disk, maps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import numpy as np
import torch
from typing_extensions import Self

from qmri_bidsapp import __version__, formats
from qmri_bidsapp.artifacts.weights import REMEDY, find_weights, key_of, load_weights, save_weights, sha256_of
from qmri_bidsapp.core.acquisition import Acquisition, Diffusion
from qmri_bidsapp.core.prior import Prior
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.errors import PriorError, QmriError, UsageError, WeightsError
from qmri_bidsapp.estimators.learned.examples import SNR, Draw, Examples, default_noise, simulate_voxels
from qmri_bidsapp.estimators.learned.features import Features
from qmri_bidsapp.estimators.learned.regression import VoxelRegression
from qmri_bidsapp.estimators.learned.scaling import Scaling
from qmri_bidsapp.estimators.learned.targets import Targets
from qmri_bidsapp.estimators.learned.weight_checks import check_probes, check_turn, errors_by_name
from qmri_bidsapp.estimators.trained import TrainedEstimator
from qmri_bidsapp.estimators.voxels import Solution, VoxelData
from qmri_bidsapp.estimators.voxelwise import VoxelwiseEstimator
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.solvers.gradient_descent import one_thread

#: End of the methods texts of learned estimators.
TRAINED_ON_SIMULATIONS = (
    "trained on signals simulated for the protocol, with parameters from the distribution that the card of its weights "
    "describes; standard deviations are those of the posterior under that distribution."
)
#: Largest number of signal values of all parameter combinations together.
MAX_VALUES = 2**25
#: Default number of voxels regressed together.
BLOCK_SIZE = 1024
#: Unseen voxels on which the errors in the card are measured, and those stored with the weights.
N_VALIDATION = 2**16
N_PROBES = 64


class Common(TypedDict, total=False):
    """What the constructors of all learned estimators take; see `LearnedEstimator`."""

    device: str
    prior: Prior | None
    noise: Noise | None
    weights: str | Path | None
    n_combinations: int | None


class LearnedEstimator(TrainedEstimator, VoxelwiseEstimator):
    """Regression from signals to parameters, trained on simulated voxels.

    Signals are divided by the voxel's reference (`core.simulation.reference`), in training and in prediction. The
    targets are the position of each parameter and derived parameter within its bounds, and the logarithm of the
    amplitude over the reference. If the training has a range of noise levels, the voxel's level is an input; it is
    unknown in half of the examples, so that prediction works without it.

    Standard deviations are those of the posterior under the training distribution, learned from the squared errors.
    They do not hold for voxels unlike those of the training. `noise_std` has an effect within the range of the
    training, and none if that is a single level. Standard deviations are NaN for noise above the range.

    Parameters
    ----------
    model, device
        As for `Estimator`.
    prior : Prior, optional
        Distribution of all parameters but the amplitude. Default: uniform within their bounds.
    noise : Noise, optional
        Default: `default_noise`.
    weights : path, optional
        Folder with weights to use instead of training, or folder of such folders, one of them for the protocol.
    n_combinations : int, optional
        Number of simulated parameter combinations, fewer if a signal has very many values. Default:
        `default_combinations`.
    """

    std_kind: ClassVar[str] = "posterior standard deviation under the training distribution, learned"
    chunk_size: ClassVar[int | None] = 16_384
    #: As many as in Gyori et al. 2021, section 2.3.3.
    default_combinations: ClassVar[int] = 2**19
    #: Attributes, besides prior and noise, on which the weights depend.
    option_names: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        model: SignalModel,
        *,
        device: str = "cpu",
        prior: Prior | None = None,
        noise: Noise | None = None,
        weights: str | Path | None = None,
        n_combinations: int | None = None,
    ) -> None:
        super().__init__(model, device=device, weights=weights)
        if weights is not None and (prior is not None or noise is not None):
            raise UsageError(
                "Weights define the prior and the noise of their training: give either weights, or prior and noise."
            )
        self.prior = prior
        self.noise = noise
        self.n_combinations = self.default_combinations if n_combinations is None else n_combinations
        if self.n_combinations < 1:
            raise UsageError(f"Training needs at least one parameter combination, got {self.n_combinations}.")

    @classmethod
    def supports(cls, model: SignalModel) -> bool:
        """Return whether the model declares how its directions turn, and has at most one axis.

        Several axes have no order, and their posterior mean is no axis of the tissue.
        """
        turning = {i for part in model.directional for i in part.columns}
        n_axes = sum(part.kind == "axis" for part in model.directional)
        return n_axes < 2 and all(i in turning for i, p in enumerate(model.parameters) if p.is_periodic)

    @classmethod
    def check(cls, model: SignalModel, acquisition: Acquisition) -> None:
        """Raise ProtocolError if the protocol cannot identify the model's parameters, or the axes of a voxel."""
        super().check(model, acquisition)
        Features(model, acquisition, Noise("gaussian", SNR), "cpu")

    @classmethod
    def optimised_by(cls, name: str) -> dict[str, Any]:
        """Return the constructor options that select an optimiser by its name.

        Raises
        ------
        UsageError
            If this estimator has no choice of optimisers, or not this one.
        """
        raise UsageError(f"Estimator {cls.name} has no optimiser to choose.")

    def options(self) -> dict[str, Any]:
        """Return the options, besides prior and noise, on which the weights depend, as plain data."""
        return {name: getattr(self, name) for name in self.option_names}

    def _set_options(self, options: dict[str, Any]) -> None:
        """Set the options from `options`."""
        for name in self.option_names:
            setattr(self, name, options[name])

    @abstractmethod
    def _learn(
        self,
        examples: Draw,
        generator: torch.Generator,
        progress: Callable[[int, float], None] | None,
        checkpoint: Path | None,
    ) -> None:
        """Learn from examples with features and targets scaled to mean zero and variance one."""

    @abstractmethod
    def _regress(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of the targets, (n, n_targets) each, for scaled features."""

    @abstractmethod
    def _state(self) -> dict[str, torch.Tensor]:
        """Return the learned tensors."""

    @abstractmethod
    def _restore(self, state: dict[str, torch.Tensor]) -> None:
        """Restore the learned tensors of `_state`."""

    def fit(
        self,
        acquisition: Acquisition,
        *,
        seed: int = 0,
        progress: Callable[[int, float], None] | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Train for a protocol, or load weights trained for it.

        Parameters
        ----------
        acquisition : Acquisition
        seed : int
            Not negative. The same seed gives the same weights on the same kind of processor.
        progress, checkpoint
            As for `training.train_network`.

        Raises
        ------
        ProtocolError
            If the protocol cannot identify the model's parameters.
        PriorError
            If the prior has other parameters than the model.
        WeightsError
            If the weights are damaged, or belong to another model, protocol or estimator.
        UsageError
            If the seed is negative, or the kind of noise does not fit the series.
        """
        self.check(self.model, acquisition)
        self.acquisition_ = acquisition
        self._targets = Targets(self.model)
        if self.weights is not None:
            self._load(Path(self.weights))
            return self
        if seed < 0:
            raise UsageError(f"The seed must not be negative, got {seed}.")
        self.prior_ = self.prior or self.model.default_prior()
        if self.prior_.parameters != self.model.parameters[1:]:
            raise PriorError(f"The prior has other parameters than model {self.model.name}.")
        self.noise_ = self.noise or default_noise(acquisition)
        if self.noise_.kind == "rician" and acquisition.has_sign:
            raise UsageError("Rician noise is that of magnitudes, but this series has signs: use gaussian noise.")
        with one_thread():
            self._train(seed, progress, checkpoint)
        return self

    def identity(self, acquisition: Acquisition) -> dict[str, Any]:
        """Return what must be the same in training and in use, as plain data.

        Gradient directions are not included, since motion correction turns them; see `weight_checks.check_turn`.
        """
        protocol = {key: value for key, value in acquisition.to_dict().items() if key != "direction"}
        columns = (*self.model.parameters, *self.model.derived, *self.model.covariates)
        return {
            "estimator": self.name,
            "model": {"name": self.model.name, "bounds": {p.name: list(p.bounds) for p in columns}},
            "protocol": protocol,
        }

    def cache_key(self, acquisition: Acquisition, seed: int = 0) -> str:
        """Return the content hash of everything that determines the weights."""
        return key_of(
            {
                **self.identity(acquisition),
                **self.recipe(acquisition, seed),
                "protocol": acquisition.to_dict(),
                "device": torch.device(self.device).type,
                "maps": formats.MAPS,
            }
        )

    def recipe(self, acquisition: Acquisition, seed: int = 0) -> dict[str, Any]:
        """Return prior, noise, options and seed of a training for a protocol, as plain data: part of `notes_`."""
        return {
            "prior": (self.prior or self.model.default_prior()).describe(),
            "noise": (self.noise or default_noise(acquisition)).to_dict(),
            "options": self.options(),
            "n_combinations": min(self.n_combinations, MAX_VALUES // acquisition.n_measurements),
            "seed": seed,
        }

    def provenance(self) -> str:
        """Return a sentence with the number of voxels, the training distribution and the noise."""
        noise = self.notes_["noise"]
        low, high = map(float, noise["snr"])
        return (
            f"Trained on {self.notes_['n_combinations']} simulated voxels of this protocol, distribution "
            f"{self.notes_['prior']['name']}, {noise['kind']} noise, SNR {low:g} to {high:g}."
        )

    def save(self, folder: str | Path) -> None:
        """Write weights and card into a folder; see `weights.save_weights`."""
        state = self._scaling.to_state() | {"target_ranges": self._targets.ranges}
        state |= {f"probe.{name}": value for name, value in self._probes.items()}
        if isinstance(self.acquisition_, Diffusion):
            state["direction"] = torch.tensor(self.acquisition_.direction)
        save_weights(Path(folder), {**self._state(), **state}, self.identity(self.acquisition_), self.notes_)

    def _load(self, folder: Path) -> None:
        identity = self.identity(self.acquisition_)
        found = find_weights(folder, identity)
        state, self.notes_ = load_weights(found, identity)
        self.sha256_ = sha256_of(found)
        try:
            self._take(found, {name: value.to(self.device) for name, value in state.items()})
        except WeightsError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError, QmriError) as error:
            raise WeightsError(f"{found} does not hold complete weights of estimator {self.name}. {REMEDY}") from error

    def _take(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Restore the tensors and notes of a folder, and check them on the voxels stored with them."""
        trained = self.acquisition_
        if isinstance(trained, Diffusion):
            direction = state.pop("direction").cpu().numpy()
            check_turn(folder, direction, np.asarray(trained.direction))
            trained = replace(trained, direction=tuple(map(tuple, direction.tolist())))
        self._scaling = Scaling.take(state)
        self._targets.ranges = state.pop("target_ranges")
        self._probes = {
            name.removeprefix("probe."): state.pop(name) for name in list(state) if name.startswith("probe.")
        }
        self.noise_ = Noise.from_dict(self.notes_["noise"])
        self._set_options(self.notes_["options"])
        self._restore(state)
        clean = self.model.signal(self._probes["theta"], trained)
        check_probes(folder, self._probes, clean.float(), *self._regression_for(trained).of_probes(self._probes))
        self._regression = self._regression_for(self.acquisition_)

    def _train(self, seed: int, progress: Callable[[int, float], None] | None, checkpoint: Path | None) -> None:
        rng = np.random.default_rng(seed)
        generator = torch.Generator(self.device).manual_seed(seed)
        recipe = self.recipe(self.acquisition_, seed)
        n = recipe["n_combinations"]
        training, unseen = (
            simulate_voxels(self.model, self.acquisition_, self.prior_, self.noise_, size, rng, self.device)
            for size in (n, min(n, N_VALIDATION))
        )
        features = Features(self.model, self.acquisition_, self.noise_, self.device)
        examples = Examples(self.model, training, features, self._targets)
        self._targets.learn_ranges(examples.truth)
        self._scaling = Scaling.learn(*examples(len(unseen), generator))
        self._learn(self._scaling.of(examples), generator, progress, checkpoint)
        self._regression = self._regression_for(self.acquisition_)
        others = Examples(self.model, unseen, features, self._targets)
        seen, truth = self._scaling.of(others)(len(unseen), generator)
        with torch.no_grad():
            mean, std = self._regression.scaled(seen)
        errors = errors_by_name((self.model.parameters[0].name, *self._targets.names), mean - truth, std)
        self.notes_ = {**recipe, "version": __version__, "validation": errors}
        index, signal, sigma = unseen.draw(N_PROBES, generator)
        theta = unseen.theta[index]
        self._probes = {"theta": theta, "clean": unseen.clean[index], "signal": signal, "sigma": sigma}
        self._probes["estimate"], self._probes["std"] = self._regression.of_probes(self._probes)

    def _regression_for(self, acquisition: Acquisition) -> VoxelRegression:
        """Return the trained regression for signals of an acquisition."""
        return VoxelRegression(
            self.model,
            acquisition,
            Features(self.model, acquisition, self.noise_, self.device),
            self._scaling,
            self._targets,
            self.noise_.snr[0],
            self._regress,
            self._block_size(),
        )

    def _block_size(self) -> int:
        """Return the number of voxels regressed together."""
        return BLOCK_SIZE

    def _solve(self, voxels: VoxelData) -> Solution:
        """Return the regressed parameters; see `VoxelwiseEstimator`."""
        signals = voxels.signals
        noise = np.full(len(signals), np.nan, dtype=np.float32) if voxels.noise_std is None else voxels.noise_std
        seen = (torch.as_tensor(values, device=self.device) for values in (signals, noise[:, None], voxels.covariates))
        return Solution(*(values.cpu().numpy() for values in self._regression.estimate(*seen)))
