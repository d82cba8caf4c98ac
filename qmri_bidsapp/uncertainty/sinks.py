r"""Sinks: places of the parameter space towards which estimates of the truths around them are drawn.

Gyori et al. (2021, section 3.2) see them in plots of arrows from the truth to the mean estimate. Here the arrows are
followed: :math:`F(x) = x + E[\hat x - x \mid x]` is applied again and again. Where that ends is a sink if enough truths
are led there, each of them by a good part of the way at once, and if there are more estimates there than truths. An
estimator without bias, however noisy, has none.
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

#: Truths over which the mean error is taken; a mean within what noise explains at this level is none.
N_NEIGHBOURS = 128
SIGNIFICANCE = 0.999
#: Truths that are followed, and steps: at the least pull, 0.2 % of the way is left.
N_STARTS = 4000
N_STEPS = 60
#: Relative to the box of the central 99 % of the truths: ends this close belong together, and a truth this close to
#: where it ends is not drawn there.
LINK = 0.05
#: Least part of the way to the sink by which a truth of its basin is misestimated on average.
LEAST_PULL = 0.1
#: Least part of the truths in a basin.
LEAST_SHARE = 0.02
#: Least number of estimates near a sink over that of truths: where estimates are drawn away from a bound without
#: gathering anywhere there is none.
LEAST_GATHERING = 1.5
#: Fewest ends that make a cluster.
MIN_ENDS = 5
#: In more dimensions simulated voxels are too far from each other for the errors to be followed.
MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class Sink:
    """One sink; places are in the units of the parameters.

    Attributes
    ----------
    centre : list of float
        Median of the ends.
    extent : list of (float, float)
        5th to 95th percentile of the ends, per parameter: a sink may be a line along which the truth is told.
    basin : list of (float, float)
        5th to 95th percentile of the truths that are led there, per parameter.
    share : float
        Of all truths, the part that is led there.
    pull : float
        Part of the way from the truth to the sink by which the mean estimate is off, median over the basin.
    gathering : float
        Number of estimates near the sink over the number of truths there.
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
    """Return the mean error at every truth, (n, d), zero where noise explains it.

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
    """Return the sinks, by descending share of the truths that they draw.

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
    """Return where the mean errors lead, (n, d)."""
    place = start.copy()
    for _ in range(N_STEPS):
        # Beyond the truths nothing is known of the errors.
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
