"""A small lesion in white matter, as in section 2.4.4 of Gyori et al. 2021: how visible it is in maps and trust maps.

The paper asks whether an abnormality can be seen in maps of networks. Here the visibility is measured: how well the
estimate, its certificate and the flags separate single voxels of the lesion from white matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.noise import add_gaussian
from qmri_bidsapp.core.prior import Mixed, Prior
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.learned.base import LearnedEstimator
from qmri_bidsapp.evaluation.flags.areas import clean_series, healthy_prior, spherical_mean_series
from qmri_bidsapp.fitting.series import fit_voxels
from qmri_bidsapp.fitting.trust import flag_voxels, quantities_of, read_truth
from qmri_bidsapp.models.smt import SphericalMeanTechnique
from qmri_bidsapp.registry import get_estimator
from qmri_bidsapp.uncertainty.certificate import N_VOXELS, certify
from qmri_bidsapp.uncertainty.inverse import Reading, Trust
from qmri_bidsapp.uncertainty.ood import LEVEL

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

#: Signal-to-noise ratios of the paper.
SNRS = (25.0, 5.0)
ESTIMATORS = ("nlls", "grid", "mlp:uniform", "mlp:healthy", "mlp:mixed", "forest:healthy")
PRIORS = ("uniform", "healthy", "mixed")
#: Number of white-matter voxels for comparison.
N_WHITE = 4000
#: Side, in voxels, of the cubes over which regional means are taken.
REGION = 3
#: Standard deviations in a median absolute deviation of a normal distribution.
MAD = 1.4826
MODEL = SphericalMeanTechnique()
#: Names of the two parameters; maps in the figure.
NAMES = ("v", "lambda")
MAPS = ("estimate", "bias", "width", "p_value")


@dataclass(frozen=True)
class Brain:
    """A slab of a brain.

    Attributes
    ----------
    values : ndarray
        (x, y, z, 2) neurite fraction and diffusivity (mm2/s).
    brain, white, lesion : ndarray
        (x, y, z) bool: inside, white matter outside of the lesion, the lesion.
    """

    values: Array
    brain: Mask
    white: Mask
    lesion: Mask

    def choose(self, n_white: int, seed: int) -> tuple[Indices, Indices, Indices, Indices]:
        """Return flat indices of the lesion, some white matter, the rest of it, and the slice in the middle."""
        white = np.flatnonzero(self.white)
        drawn = np.sort(np.random.default_rng([seed, 0]).choice(white, min(n_white, len(white)), replace=False))
        middle = np.zeros_like(self.brain)
        middle[..., self.brain.shape[2] // 2] = True
        return np.flatnonzero(self.lesion), drawn, np.setdiff1d(white, drawn), np.flatnonzero(middle & self.brain)

    def regional_mean(self, index: Indices, values: Array) -> Array:
        """Return means of values over cubes of `REGION` voxels a side, of those voxels that have a value.

        Parameters
        ----------
        index : ndarray
            (n,) flat indices.
        values : ndarray
            (n, n_columns), NaN where there is none.
        """
        volume = np.full((self.brain.size, values.shape[1]), np.nan)
        volume[index] = values
        known = np.isfinite(volume).astype(np.float64)
        size = (REGION,) * 3
        columns = []
        for value, weight in zip(np.nan_to_num(volume).T, known.T, strict=True):
            sums = (uniform_filter(part.reshape(self.brain.shape), size, mode="constant") for part in (value, weight))
            total, n = (part.ravel()[index] for part in sums)
            columns.append(np.divide(total, n, out=np.full(len(index), np.nan), where=n > 0.5 / REGION**3))
        return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Outcome:
    """Results of one estimator at one signal-to-noise ratio.

    Attributes
    ----------
    numbers : dict
        Plain data, see `LesionVoxels.numbers`.
    maps : dict
        `MAPS` -> (n,) of the voxels of the slice: estimate, expected bias and width of the range of the diffusivity,
        mm2/s, and p-value of the flag.
    """

    numbers: dict[str, Any]
    maps: dict[str, Array]


@dataclass(frozen=True)
class LesionVoxels:
    """Results of n voxels.

    Attributes
    ----------
    truth, estimate : ndarray
        (n, 2) neurite fraction and diffusivity (mm2/s).
    reading : Reading
        Under the uniform prior, of amplitude, fraction and diffusivity.
    p_value : ndarray
        (n,) of the flag, under the healthy prior.
    """

    truth: Array
    estimate: Array
    reading: Reading
    p_value: npt.NDArray[np.float32]

    @property
    def expected_truth(self) -> Array:
        """(n, 2) estimate less expected bias."""
        return self.estimate - self.reading.bias[:, 1:]

    def numbers(self, lesion: slice, white: slice, regional_mean: Callable[[Array], Array]) -> dict[str, Any]:
        """Return how well the lesion separates from white matter, as plain data.

        ``cnr``: difference of the means over the standard deviation in white matter. ``auroc``: area under the ROC
        curve of lesion against white matter, 0.5 without information. Low values of a parameter and of p-values, and
        high values of the expected bias, count as lesion, as in truth. Two scores do not use this knowledge: ``map``
        is the distance of both estimates from the median of white matter, ``combined`` that of the expected truths;
        voxels without a value rank as most unusual. ``map of regions`` and ``combined of regions`` use `regional_mean`.
        ``coverage``: share of the lesion in which the range holds the truth.
        """
        parts: dict[str, Array] = {}
        for k, name in enumerate(NAMES):
            parts[name] = -self.estimate[:, k]
            parts[f"{name} debiased"] = -self.expected_truth[:, k]
            parts[f"{name} bias"] = self.reading.bias[:, k + 1].astype(np.float64)
        for name, values in (("map", self.estimate), ("combined", self.expected_truth)):
            parts[name] = distance(values, values[white])
            means = regional_mean(values)
            parts[f"{name} of regions"] = distance(means, means[white])
        parts["flag"] = -self.p_value.astype(np.float64)
        inside = (self.truth >= self.reading.lower[:, 1:]) & (self.truth <= self.reading.upper[:, 1:])
        wide, flagged = self.reading.trust == Trust.WIDE, ~(self.p_value > LEVEL)
        return {
            "cnr": dict(zip(NAMES, _contrast(self.estimate[lesion], self.estimate[white]), strict=True)),
            "auroc": {name: area(values[white], values[lesion]) for name, values in parts.items()},
            "coverage": {
                **dict(zip(NAMES, inside[lesion].mean(axis=0).tolist(), strict=True)),
                "both": float(inside[lesion].all(axis=1).mean()),
            },
            "mean_estimate": {
                name: self.estimate[where].mean(axis=0).tolist() for name, where in _places(lesion, white)
            },
            "expected_bias": {
                name: np.nanmean(self.reading.bias[where, 1:], axis=0, dtype=np.float64).tolist()
                for name, where in _places(lesion, white)
            },
            "wide": {name: float(wide[where].mean()) for name, where in _places(lesion, white)},
            "flagged": {name: float(flagged[where].mean()) for name, where in _places(lesion, white)},
        }

    def maps(self, where: slice) -> dict[str, Array]:
        """Return the maps of the figure, see `Outcome`."""
        width = (self.reading.upper - self.reading.lower)[:, 2]
        columns = np.column_stack([self.estimate[:, 1], self.reading.bias[:, 2], width, self.p_value])
        return dict(zip(MAPS, columns[where].astype(np.float64).T, strict=True))


def _places(lesion: slice, white: slice) -> tuple[tuple[str, slice], ...]:
    return ("lesion", lesion), ("white matter", white)


def _contrast(lesion: Array, white: Array) -> list[float]:
    return [float(value) for value in (white.mean(axis=0) - lesion.mean(axis=0)) / white.std(axis=0)]


def distance(values: Array, usual: Array) -> Array:
    """Return the distance of (n, 2) values from the median of reference values, in their robust standard deviations."""
    centre = np.nanmedian(usual, axis=0)
    spread = MAD * np.nanmedian(np.abs(usual - centre), axis=0)
    return np.asarray(np.sqrt(np.square((values - centre) / spread).sum(axis=1)))


def area(usual: Array, other: Array) -> float:
    """Return the area under the ROC curve of two sets of scores; large scores are unusual, NaN most of all."""
    scores = np.nan_to_num(np.concatenate([usual, other]), nan=np.inf)
    is_other = np.repeat([False, True], [len(usual), len(other)])
    return float(roc_auc_score(is_other, rankdata(scores)))


def prior_of(name: str) -> Prior:
    """Return one of `PRIORS`."""
    uniform = MODEL.default_prior()
    if name == "uniform":
        return uniform
    return healthy_prior(MODEL) if name == "healthy" else Mixed(uniform, healthy_prior(MODEL))


def check(name: str) -> tuple[type[Estimator], str]:
    """Return the estimator of a name and its training distribution, if it is learned.

    Raises
    ------
    UsageError
        If the estimator is not voxelwise, or is learned and not named with one of `PRIORS`.
    """
    key, _, prior = name.partition(":")
    kind = get_estimator(key)
    if kind.is_spatial or not kind.supports(MODEL):
        raise UsageError(f"Estimator {key} does not fit single voxels of {MODEL.name}.")
    learns = issubclass(kind, LearnedEstimator)
    if learns and prior not in PRIORS:
        raise UsageError(f"Name what {key} is trained on: {', '.join(f'{key}:{known}' for known in PRIORS)}.")
    if prior and not learns:
        raise UsageError(f"Estimator {key} is not trained: name it without {prior!r}.")
    return kind, prior


def prepare(name: str, protocol: Acquisition, noise: Noise, seed: int) -> Estimator:
    """Return an estimator, fitted; learned ones are trained at the ratio of the data. See `check`."""
    kind, prior = check(name)
    if issubclass(kind, LearnedEstimator):
        return kind(MODEL, prior=prior_of(prior), noise=noise).fit(protocol, seed=seed)
    return kind(MODEL).fit(protocol, seed=seed)


def evaluate(
    brain: Brain,
    estimators: Sequence[str] = ESTIMATORS,
    *,
    snrs: Sequence[float] = SNRS,
    n_white: int = N_WHITE,
    n_reference: int = N_VOXELS,
    seed: int = 0,
    report: Callable[[str], None] = lambda what: None,
) -> Iterator[tuple[float, str, Outcome]]:
    """Yield signal-to-noise ratio, estimator and outcome.

    Signals are the model's own, as in the paper, of fibres of one to three dispersed bundles, with an amplitude of one
    and Gaussian noise. Ranges and expected biases are under the uniform prior; flags compare with healthy tissue.

    Parameters
    ----------
    brain : Brain
    estimators : sequence of str
        See `prepare`.
    snrs : sequence of float
    n_white : int
        Most voxels of white matter.
    n_reference : int
        Simulated voxels of each certificate.
    seed : int
    report : callable
        Called with the current step, for progress.
    """
    series = spherical_mean_series()
    protocol, _ = MODEL.adapt(series)
    lesion, white, rest, _ = parts = brain.choose(n_white, seed)
    index = np.concatenate(parts)
    truth = brain.values.reshape(-1, 2)[index]
    clean = clean_series(MODEL, np.insert(truth, 0, 1.0, axis=1), series, np.random.default_rng([seed, 1]))
    ends = np.cumsum([len(lesion), len(white), len(rest)])

    def regional_mean(values: Array) -> Array:
        return brain.regional_mean(index[: ends[2]], values[: ends[2]])

    for snr in snrs:
        # All estimators see the same noise.
        measured = add_gaussian(clean, 1 / snr, np.random.default_rng([seed, 2]))
        noise = Noise("gaussian", (snr, snr))
        for name in estimators:
            report(f"SNR {snr:g}: {name}")
            estimator = prepare(name, protocol, noise, seed)
            level = np.full(len(measured), 1 / snr)
            maps, measures = fit_voxels(estimator, series, measured, level)
            uniform, healthy = (
                certify(estimator, protocol, noise=noise, prior=prior_of(key), n=n_reference, seed=seed)
                for key in ("uniform", "healthy")
            )
            reading = read_truth(uniform, *quantities_of(uniform, maps), measures.size * snr)
            flags, _ = flag_voxels(healthy, measures, level)
            voxels = LesionVoxels(truth, maps.estimate[:, 1:3].astype(np.float64), reading, flags.p_value)
            numbers = voxels.numbers(slice(ends[0]), slice(*ends[:2]), regional_mean)
            yield snr, name, Outcome(numbers, voxels.maps(slice(ends[2], None)))
