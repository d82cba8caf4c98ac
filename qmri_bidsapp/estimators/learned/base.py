"""What learned estimators share: simulated training data, scaling, weights on disk, maps."""

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
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.core.prior import Prior
from qmri_bidsapp.core.simulation import Noise, reference
from qmri_bidsapp.errors import PriorError, QmriError, UsageError, WeightsError
from qmri_bidsapp.estimators.learned.examples import SNR, Draw, Examples, default_noise, simulate_voxels
from qmri_bidsapp.estimators.learned.features import Features
from qmri_bidsapp.estimators.learned.scaling import Scaling
from qmri_bidsapp.estimators.learned.targets import Targets
from qmri_bidsapp.estimators.learned.weight_checks import check_probes, check_turn, errors_by_name
from qmri_bidsapp.estimators.trained import TrainedEstimator
from qmri_bidsapp.estimators.voxels import Solution, VoxelData
from qmri_bidsapp.estimators.voxelwise import VoxelwiseEstimator
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.solvers.gradient_descent import one_thread

#: How learned estimators were trained: the end of their methods texts.
TRAINED_ON_SIMULATIONS = (
    "trained on signals simulated for the protocol, with parameters from the distribution that the card of its weights "
    "describes; standard deviations are those of the posterior under that distribution."
)
#: Most values of the signals of all parameter combinations.
MAX_VALUES = 2**25
#: Standard deviations that noise may take away from a voxel's reference before its level counts as beyond the training.
MARGIN = 2.0
#: Voxels that are regressed together: intermediate values then stay in the cache.
BLOCK_SIZE = 1024
#: Unseen voxels on which the errors in the card are measured, and those that are kept with the weights.
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

    Signals are divided by the voxel's reference (`core.simulation.reference`), in training and in use. What is learned
    is the position of each parameter and derived parameter within its bounds, and the logarithm of the amplitude over
    the reference. Where the training has a range of noise levels the voxel's own is an input, unknown in half of the
    examples, so that it may be left out in use.

    Standard deviations are those of the posterior under the training distribution, as they were learned from the
    squared errors: they tell nothing where a voxel is unlike those of the training. `noise_std` acts within the range
    of the training, and not at all where that is a single level; standard deviations are NaN where it is larger.

    Parameters
    ----------
    model, device
        As for `Estimator`.
    prior : Prior, optional
        Of all parameters but the amplitude; uniform within their bounds where not given.
    noise : Noise, optional
        `default_noise` where not given.
    weights : path, optional
        Folder with weights to be used in place of training, or of such folders, one of them for the protocol.
    n_combinations : int, optional
        Parameter combinations that are simulated, `default_combinations` where not given; fewer where a signal has very
        many values.
    """

    std_kind: ClassVar[str] = "posterior standard deviation under the training distribution, learned"
    chunk_size: ClassVar[int | None] = 16_384
    #: As many as in Gyori et al. 2021, section 2.3.3.
    default_combinations: ClassVar[int] = 2**19
    #: Attributes, beside prior and noise, that the weights depend on.
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
                "Weights bring the prior and the noise that they were trained with: give one or the other."
            )
        self.prior = prior
        self.noise = noise
        self.n_combinations = self.default_combinations if n_combinations is None else n_combinations
        if self.n_combinations < 1:
            raise UsageError(f"Training needs at least one parameter combination, got {self.n_combinations}.")

    @classmethod
    def supports(cls, model: SignalModel) -> bool:
        """Tell whether the model says how its directions turn, and has one axis at most.

        Several are known in any order, and their mean over a posterior is none of them.
        """
        turning = {i for part in model.directional for i in part.columns}
        n_axes = sum(part.kind == "axis" for part in model.directional)
        return n_axes < 2 and all(i in turning for i, p in enumerate(model.parameters) if p.is_periodic)

    @classmethod
    def check(cls, model: SignalModel, acquisition: Acquisition) -> None:
        """Raise ProtocolError if the protocol does not tell the model's parameters, or a voxel's axes."""
        super().check(model, acquisition)
        Features(model, acquisition, Noise("gaussian", SNR), "cpu")

    @classmethod
    def optimised_by(cls, name: str) -> dict[str, Any]:
        """Return the constructor's options that choose an optimiser by its name.

        Raises
        ------
        UsageError
            If there is none to choose, or that one is not for this estimator.
        """
        raise UsageError(f"Estimator {cls.name} has no optimiser to choose.")

    def options(self) -> dict[str, Any]:
        """Return the options, beside prior and noise, that the weights depend on, as plain data."""
        return {name: getattr(self, name) for name in self.option_names}

    def _set_options(self, options: dict[str, Any]) -> None:
        """Take over `options`."""
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
        """Learn from examples, whose features and targets are scaled to mean zero and variance one."""

    @abstractmethod
    def _regress(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of the targets, (n, n_targets) each, for scaled features."""

    @abstractmethod
    def _state(self) -> dict[str, torch.Tensor]:
        """Return what was learned."""

    @abstractmethod
    def _restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what was learned, from `_state`."""

    def fit(
        self,
        acquisition: Acquisition,
        *,
        seed: int = 0,
        progress: Callable[[int, float], None] | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Train for a protocol, or load the weights that were trained for it.

        Parameters
        ----------
        acquisition : Acquisition
        seed : int
            The same seed gives the same weights on a processor; not negative.
        progress, checkpoint
            As for `training.train_network`.

        Raises
        ------
        ProtocolError
            If the protocol cannot identify the model's parameters.
        PriorError
            If the prior is not of the model's parameters.
        WeightsError
            If the weights are damaged or for something else.
        UsageError
            If the seed is negative, or the noise cannot be that of such signals.
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
            raise PriorError(f"The prior is not of the parameters of model {self.model.name}.")
        self.noise_ = self.noise or default_noise(self.model, acquisition)
        if self.noise_.kind == "rician" and acquisition.has_sign:
            raise UsageError("Rician noise is that of magnitudes, but this series has signs: use gaussian noise.")
        self._features = Features(self.model, acquisition, self.noise_, self.device)
        with one_thread():
            self._train(seed, progress, checkpoint)
        return self

    def identity(self, acquisition: Acquisition) -> dict[str, Any]:
        """Return what must be the same in training and in use, as plain data.

        Gradient directions are not among it, since motion correction turns them; see `probes.check_turn`.
        """
        protocol = {key: value for key, value in acquisition.to_dict().items() if key != "direction"}
        columns = (*self.model.parameters, *self.model.derived, *self.model.covariates)
        return {
            "estimator": self.name,
            "model": {"name": self.model.name, "bounds": {p.name: list(p.bounds) for p in columns}},
            "protocol": protocol,
        }

    def cache_key(self, acquisition: Acquisition, seed: int = 0) -> str:
        """Return the content hash of all that the weights depend on."""
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
        """Return what weights are trained on for a protocol, and how, as plain data: part of `notes_`."""
        return {
            "prior": (self.prior or self.model.default_prior()).describe(),
            "noise": (self.noise or default_noise(self.model, acquisition)).to_dict(),
            "options": self.options(),
            "n_combinations": min(self.n_combinations, MAX_VALUES // acquisition.n_measurements),
            "seed": seed,
        }

    def provenance(self) -> str:
        """Return number of voxels, training distribution and noise in a sentence."""
        noise = self.notes_["noise"]
        low, high = map(float, noise["snr"])
        return (
            f"Trained on {self.notes_['n_combinations']} simulated voxels of this protocol, distribution "
            f"{self.notes_['prior']['name']}, {noise['kind']} noise, SNR {low:g} to {high:g}."
        )

    def save(self, folder: str | Path) -> None:
        """Write what was learned, and a card, into a folder; see `weights.save_weights`."""
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
            raise WeightsError(f"{found} does not hold weights of {self.name} as they should be. {REMEDY}") from error

    def _take(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Take over the tensors and notes of a folder, and try them on the voxels that are kept with them."""
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
        self._features = Features(self.model, trained, self.noise_, self.device)
        clean = self.model.signal(self._probes["theta"], trained)
        check_probes(folder, self._probes, clean.float(), *self._probe(self._probes))
        self._features = Features(self.model, self.acquisition_, self.noise_, self.device)

    def _train(self, seed: int, progress: Callable[[int, float], None] | None, checkpoint: Path | None) -> None:
        rng = np.random.default_rng(seed)
        generator = torch.Generator(self.device).manual_seed(seed)
        told = self.recipe(self.acquisition_, seed)
        n = told["n_combinations"]
        training, unseen = (
            simulate_voxels(self.model, self.acquisition_, self.prior_, self.noise_, size, rng, self.device)
            for size in (n, min(n, N_VALIDATION))
        )
        examples = Examples(self.model, training, self._features, self._targets)
        self._targets.learn_ranges(examples.truth)
        self._scaling = Scaling.learn(*examples(len(unseen), generator))
        self._learn(self._scaling.of(examples), generator, progress, checkpoint)
        others = Examples(self.model, unseen, self._features, self._targets)
        self.notes_ = {
            **told,
            "version": __version__,
            "validation": self._validate(*self._scaling.of(others)(len(unseen), generator)),
        }
        index, signal, sigma = unseen.draw(N_PROBES, generator)
        theta = unseen.theta[index]
        self._probes = {"theta": theta, "clean": unseen.clean[index], "signal": signal, "sigma": sigma}
        self._probes["estimate"], self._probes["std"] = self._probe(self._probes)

    def _probe(self, probes: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return estimates and standard deviations of some voxels, of all parameters but angles, in their units."""
        covariates = probes["theta"][:, len(self.model.parameters) :].float()
        with torch.no_grad():
            estimate, std, _ = self._estimate(probes["signal"], probes["sigma"], covariates)
        everything = (*self.model.parameters, *self.model.derived)
        columns = [i for i, parameter in enumerate(everything) if not parameter.is_periodic]
        return estimate[:, columns], std[:, columns]

    def _block_size(self) -> int:
        """Return how many voxels are regressed together."""
        return BLOCK_SIZE

    def _regress_blocks(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [self._regress(part) for part in torch.split(features, self._block_size())]
        mean, std = (torch.cat(part) for part in zip(*parts, strict=True))
        return mean, std

    def _validate(self, features: torch.Tensor, targets: torch.Tensor) -> dict[str, Any]:
        """Return, per output, the error relative to the spread of the prior, and the coverage of 95 % intervals."""
        with torch.no_grad():
            mean, std = self._regress_blocks(features)
        return errors_by_name((self.model.parameters[0].name, *self._targets.names), mean - targets, std)

    def _solve(self, voxels: VoxelData) -> Solution:
        """Return the regressed parameters; see `VoxelwiseEstimator`."""
        signals = voxels.signals
        noise = np.full(len(signals), np.nan, dtype=np.float32) if voxels.noise_std is None else voxels.noise_std
        seen = (torch.as_tensor(values, device=self.device) for values in (signals, noise[:, None], voxels.covariates))
        return Solution(*(values.cpu().numpy() for values in self._estimate(*seen)))

    def _estimate(
        self, signal: torch.Tensor, sigma: torch.Tensor, covariates: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return estimates and standard deviations in the parameters' units, and statuses; `sigma` is (n, 1).

        Without a positive reference they are NaN. A posterior mean is never on a bound, unless the voxel is unlike
        those of the training: it has no standard deviation there.
        """
        size = reference(signal, self.acquisition_)
        size = torch.where(size > 0, size, torch.nan)
        relative = signal / size
        frames = self._features.frames(torch.where(torch.isfinite(size), relative, 0.0))
        features = self._features(relative, frames, sigma / size, covariates)
        mean, std = self._regress_blocks(self._scaling.features(features))
        mean, std = self._scaling.in_units(mean, std)
        std = torch.where(sigma * (self.noise_.snr[0] - MARGIN) > size, torch.nan, std)
        amplitude = (size * mean[:, :1].float().exp()).double()
        mean = torch.where(torch.isfinite(size), mean, 0.5)
        value, spread, is_free = self._targets.estimates(mean[:, 1:], std[:, 1:], frames)
        estimate = torch.cat([amplitude, value], dim=1)
        spread = torch.cat([std[:, :1] * amplitude, spread], dim=1)
        status = torch.where(is_free, int(Status.OK), int(Status.AT_BOUND)).to(torch.uint8)
        return estimate, spread, status
