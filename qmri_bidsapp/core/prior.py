"""Priors: distributions of tissue parameters, for training and for certificates."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.errors import PriorError

Array = npt.NDArray[np.float64]

#: Bins of the histogram along each of two parameters (Gyori et al. 2021, section 2.3.3).
N_BINS = 500
#: Width of kernels relative to the standard deviation of each parameter: much less than the distance between tissues,
#: which Scott's rule, made for a single normal cluster, would blur.
BANDWIDTH = 0.05
#: Smallest number of subjects, and of voxels in all of them, for an empirical distribution.
MIN_SUBJECTS = 3
MIN_VOXELS = 2000
#: Proposals per round of rejection sampling, and largest number of rounds.
N_PROPOSALS = 2**18
MAX_ROUNDS = 10_000


class Prior(ABC):
    """Distribution of parameters.

    Parameters
    ----------
    parameters : sequence of Parameter
        Parameters that are drawn, in this order; all of a model but the amplitude.

    Attributes
    ----------
    name : str
        ``"uniform"``, ``"healthy"`` and so on.
    """

    name: str

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = tuple(parameters)

    @abstractmethod
    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Return (n, n_parameters) values, in each parameter's unit, within its bounds."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return plain data that identify this distribution."""


class Uniform(Prior):
    """Independent uniform distributions, of the logarithm where the range is positive and wide.

    Parameters
    ----------
    parameters : sequence of Parameter
    ranges : mapping, optional
        Name -> (lowest, highest) value, in the parameter's unit; its bounds where not given.

    Raises
    ------
    PriorError
        If a name is unknown, or a range is empty or reaches beyond the parameter's bounds.
    """

    name: str = "uniform"

    def __init__(self, parameters: Sequence[Parameter], ranges: Mapping[str, tuple[float, float]] | None = None):
        super().__init__(parameters)
        given = dict(ranges or {})
        self.ranges = tuple(_check_range(p, given.pop(p.name, p.bounds)) for p in self.parameters)
        if given:
            known = ", ".join(p.name for p in self.parameters)
            raise PriorError(f"The prior has a range of {', '.join(sorted(given))}, but the parameters are {known}.")

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Draw; see `Prior.draw`."""
        columns = [
            limits[0] * (limits[1] / limits[0]) ** rng.random(n) if p.is_scale else rng.uniform(*limits, n)
            for p, limits in zip(self.parameters, self.ranges, strict=True)
        ]
        return np.stack(columns, axis=1) if columns else np.empty((n, 0))

    def describe(self) -> dict[str, Any]:
        """Return the ranges."""
        ranges = {p.name: list(limits) for p, limits in zip(self.parameters, self.ranges, strict=True)}
        return {"name": self.name, "ranges": ranges}


class Empirical(Prior):
    """Density of the parameter combinations found in subjects.

    For two parameters as Gyori et al. (2021, section 2.3.3): a histogram of 500 by 500 bins, cubic interpolation
    between their centres, and rejection sampling. For any other number a density estimate by Gaussian kernels
    (scikit-learn) of a width of `BANDWIDTH` standard deviations; draws out of bounds are repeated.

    Parameters
    ----------
    parameters : sequence of Parameter
    samples : sequence of ndarray
        (n_voxels, n_parameters) of each subject, in each parameter's unit.
    name : str
        ``"healthy"``, or another name for the card.

    Raises
    ------
    PriorError
        If there are too few subjects or voxels, or values out of bounds.
    """

    def __init__(self, parameters: Sequence[Parameter], samples: Sequence[Array], *, name: str = "healthy") -> None:
        super().__init__(parameters)
        self.name = name
        self.n_subjects = len(samples)
        if self.n_subjects < MIN_SUBJECTS:
            raise PriorError(
                f"Prior {name} needs the fits of at least {MIN_SUBJECTS} subjects, got {self.n_subjects}: "
                "add subjects or use the prior uniform."
            )
        pooled = np.concatenate([np.asarray(part, dtype=np.float64) for part in samples])
        if len(pooled) < MIN_VOXELS:
            raise PriorError(f"Prior {name} needs at least {MIN_VOXELS} voxels, got {len(pooled)}.")
        low, high = (np.array([p.bounds[i] for p in self.parameters]) for i in (0, 1))
        outside = ~((pooled >= low) & (pooled <= high)).all(axis=0)
        if outside.any():
            p = self.parameters[int(outside.argmax())]
            raise PriorError(f"Prior {name} has values of {p.name} beyond {p.bounds[0]:g} to {p.bounds[1]:g} {p.unit}.")
        self._low, self._high, self._samples = low, high, pooled

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Draw; see `Prior.draw`."""
        propose = self._histogram() if len(self.parameters) == 2 else self._kernels()
        parts: list[Array] = []
        for _ in range(MAX_ROUNDS):
            parts.append(propose(rng))
            if sum(map(len, parts)) >= n:
                return np.concatenate(parts)[:n]
        raise PriorError(f"Prior {self.name} is so narrow that it cannot be sampled.")

    def describe(self) -> dict[str, Any]:
        """Return number of subjects and voxels, percentiles, and the SHA-256 of all values."""
        percentiles = np.percentile(self._samples, [5, 50, 95], axis=0).T.tolist()
        return {
            "name": self.name,
            "n_subjects": self.n_subjects,
            "n_voxels": len(self._samples),
            "percentiles_5_50_95": {p.name: row for p, row in zip(self.parameters, percentiles, strict=True)},
            "sha256": hashlib.sha256(np.ascontiguousarray(self._samples).tobytes()).hexdigest(),
        }

    def _histogram(self) -> Any:
        """Return the function that makes one round of rejection sampling.

        Proposals fall into each bin in proportion to an upper bound of the density there, the largest of the spline's
        coefficients nearby. With uniform proposals nearly all would be rejected where fits pile up on a bound.
        """
        from scipy.ndimage import map_coordinates, maximum_filter, spline_filter

        edges = [np.linspace(low, high, N_BINS + 1) for low, high in zip(self._low, self._high, strict=True)]
        counts, _ = np.histogramdd(self._samples, bins=edges)
        # Half the mass of values on a bound would be lost between its bin's centre and the bound: mode "nearest".
        spline = spline_filter(counts, order=3, mode="nearest")
        largest = maximum_filter(spline, size=5, mode="nearest").ravel().clip(min=0)
        share = np.cumsum(largest) / largest.sum()

        def propose(rng: np.random.Generator) -> Array:
            chosen = np.searchsorted(share, rng.random(N_PROPOSALS), side="right").clip(max=share.size - 1)
            unit = (np.stack(np.unravel_index(chosen, counts.shape), axis=1) + rng.random((N_PROPOSALS, 2))) / N_BINS
            density = map_coordinates(spline, unit.T * N_BINS - 0.5, order=3, mode="nearest", prefilter=False)
            accepted = rng.random(N_PROPOSALS) * largest[chosen] < density
            return np.asarray(self._low + unit[accepted] * (self._high - self._low))

        return propose

    def _kernels(self) -> Any:
        """Return the function that draws a round from the kernel density estimate."""
        from sklearn.neighbors import KernelDensity

        scale = self._samples.std(axis=0) + np.finfo(float).tiny
        density = KernelDensity(bandwidth=BANDWIDTH).fit(self._samples / scale)

        def propose(rng: np.random.Generator) -> Array:
            values = density.sample(N_PROPOSALS, random_state=int(rng.integers(2**31))) * scale
            return np.asarray(values[((values >= self._low) & (values <= self._high)).all(axis=1)])

        return propose


class Mixed(Prior):
    """Mixture of two distributions in equal parts (Gyori et al. 2021, section 2.3.3).

    Parameters
    ----------
    first, second : Prior
        Of the same parameters.
    """

    name: str = "mixed"
    SHARE: ClassVar[float] = 0.5

    def __init__(self, first: Prior, second: Prior) -> None:
        super().__init__(first.parameters)
        if first.parameters != second.parameters:
            raise PriorError("The two parts of a mixed prior must be of the same parameters.")
        self.parts = (first, second)

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Draw; see `Prior.draw`."""
        n_first = round(self.SHARE * n)
        values = np.concatenate([self.parts[0].draw(n_first, rng), self.parts[1].draw(n - n_first, rng)])
        return rng.permutation(values)

    def describe(self) -> dict[str, Any]:
        """Return both parts."""
        return {"name": self.name, "parts": [part.describe() for part in self.parts]}


def make_prior(name: str, default: Prior, samples: Sequence[Array]) -> Prior:
    """Return the prior of a name, as users type it.

    Parameters
    ----------
    name : str
        ``"uniform"``, ``"mixed"``, or ``"healthy"`` with any suffix that names a tissue.
    default : Prior
        Default prior of the model: the prior ``"uniform"``, and the first part of ``"mixed"``.
    samples : sequence of ndarray
        As for `Empirical`; not used for ``"uniform"``.

    Raises
    ------
    PriorError
        As for `Empirical`.
    """
    if name == "uniform":
        return default
    if name == "mixed":
        return Mixed(default, Empirical(default.parameters, samples))
    return Empirical(default.parameters, samples, name=name)


def _check_range(parameter: Parameter, limits: tuple[float, float]) -> tuple[float, float]:
    """Return a range of a parameter; PriorError unless it is within the bounds."""
    low, high = float(limits[0]), float(limits[1])
    lowest, highest = parameter.bounds
    if not lowest <= low < high <= highest:
        raise PriorError(
            f"The prior's range of {parameter.name} must lie within {lowest:g} to {highest:g} {parameter.unit}, "
            f"got {low:g} to {high:g}."
        )
    return low, high
