"""Voxels per second of an estimator or a peer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.estimators.base import Estimator

Signals = npt.NDArray[np.float32]

#: Repetitions, of which the best counts: what else runs on the machine can only slow them down.
REPETITIONS = 3
#: No repetition is started later than this many times the intended length of one.
PATIENCE = 4.0
#: First number of voxels, and least and most factors by which it grows towards the intended length.
FIRST, GROWTH = 32, (2.0, 32.0)
#: Most bytes of signals.
MAX_BYTES = 2**29
#: Voxels along the sides of the slices of `in_slices`.
SLICE_SIDE = 128


@dataclass(frozen=True)
class Speed:
    """Result of `measure`: the number of voxels of one repetition, and voxels per second of the best one."""

    n_voxels: int
    voxels_per_second: float


def measure(
    fit: Callable[[Signals], object], draw: Callable[[int], Signals], seconds: float, *, first: int = FIRST
) -> Speed:
    """Time a fit on as many voxels as take about `seconds`.

    The number of voxels grows from `first` until every run is long enough; runs on the way there warm up. The
    last number is repeated, `REPETITIONS` runs in all unless they take much longer than intended.

    Parameters
    ----------
    fit : callable
        Takes (n_voxels, n_measurements) signals.
    draw : callable
        Returns that many voxels.
    seconds : float
        Intended length of one repetition.
    first : int
        Number of voxels to begin with.
    """
    fit(draw(first))
    n_voxels = first
    while True:
        signals = draw(n_voxels)
        largest = max(n_voxels, MAX_BYTES // signals[0].nbytes)
        best = _best_of(fit, signals, seconds, 0.0 if n_voxels == largest else seconds / 2)
        if best > seconds / 2 or n_voxels == largest:
            return Speed(n_voxels, n_voxels / best)
        n_voxels = min(largest, int(n_voxels * np.clip(seconds / best, *GROWTH)))


def in_slices(estimator: Estimator) -> Callable[[Signals], object]:
    """Return what fits voxels as if they filled square slices, for estimators that work on slices."""

    def fit(signals: Signals) -> object:
        side = min(SLICE_SIDE, int(np.ceil(np.sqrt(len(signals)))))
        mask = np.zeros(side * side * -(-len(signals) // side**2), dtype=bool)
        mask[: len(signals)] = True
        # Slices are those across the widest spacing.
        return estimator.predict_volume(signals, mask.reshape(-1, side, side), spacing=(2.0, 1.0, 1.0))

    return fit


def _best_of(fit: Callable[[Signals], object], signals: Signals, seconds: float, too_short: float) -> float:
    """Return the seconds of the shortest of `REPETITIONS` fits; no more are made after one that is too short."""
    best, spent = np.inf, 0.0
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        fit(signals)
        length = time.perf_counter() - start
        best, spent = min(best, length), spent + length
        if best <= too_short or spent > PATIENCE * seconds:
            break
    return best
