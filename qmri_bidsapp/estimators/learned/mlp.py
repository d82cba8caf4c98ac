"""A multilayer perceptron from the signals of a voxel to its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import Self, Unpack

from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.estimators.learned.base import TRAINED_ON_SIMULATIONS, Common, LearnedEstimator
from qmri_bidsapp.estimators.learned.examples import Draw
from qmri_bidsapp.estimators.learned.training import Training, train_network
from qmri_bidsapp.models.base import SignalModel

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": partial(nn.ReLU, inplace=True), "silu": nn.SiLU}
#: Number of activations of a layer that fits the cache of one core.
BLOCK_VALUES = 2**18
#: Weight of the spread's likelihood relative to the squared error of the mean, and least variance of a scaled target.
SPREAD_WEIGHT = 0.1
LEAST_VARIANCE = 1e-8
#: Range of the logarithm of the amplitude's scaled variance, which must not overflow in unusual voxels.
LOG_VARIANCE = (-18.0, 18.0)


class Deep(Common, total=False):
    """Options of the constructor of `MultilayerPerceptron`."""

    training: Training
    hidden: Sequence[int]
    activation: str


class MultilayerPerceptron(LearnedEstimator):
    """Fully connected network with logits of the position within the bounds as outputs.

    Each parameter has two outputs: its mean, trained by the squared error, and its variance, trained by the Gaussian
    likelihood of the errors, which has no gradient for the mean. A value between bounds 0 and 1 with mean m has a
    variance of at most m (1 - m); the second output is the logit of the variance relative to that.

    Parameters
    ----------
    model, device, prior, noise, weights, n_combinations
        As for `LearnedEstimator`.
    training : Training
        Steps, batch size, optimiser.
    hidden : sequence of int
        Number of units of each hidden layer.
    activation : str
        ``"silu"`` or ``"relu"``.
    """

    name: ClassVar[str] = "mlp"
    title: ClassVar[str] = "Multilayer perceptron, trained on simulated signals"
    reference: ClassVar[str] = "Gyori et al. 2021, Magn Reson Med 87:932"
    option_names: ClassVar[tuple[str, ...]] = ("training", "hidden", "activation")
    methods: ClassVar[str] = (
        "With the estimator mlp, estimates are those of a multilayer perceptron [@gyori] " + TRAINED_ON_SIMULATIONS
    )

    def __init__(
        self,
        model: SignalModel,
        *,
        training: Training = Training(),  # noqa: B008
        hidden: Sequence[int] = (64, 64, 64),
        activation: str = "silu",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(model, **common)
        if activation not in ACTIVATIONS:
            raise UsageError(f"There is no activation {activation!r}; known: {', '.join(ACTIVATIONS)}.")
        self.training = training
        self.hidden = list(hidden)
        self.activation = activation

    @classmethod
    def brief(cls, model: SignalModel, *, device: str = "cpu") -> Self:
        """Return an estimator with a very short training; see `TrainedEstimator.brief`."""
        return cls(model, device=device, training=Training(steps=50, batch_size=256), n_combinations=2**13)

    @classmethod
    def optimised_by(cls, name: str) -> dict[str, Any]:
        """Return the constructor's option; see `LearnedEstimator.optimised_by`."""
        return {"training": Training(optimiser=name)}

    def options(self) -> dict[str, Any]:
        """Return options as plain data; see `LearnedEstimator.options`."""
        return super().options() | {"training": asdict(self.training)}

    def _set_options(self, options: dict[str, Any]) -> None:
        super()._set_options({**options, "training": Training(**options["training"])})

    def _learn(
        self,
        examples: Draw,
        generator: torch.Generator,
        progress: Callable[[int, float], None] | None,
        checkpoint: Path | None,
    ) -> None:
        self._network = self._start(examples, generator)

        def loss(generator: torch.Generator) -> torch.Tensor:
            features, target = examples(self.training.batch_size, generator)
            mean, variance = self._moments(self._network(features))
            squared = (mean - target).square()
            variance = variance.clamp(min=LEAST_VARIANCE)
            spread = squared.detach() / variance + variance.log()
            return (squared + 0.5 * SPREAD_WEIGHT * spread).mean()

        train_network(
            self._network,
            loss,
            self.training,
            generator,
            progress=progress,
            checkpoint=checkpoint,
            optimisers=self._optimisers(),
        )

    def _start(self, examples: Draw, generator: torch.Generator) -> nn.Module:
        """Return the network before training."""
        network = self._build().to(self.device)
        for layer in network:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(layer.bias)
        return network

    def _rebuild(self, state: dict[str, torch.Tensor]) -> nn.Module:
        """Return the network for the tensors of `_state`."""
        return self._build().to(self.device)

    def _optimisers(self) -> tuple[torch.optim.Optimizer, ...]:
        """Return the optimisers of the network's parts; none if that of `training` serves all."""
        return ()

    def _build(self) -> nn.Sequential:
        """Return the network without weights."""
        sizes = [len(self._scaling.input_mean), *self.hidden, 2 * len(self._scaling.target_mean)]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.utils.skip_init(nn.Linear, n_in, n_out), ACTIVATIONS[self.activation]()]  # type: ignore[no-untyped-call]
        return nn.Sequential(*layers[:-1])

    def _moments(self, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and variance of scaled targets, (n, n_targets) each; the latter has no gradient for the mean."""
        centre, spread = output.chunk(2, dim=1)
        scale = self._scaling.target_std[1:]
        share = centre[:, 1:].sigmoid()
        mean = torch.cat([centre[:, :1], (share - self._scaling.target_mean[1:]) / scale], dim=1)
        fixed = share.detach()
        bounded = fixed * (1 - fixed) * spread[:, 1:].sigmoid() / scale.square()
        return mean, torch.cat([spread[:, :1].clamp(*LOG_VARIANCE).exp(), bounded], dim=1)

    def _regress(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, variance = self._moments(self._network(features))
        return mean, variance.sqrt()

    def _block_size(self) -> int:
        return max(1, BLOCK_VALUES // max(self.hidden))

    def _state(self) -> dict[str, torch.Tensor]:
        return dict(self._network.state_dict())

    def _restore(self, state: dict[str, torch.Tensor]) -> None:
        self._network = self._rebuild(state)
        self._network.load_state_dict(state)
        self._network.eval()
