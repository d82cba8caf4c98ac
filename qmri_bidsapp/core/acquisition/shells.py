"""Which b-values are one shell, and which are references."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

#: Largest b-value, s/mm2, of a volume that may be a reference and needs no direction. Models use its b-value all the
#: same where it has a direction.
B0_THRESHOLD = 50.0
#: Lowest b-values up to this, s/mm2, are references too where the next shell is `REFERENCE_RATIO` times as high (HCP 7T
#: records its b0 volumes as 56 to 64).
MAX_REFERENCE = 100.0
REFERENCE_RATIO = 5.0
#: Neighbouring b-values that differ by no more than this, s/mm2, or by `SHARE`, belong to one shell: scanners add the
#: weighting of their imaging gradients, which changes with the direction.
MIN_GAP = 15.0
SHARE = 0.05
#: Times the gap: where neighbours make a wider chain, it is looked at more closely.
WIDTH = 2.0
#: b-values that spread over more than this, relative to their mean, without gaps, are no shell.
MAX_WIDTH = 0.25


def reference_limit(b_value: Sequence[float]) -> float:
    """Return the largest b-value, s/mm2, that counts as a reference in a protocol; models use its b-value all the same.

    It is `B0_THRESHOLD`, unless the lowest b-values lie about or above that threshold, up to `MAX_REFERENCE`, and the
    next b-value is at least `REFERENCE_RATIO` times as high: then it is the highest of them.
    """
    low = sorted(b for b in b_value if b <= MAX_REFERENCE)
    high = [b for b in b_value if b > MAX_REFERENCE]
    if not low or not high or low[-1] <= B0_THRESHOLD or min(high) < REFERENCE_RATIO * low[-1]:
        return B0_THRESHOLD
    if low[0] > B0_THRESHOLD:
        return low[-1]
    # Jitter about the threshold must not split the references; a series of low b-values is no jitter.
    near = [b for b in low if b >= low[-1] - MIN_GAP]
    is_apart = all(near[0] - b > MIN_GAP for b in low if b < near[0])
    return low[-1] if near[0] <= B0_THRESHOLD and is_apart else B0_THRESHOLD


def group_b_values(b_value: Array, min_gap: float = MIN_GAP) -> list[Index]:
    """Group b-values into shells.

    Neighbours that differ by at most `min_gap` or `SHARE` belong together. Where this makes a chain of more than twice
    that width, it is cut at its larger gaps if these exceed `min_gap` and the width of the parts. A chain without such
    gaps is a shell up to `MAX_WIDTH`; beyond that, as in sampling without shells, every b-value is for itself.

    Parameters
    ----------
    b_value : ndarray
        (n,) s/mm2.
    min_gap : float
        s/mm2.

    Returns
    -------
    list of ndarray
        Indices of each shell, ascending, by ascending b-value.
    """
    order = np.argsort(b_value, kind="stable")
    ascending = b_value[order]
    is_gap = np.diff(ascending) > np.maximum(min_gap, SHARE * ascending[1:])
    shells = []
    for chain in np.split(order, np.flatnonzero(is_gap) + 1):
        lowest, highest = b_value[chain[0]], b_value[chain[-1]]
        parts = [chain]
        if highest - lowest > WIDTH * max(min_gap, SHARE * highest):
            steps = np.diff(b_value[chain])
            is_cut = steps > steps.max() / 2
            cut = np.split(chain, np.flatnonzero(is_cut) + 1)
            widest = max(b_value[part[-1]] - b_value[part[0]] for part in cut)
            if steps[is_cut].min() > max(widest, min_gap):
                parts = cut
            elif highest - lowest > MAX_WIDTH * b_value[chain].mean():
                parts = np.split(chain, np.flatnonzero(steps > 0) + 1)
        shells += [np.sort(part) for part in parts]
    return shells
