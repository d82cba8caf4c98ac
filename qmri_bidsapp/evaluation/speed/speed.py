"""Voxels per second of an estimator or a peer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.estimators.base import Estimator

Signals = npt.NDArray[np.float32]

#: Repetitions, of which the fastest counts: other processes can only slow them down.
REPETITIONS = 3
#: No repetition starts after this many times the intended length of one.
PATIENCE = 4.0
#: First number of voxels; minimum and maximum factor of its growth towards the intended length.
FIRST, GROWTH = 32, (2.0, 32.0)
#: Maximum bytes of signals.
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
    """Time a fit, with a number of voxels that takes about `seconds`.

    The number of voxels grows from `first` until every run is long enough; the earlier runs are a warm-up. The last
    number is run `REPETITIONS` times, fewer if that takes much longer than intended.

    Parameters
    ----------
    fit : callable
        Takes (n_voxels, n_measurements) signals.
    draw : callable
        Takes a number of voxels, returns their signals.
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
    """Return a fit that arranges voxels in square slices, for estimators of slices."""

    def fit(signals: Signals) -> object:
        side = min(SLICE_SIDE, int(np.ceil(np.sqrt(len(signals)))))
        mask = np.zeros(side * side * -(-len(signals) // side**2), dtype=bool)
        mask[: len(signals)] = True
        # Slices are perpendicular to the axis of widest spacing.
        return estimator.predict_volume(signals, mask.reshape(-1, side, side), spacing=(2.0, 1.0, 1.0))

    return fit


def _best_of(fit: Callable[[Signals], object], signals: Signals, seconds: float, too_short: float) -> float:
    """Return the time of the fastest of `REPETITIONS` fits, s. Stop after one that is too short."""
    best, spent = np.inf, 0.0
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        fit(signals)
        length = time.perf_counter() - start
        best, spent = min(best, length), spent + length
        if best <= too_short or spent > PATIENCE * seconds:
            break
    return best
