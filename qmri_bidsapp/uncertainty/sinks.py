r"""Sinks: places of the parameter space towards which estimates of the surrounding truths are drawn.

Gyori et al. (2021, section 3.2) see them in plots of arrows from the truth to the mean estimate. Here the arrows are
followed by iterating :math:`F(x) = x + E[\hat x - x \mid x]`. An end point is a sink if enough truths lead there, each
by a good part of the way in one step, and if it holds more estimates than truths. An unbiased estimator, however noisy,
has no sinks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from scipy.stats import chi2
from sklearn.cluster import DBSCAN

Array = npt.NDArray[np.float64]

#: Neighbouring truths over which the error is averaged, and level of the test against a mean of zero.
N_NEIGHBOURS = 128
SIGNIFICANCE = 0.999
#: Truths that are followed, and steps; with the lowest pull 0.2 % of the way is left.
N_STARTS = 4000
N_STEPS = 60
#: Distance relative to the box of the central 99 % of the truths: ends this close belong together, and a truth this
#: close to its end is not drawn there.
LINK = 0.05
#: Lowest share of the way to the sink by which a truth of its basin is misestimated on average.
LEAST_PULL = 0.1
#: Lowest share of the truths in a basin.
LEAST_SHARE = 0.02
#: Lowest ratio of estimates to truths near a sink: estimates that move away from a bound without gathering anywhere
#: have no sink.
LEAST_GATHERING = 1.5
#: Smallest cluster of ends.
MIN_ENDS = 5
#: In more dimensions simulated voxels are too far apart to follow the errors.
MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class Sink:
    """One sink; places are in the units of the parameters.

    Attributes
    ----------
    centre : list of float
        Median of the ends.
    extent : list of (float, float)
        5th to 95th percentile of the ends, per parameter: a sink may be a line along which the truth is determined.
    basin : list of (float, float)
        5th to 95th percentile of the truths that lead there, per parameter.
    share : float
        Share of all truths that lead there.
    pull : float
        Share of the way from the truth to the sink by which the mean estimate is off, median over the basin.
    gathering : float
        Ratio of estimates to truths near the sink.
    """

    centre: list[float]
    extent: list[tuple[float, float]]
    basin: list[tuple[float, float]]
    share: float
    pull: float
    gathering: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        pairs = {name: [list(row) for row in getattr(self, name)] for name in ("extent", "basin")}
        return asdict(self) | pairs


def mean_shift(truth: Array, estimate: Array) -> Array:
    """Return the mean error at every truth, (n, d), zero where it is not significant.

    Parameters
    ----------
    truth, estimate : ndarray
        (n, d), in units in which the parameters' ranges are alike.
    """
    n_neighbours = min(N_NEIGHBOURS, len(truth))
    _, neighbours = cKDTree(truth).query(truth, n_neighbours)
    error = estimate - truth
    shift, variance = np.empty_like(error), np.empty_like(error)
    for k in range(error.shape[1]):
        near = error[:, k][neighbours]
        shift[:, k], variance[:, k] = near.mean(axis=1), near.var(axis=1) / n_neighbours
    score = (shift**2 / np.maximum(variance, np.finfo(float).tiny)).sum(axis=1)
    shift[score < chi2.ppf(SIGNIFICANCE, error.shape[1])] = 0.0
    return shift


def find_sinks(truth: Array, estimate: Array) -> list[Sink]:
    """Return the sinks, by descending share of the truths.

    Parameters
    ----------
    truth, estimate : ndarray
        (n, d), spread over the parameter space, in units in which the box of the truths has sides of about one. The
        first `N_STARTS` are followed: their order must be random.

    Returns
    -------
    list of Sink
        In the units given.
    """
    if len(truth) <= N_NEIGHBOURS:
        return []
    shift, tree = mean_shift(truth, estimate), cKDTree(truth)
    start = truth[:N_STARTS]
    end = _follow(start, shift, tree)
    way = np.linalg.norm(end - start, axis=1)
    left = np.linalg.norm(end - start - shift[:N_STARTS], axis=1)
    pull = 1 - left / np.maximum(way, np.finfo(float).tiny)
    drawn = np.flatnonzero((way > LINK) & (pull >= LEAST_PULL))
    if len(drawn) < LEAST_SHARE * len(start):
        return []
    label = DBSCAN(eps=LINK, min_samples=MIN_ENDS).fit_predict(end[drawn])
    sinks = []
    for k in range(label.max() + 1):
        members = drawn[label == k]
        if len(members) >= LEAST_SHARE * len(start):
            sinks.append(_sink(start[members], end[members], pull[members], len(start), tree, estimate))
    gathering = [sink for sink in sinks if sink.gathering >= LEAST_GATHERING]
    return sorted(gathering, key=lambda sink: -sink.share)


def _follow(start: Array, shift: Array, tree: Any) -> Array:
    """Return the ends of the paths along the mean errors, (n, d)."""
    place = start.copy()
    for _ in range(N_STEPS):
        # Errors are unknown beyond the truths.
        place = np.clip(place + shift[tree.query(place)[1]], tree.mins, tree.maxes)
    return place


def _sink(start: Array, end: Array, pull: Array, n_starts: int, tree: Any, estimate: Array) -> Sink:
    def ranges(values: Array) -> list[tuple[float, float]]:
        return [(float(low), float(high)) for low, high in np.percentile(values, [5, 95], axis=0).T]

    ends = cKDTree(end)

    def near(values: Array) -> int:
        return int((ends.query(values, distance_upper_bound=LINK)[0] <= LINK).sum())

    return Sink(
        centre=np.median(end, axis=0).tolist(),
        extent=ranges(end),
        basin=ranges(start),
        share=len(start) / n_starts,
        pull=float(np.median(pull)),
        gathering=near(estimate) / max(1, near(tree.data)),
    )
