"""Detection of a noise floor: whether values near zero scatter as magnitudes or with Gaussian noise.

The score is a likelihood ratio. It responds to the shape: the scatter of magnitudes shrinks where signals are low, and
their values stay above zero.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.rice import rice_moments

Array = npt.NDArray[np.float64]

#: Range of means for which likelihoods are tabulated, in standard deviations of the noise: lower ones hardly occur, and
#: above it both distributions agree.
MEANS = (-4.0, 6.0)
N_STEPS = 500
#: Standard deviations about the mean over which moments are integrated, and the number of points.
REACH = 6.0
N_POINTS = 801
#: Lowest magnitude, in standard deviations of the noise: one in a thousand is smaller, and counts as this.
LEAST = 0.05


def floor_score(values: npt.NDArray[np.floating], mean: npt.NDArray[np.floating], noise: Array) -> Array:
    r"""Return the standardised log-likelihood ratio of Rician to Gaussian noise, (n,).

    The ratio is, in units of the noise,

    .. math:: \sum \ln\left(x I_0(xs) e^{-(x^2 + s^2) / 2}\right) - \ln\left(e^{-(x - \mu)^2 / 2} / \sqrt{2 \pi}\right)

    where s is the signal whose magnitudes have the mean (Gudbjartsson and Patz 1995, Magn Reson Med 34:910, eq. 1; Koay
    and Basser 2006, J Magn Reson 179:317). It is standardised by its mean and standard deviation for Gaussian noise,
    and zero if all values are bright.

    Parameters
    ----------
    values : ndarray
        (n, m).
    mean : ndarray
        (n, m) their expectations.
    noise : ndarray
        (n,) standard deviation.
    """
    scale = np.where(noise > 0, noise, np.nan)[:, None]
    mu = np.maximum(mean / scale, MEANS[0])
    row, column = np.nonzero(mu < MEANS[1])
    x, mu = (values / scale)[row, column], mu[row, column]
    signal, expected, variance = _of_means(mu)
    excess = np.bincount(row, _log_ratio(x, mu, signal) - expected, len(values))
    total = np.bincount(row, variance, len(values))
    return np.asarray(excess / np.sqrt(np.where(total > 0, total, 1.0)))


def _of_means(mu: Array) -> Array:
    """Return (3, n): signals whose magnitudes have these means, mean and variance of the log-likelihood ratio."""
    position = (mu - MEANS[0]) / (MEANS[1] - MEANS[0]) * N_STEPS
    node = position.astype(np.intp)
    low, high = _table()[node], _table()[node + 1]
    return np.asarray((low + (position - node)[:, None] * (high - low)).T)


def _log_ratio(x: Array, mu: Array, s: Array) -> Array:
    """Return the log-likelihood ratio at x of magnitudes of signal s to Gaussian noise about mu."""
    above = np.maximum(x, LEAST)
    bessel = torch.special.i0e(torch.from_numpy(above * s)).numpy()
    ratio = np.log(above * bessel) + (np.square(x - mu) - np.square(above - s) + math.log(2 * math.pi)) / 2
    return np.asarray(ratio)


@cache
def _table() -> Array:
    """Return the table that `_of_means` interpolates, (N_STEPS + 1, 3)."""
    nodes = np.linspace(*MEANS, N_STEPS + 1)
    signals = torch.linspace(0, MEANS[1], N_STEPS + 1, dtype=torch.float64)
    s = np.interp(nodes, rice_moments(signals)[0].numpy(), signals.numpy())
    away = np.linspace(-REACH, REACH, N_POINTS)
    weight = np.exp(-np.square(away) / 2)
    weight /= weight.sum()
    ratio = _log_ratio(nodes[:, None] + away, nodes[:, None], s[:, None])
    expected = ratio @ weight
    return np.column_stack([s, expected, np.square(ratio - expected[:, None]) @ weight])
