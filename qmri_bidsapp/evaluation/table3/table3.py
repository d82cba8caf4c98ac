"""Table 3 of Gyori et al. 2021: errors of estimates of the spherical mean over the whole parameter space.

441 points of a grid, 21 neurite fractions from 0 to 1 by 21 diffusivities from 0 to 3 um2/ms, each with many noisy
samples at a signal-to-noise ratio of 25 (section 2.4.2). Per point: root-mean-square error, absolute value of the bias,
and standard deviation of the estimates; in the table, their means over all points.

The paper does not state how many volumes without diffusion weighting its simulated signals have, nor whether these are
noisy. Its scans have 12 with the same phase encoding; 12 noisy ones reproduce its numbers of traditional fitting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import SphericalMean
from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.core.prior import Empirical, Mixed, Prior, Uniform
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.estimators.learned.base import LearnedEstimator
from qmri_bidsapp.evaluation.standards import add_noise, signals
from qmri_bidsapp.models.smt import SphericalMeanTechnique
from qmri_bidsapp.registry import get_estimator, load_estimators
from qmri_bidsapp.solvers import nelder_mead

Array = npt.NDArray[np.float64]
#: Takes (n_voxels, 5) signals, returns (n_voxels, 2): neurite fraction, diffusivity in um2/ms.
Fit = Callable[[Array], Array]

PROTOCOL = SphericalMean((0.0, 1000.0, 2000.0, 3500.0, 5000.0), (12, 32, 32, 32, 32))
SNR = 25.0
#: Samples per point in the paper.
N_SAMPLES = 10_000
FRACTIONS = np.linspace(0.0, 1.0, 21)
DIFFUSIVITIES = np.linspace(0.0, 3.0, 21)
#: Rows of learned estimators: prefix -> estimator. The training distribution follows the prefix.
LEARNED = {
    "net": "mlp",
    "rf": "forest",
    "boosting": "boosting",
    "polynomial": "polynomial",
    "wide-deep": "wide-deep",
}
PRIORS = ("uniform", "healthy", "mixed")
#: um2/ms in mm2/s.
UM2_PER_MS = 1e-3

#: Settings of fitmcmicro (https://github.com/ekaden/smt), which the paper cites: largest diffusivity, um2/ms; distance
#: of the simplex's vertices on the logit scale, where zero is the start, the middle of the bounds; tolerances.
MAX_DIFFUSIVITY = 3.05
SIMPLEX_STEP = 1.0
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = (factor * float(np.finfo(np.float64).eps) for factor in (1000, 10))
MAX_STEPS = 10_000
#: Batch size (voxels) of the simplex method, which fits the processor's cache.
CHUNK_SIZE = 16_384


@dataclass(frozen=True)
class Errors:
    """Means over points of the root-mean-square error, of |bias| and of the standard deviation, fraction first."""

    rmse: tuple[float, float]
    bias: tuple[float, float]
    std: tuple[float, float]


#: Rows as printed in the paper.
PUBLISHED: dict[str, Errors] = {
    "Traditional fitting": Errors((0.0883, 0.1106), (0.0313, 0.0130), (0.0742, 0.1087)),
    "Net-uniform-SNR25": Errors((0.0642, 0.1082), (0.0338, 0.0386), (0.0449, 0.0965)),
    "Net-healthy-brain-SNR25": Errors((0.1349, 0.1538), (0.1176, 0.0927), (0.0329, 0.0949)),
    "Net-mixed-SNR25": Errors((0.0669, 0.1136), (0.0382, 0.0448), (0.0472, 0.0974)),
    "RF-uniform-SNR25": Errors((0.0670, 0.1109), (0.0342, 0.0400), (0.0490, 0.0980)),
    "RF-healthy-brain-SNR25": Errors((0.1294, 0.1449), (0.1087, 0.0878), (0.0377, 0.0934)),
    "RF-mixed-SNR25": Errors((0.0690, 0.1117), (0.0350, 0.0422), (0.0510, 0.0973)),
}


class BoundedAsPublished(SphericalMeanTechnique):
    """The model with the bounds of fitmcmicro, so that all methods have the same bounds."""

    parameters: ClassVar[tuple[Parameter, ...]] = (
        *SphericalMeanTechnique.parameters[:2],
        replace(SphericalMeanTechnique.parameters[2], bounds=(0.0, MAX_DIFFUSIVITY * UM2_PER_MS)),
    )


def fit_traditionally(signal: Array) -> Array:
    """Fit as fitmcmicro does: S0 is the mean unweighted signal, the simplex method estimates the rest.

    The sum of squares over the shells is minimised over the logits of the fraction and of the diffusivity over its
    largest value, from the middle of both.
    """
    return np.concatenate([_fit_chunk(signal[i : i + CHUNK_SIZE]) for i in range(0, len(signal), CHUNK_SIZE)])


def _fit_chunk(signal: Array) -> Array:
    model, measured = BoundedAsPublished(), torch.tensor(signal)
    largest = torch.tensor([p.bounds[1] for p in model.parameters[1:]], dtype=torch.float64)
    weight = torch.tensor(PROTOCOL.n_directions[1:], dtype=torch.float64)

    def cost(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        theta = torch.cat([measured[index, :1], largest * logits.sigmoid()], dim=1)
        residual = model.signal(theta, PROTOCOL)[:, 1:] - measured[index, 1:]
        return (weight * residual.square()).sum(1)

    found = nelder_mead.minimise(
        cost,
        torch.zeros(len(signal), 2, dtype=torch.float64),
        SIMPLEX_STEP,
        relative=RELATIVE_TOLERANCE,
        absolute=ABSOLUTE_TOLERANCE,
        max_steps=MAX_STEPS,
    )
    return np.asarray((largest * found.sigmoid()).numpy() / [1.0, UM2_PER_MS])


def _prepare(name: str) -> Fit:
    """Return the fit of a registered estimator, with known noise, as for the paper's networks."""
    fitted = get_estimator(name)(BoundedAsPublished()).fit(PROTOCOL)

    def fit(signal: Array) -> Array:
        maps = fitted.predict(signal, noise_std=np.full(len(signal), 1 / SNR))
        return np.asarray(maps.estimate[:, 1:3] / [1.0, UM2_PER_MS])

    return fit


def training_distribution(name: str, subjects: Callable[[], list[Array]]) -> Prior:
    """Return one of `PRIORS`.

    Parameters
    ----------
    name : str
    subjects : callable
        Returns (n_voxels, 5) noise-free signals per healthy subject. The distribution is the density of the fits of
        these signals with noise, as in the paper's section 2.3.3.
    """
    parameters = SphericalMeanTechnique.parameters[1:]
    uniform = Uniform(parameters)
    if name == "uniform":
        return uniform
    model = SphericalMeanTechnique()
    fitted, rng = get_estimator("nlls")(model).fit(PROTOCOL), np.random.default_rng(0)
    samples = []
    for clean in subjects():
        maps = fitted.predict(add_noise(clean, PROTOCOL, 1 / SNR, rng))
        samples.append(maps.estimate[:, 1:3].astype(np.float64).clip(0, [p.bounds[1] for p in parameters]))
    healthy = Empirical(parameters, samples)
    return healthy if name == "healthy" else Mixed(uniform, healthy)


def _train(name: str, subjects: Callable[[], list[Array]]) -> Fit:
    """Return the fit of a learned estimator, trained on a distribution at the SNR of the test data."""
    prefix, _, prior_name = name.rpartition("-")
    kind = get_estimator(LEARNED[prefix])
    assert issubclass(kind, LearnedEstimator)
    prior = training_distribution(prior_name, subjects)
    fitted = kind(SphericalMeanTechnique(), prior=prior, noise=Noise("gaussian", (SNR, SNR))).fit(PROTOCOL)
    return lambda signal: np.asarray(fitted.predict(signal).estimate[:, 1:3] / [1.0, UM2_PER_MS])


def methods(chosen: list[str] | None, subjects: Callable[[], list[Array]]) -> dict[str, Callable[[], Fit]]:
    """Return name -> function that prepares a fit: traditional, registered estimators, learned ones by distribution.

    Parameters
    ----------
    chosen : list of str or None
        Names; None for all.
    subjects : callable
        See `training_distribution`.

    Raises
    ------
    UsageError
        If a name is unknown.
    """
    model = BoundedAsPublished()
    classical = [
        key
        for key, estimator in load_estimators().items()
        if estimator.supports(model) and not issubclass(estimator, LearnedEstimator)
    ]
    learned = [f"{prefix}-{prior}" for prefix in LEARNED for prior in PRIORS]
    known = ["traditional", *classical, *learned]
    names = known if chosen is None else chosen
    for name in names:
        if name not in known:
            raise UsageError(f"There is no row named {name!r}; known: {', '.join(known)}.")
    found: dict[str, Callable[[], Fit]] = {}
    for name in names:
        if name == "traditional":
            found[name] = lambda: fit_traditionally
        elif name in learned:
            found[name] = partial(_train, name, subjects)
        else:
            found[name] = partial(_prepare, name)
    return found


def truth() -> Array:
    """Return (441, 2) parameters of the points."""
    return np.stack(np.meshgrid(FRACTIONS, DIFFUSIVITIES, indexing="ij"), axis=-1).reshape(-1, 2)


def simulate(n_samples: int, *, seed: int = 0) -> Array:
    """Return (441, n_samples, 5) noisy signals with S0 of one.

    Raises
    ------
    UsageError
        If there are fewer than 2 samples: one has no standard deviation.
    """
    if n_samples < 2:
        raise UsageError(f"Errors need at least 2 samples per point, got {n_samples}.")
    theta = np.insert(truth() * [1.0, UM2_PER_MS], 0, 1.0, axis=1)
    clean = signals(BoundedAsPublished(), theta, PROTOCOL)[:, None]
    return add_noise(np.repeat(clean, n_samples, axis=1), PROTOCOL, 1 / SNR, np.random.default_rng(seed))


def estimate(fit: Fit, noisy: Array) -> Array:
    """Return the estimates of the signals of `simulate`, (441, n_samples, 2)."""
    return fit(noisy.reshape(-1, noisy.shape[-1])).reshape(*noisy.shape[:2], 2)


def measure(found: Array) -> tuple[Errors, Errors]:
    """Return the errors over all points, and over those with a diffusivity above zero.

    With a diffusivity of zero the signal does not depend on the fraction. No estimate can be right there, and one in
    21 points dominates the errors of the fraction. Random error adds to the mean of |bias|, up to 0.8 standard
    deviations over the square root of the number of samples.

    Parameters
    ----------
    found : ndarray
        From `estimate`.
    """
    points = truth()
    error = found - points[:, None]
    # (3, 441, 2): kind of error, point, parameter.
    table = np.array([np.sqrt((error**2).mean(1)), np.abs(error.mean(1)), error.std(1)])
    return _mean(table), _mean(table[:, points[:, 1] > 0])


def _mean(table: Array) -> Errors:
    return Errors(*((float(fraction), float(diffusivity)) for fraction, diffusivity in table.mean(1)))
