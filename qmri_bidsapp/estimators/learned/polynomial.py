"""Bayesian polynomial regression from the signals of a voxel to its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from typing_extensions import Self, Unpack

from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.estimators.learned.base import TRAINED_ON_SIMULATIONS, Common, LearnedEstimator
from qmri_bidsapp.estimators.learned.examples import Draw
from qmri_bidsapp.estimators.learned.monomials import Monomials
from qmri_bidsapp.estimators.learned.optimisers import dual_coordinate_ascent
from qmri_bidsapp.models.base import SignalModel

#: Batch size, examples, of the monomials in memory.
BATCH = 2**13
#: Steps to the maximum of the evidence, and of the spread's likelihood.
EVIDENCE_STEPS = 20
SPREAD_STEPS = 6
#: Least ratio of the precisions of the prior on coefficients and of the noise, relative to the mean information.
ROUNDING = 1e-12
#: Degree of the polynomial of the spread; a higher one diverges where examples are rare.
SPREAD_DEGREE = 4
#: Estimates are clamped to these quantiles of the training's parameters.
ENDS = (0.001, 0.999)
#: Largest squared error, in variances, in the fit of the spread, so that no single example dominates.
LARGEST_SURPRISE = 20.0
#: Range of the logarithm of the variance of scaled targets.
LOG_VARIANCE = (-18.0, 1.5)
#: Mean of the logarithm of the square of a standard normal variate.
LOG_CHI_SQUARED = -1.2704
#: Dual coordinate ascent: examples, block size, epochs, penalty.
SDCA_EXAMPLES = 2**15
SDCA_BLOCK = 512
SDCA_EPOCHS = 10
SDCA_RIDGE = 1e-4
#: Methods for the coefficients of the mean.
OPTIMISERS = ("exact", "sdca")


class PolynomialRegression(LearnedEstimator):
    """Regression on all monomials of the principal components of the features, up to a degree.

    The posterior mean of each parameter is approximated by the polynomial with the least squared error over the
    training distribution (Reisert et al. 2017). Its coefficients have a Gaussian prior, whose precision maximises the
    evidence (MacKay 1992). The logarithm of the variance is another polynomial, which maximises the Gaussian likelihood
    of the errors. Estimates are clamped to the range of the training.

    Parameters
    ----------
    model, device, prior, noise, weights, n_combinations
        As for `LearnedEstimator`.
    degree : int
        Of the polynomials; lower if there would be more than `monomials.MAX_MONOMIALS`.
    optimiser : {"exact", "sdca"}
        Method for the coefficients of the mean: the normal equations, or stochastic dual coordinate ascent on fewer
        examples and with a fixed penalty.
    """

    name: ClassVar[str] = "polynomial"
    title: ClassVar[str] = "Bayesian polynomial regression, trained on simulated signals"
    reference: ClassVar[str] = "Reisert et al. 2017, NeuroImage 147:964"
    default_combinations: ClassVar[int] = 2**17
    option_names: ClassVar[tuple[str, ...]] = ("degree", "optimiser")
    methods: ClassVar[str] = (
        "With the estimator polynomial, estimates are those of Bayesian polynomial regression [@reisert] "
        + TRAINED_ON_SIMULATIONS
    )
    bibliography: ClassVar[str] = """
    @article{reisert,
      author = {Reisert M, Kellner E, Dhital B, Hennig J, Kiselev VG},
      year = {2017},
      title = {Disentangling micro from mesostructure by diffusion {MRI}: A {Bayesian} approach},
      journal = {NeuroImage},
      volume = {147},
      pages = {964-975},
      doi = {10.1016/j.neuroimage.2016.09.058}
    }
    """

    def __init__(
        self,
        model: SignalModel,
        *,
        degree: int = 8,
        optimiser: str = "exact",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(model, **common)
        if degree < 1:
            raise UsageError(f"A polynomial needs a degree of at least 1, got {degree}.")
        self.degree = degree
        self.optimiser = self.optimised_by(optimiser)["optimiser"]

    @classmethod
    def brief(cls, model: SignalModel, *, device: str = "cpu") -> Self:
        """Return an estimator with few examples; see `TrainedEstimator.brief`."""
        return cls(model, device=device, n_combinations=2**13)

    @classmethod
    def optimised_by(cls, name: str) -> dict[str, Any]:
        """Return the constructor's option; see `LearnedEstimator.optimised_by`."""
        if name not in OPTIMISERS:
            raise UsageError(f"Estimator {cls.name} has no optimiser {name!r}; known: {', '.join(OPTIMISERS)}.")
        return {"optimiser": name}

    def _learn(
        self,
        examples: Draw,
        generator: torch.Generator,
        progress: Callable[[int, float], None] | None,
        checkpoint: Path | None,
    ) -> None:
        features, targets = examples(BATCH, generator)
        self._monomials = Monomials.of(features, self.degree)
        self._ends = targets.double().quantile(targets.new_tensor(ENDS).double(), dim=0)
        batches = Batches(self._monomials, examples, len(self._scaling.target_mean), generator, self.n_combinations)
        information, moment, power, n = batches.sums()
        if self.optimiser == "exact":
            self._mean = evidence_regression(information, moment, power, n)
        else:
            design, target = batches.draw(SDCA_EXAMPLES)
            self._mean = dual_coordinate_ascent(
                design, target, SDCA_RIDGE, generator, epochs=SDCA_EPOCHS, block=SDCA_BLOCK
            )
        self._log_variance = self._learn_variance(batches, information)

    def _learn_variance(self, batches: Batches, information: torch.Tensor) -> torch.Tensor:
        """Return the coefficients of the logarithm of the variance.

        They start from a regression of the logarithms of the squared errors (Harvey 1976, Econometrica 44:461),
        followed by steps of Fisher scoring, whose information is that of the regression.
        """
        size = math.comb(self._monomials.basis.shape[1] + SPREAD_DEGREE, SPREAD_DEGREE)
        information = information[:size, :size]
        ridge = 1e-9 * information.diagonal().mean() * torch.eye(len(information), dtype=torch.float64)
        factor = torch.linalg.cholesky(information + ridge.to(information))
        coefficients = torch.zeros(len(information), len(self._scaling.target_mean)).to(information)
        for step in range(SPREAD_STEPS + 1):
            moment = torch.zeros_like(coefficients)
            for design, target in batches:
                squared = (self._mean_of(design) - target).square()
                if step == 0:
                    response = squared.log().clamp(*LOG_VARIANCE) - LOG_CHI_SQUARED
                else:
                    expected = (design[:, :size] @ coefficients).clamp(*LOG_VARIANCE).exp()
                    response = (squared / expected - 1).clamp(max=LARGEST_SURPRISE)
                moment += design[:, :size].T @ response
            coefficients += torch.cholesky_solve(moment, factor)
        return coefficients

    def _mean_of(self, design: torch.Tensor) -> torch.Tensor:
        return (design @ self._mean).clamp(*self._ends)

    def _regress(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        design = self._monomials(features)
        log_variance = design[:, : len(self._log_variance)] @ self._log_variance
        std = (0.5 * log_variance.clamp(*LOG_VARIANCE)).exp()
        return self._mean_of(design).float(), std.float()

    def _state(self) -> dict[str, torch.Tensor]:
        state = {f"monomials.{name}": value for name, value in self._monomials.state_dict().items()}
        state["degree"] = torch.tensor(self._monomials.degree)
        return state | {"mean": self._mean, "log_variance": self._log_variance, "ends": self._ends}

    def _restore(self, state: dict[str, torch.Tensor]) -> None:
        self._mean, self._log_variance, self._ends = state["mean"], state["log_variance"], state["ends"]
        n_features, n_components = state["monomials.basis"].shape
        self._monomials = Monomials(n_features, n_components, int(state["degree"])).to(self.device)
        own = {key.removeprefix("monomials."): value for key, value in state.items() if key.startswith("monomials.")}
        self._monomials.load_state_dict(own)


class Batches:
    """Monomials and targets of examples; each pass draws new ones."""

    def __init__(
        self, monomials: Monomials, examples: Draw, n_targets: int, generator: torch.Generator, n: int
    ) -> None:
        self.monomials, self.examples, self.n_targets = monomials, examples, n_targets
        self.generator, self.n = generator, n

    def draw(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (n, n_monomials) monomials and (n, n_targets) targets, float64; fewer if some have no reference."""
        features, target = self.examples(n, self.generator)
        return self.monomials(features), target.double()

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for first in range(0, self.n, BATCH):
            yield self.draw(min(BATCH, self.n - first))

    def sums(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        """Return the normal equations, the targets' sums of squares, and the number of examples."""
        size, n = len(self.monomials.size), 0
        information = self.monomials.size.new_zeros(size, size)
        moment, power = (information.new_zeros(rows, self.n_targets) for rows in (size, 1))
        for design, target in self:
            information += design.T @ design
            moment += design.T @ target
            power += target.square().sum(0)
            n += len(target)
        return information, moment, power.squeeze(0), n


def evidence_regression(information: torch.Tensor, moment: torch.Tensor, power: torch.Tensor, n: int) -> torch.Tensor:
    """Return coefficients of linear regression, with the Gaussian prior that maximises the evidence.

    The precisions alpha of the prior and beta of the noise follow from gamma, the number of coefficients that the data
    determine: alpha = gamma / |w|^2, beta = (n - gamma) / residual sum of squares (MacKay 1992, Neural Comput 4:415,
    equations 4.8 and 4.9).

    Parameters
    ----------
    information : Tensor
        (n_coefficients, n_coefficients) sum of x' x over the examples.
    moment : Tensor
        (n_coefficients, n_targets) sum of x' y.
    power : Tensor
        (n_targets,) sum of y^2.
    n : int
        Number of examples.
    """
    values, vectors = torch.linalg.eigh(information)
    values = values.clamp(min=0).unsqueeze(1)
    rotated = vectors.T @ moment
    # alpha / beta of each target
    ridge = 1e-6 * values.mean().expand(moment.shape[1])
    for _ in range(EVIDENCE_STEPS):
        weight = rotated / (values + ridge)
        gamma = (values / (values + ridge)).sum(0)
        residual = power - 2 * (weight * rotated).sum(0) + (values * weight.square()).sum(0)
        # Without noise, rounding could make the residual negative and determine the coefficients.
        residual = residual.clamp(min=1e-12 * power)
        ridge = (gamma * residual / ((n - gamma) * weight.square().sum(0))).clamp(min=ROUNDING * values.mean())
    coefficients: torch.Tensor = vectors @ (rotated / (values + ridge))
    return coefficients
