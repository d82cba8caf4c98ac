r"""Noise of magnitudes: likelihood and Fisher information of Rice's distribution and of means of such magnitudes.

A magnitude m of a signal S with Gaussian noise of standard deviation sigma in its real and in its imaginary part has

.. math:: p(m) = \frac{m}{\sigma^2} \exp\left(-\frac{m^2 + S^2}{2 \sigma^2}\right) I_0\left(\frac{m S}{\sigma^2}\right)

(Gudbjartsson and Patz 1995, Magn Reson Med 34:910, eq. 1). Everything here is in units of sigma: magnitudes
x = m / sigma and signals s = S / sigma, not negative. A cost is twice the negative log-likelihood up to a term that
does not depend on s, and is not negative.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

#: Beyond these, expansions for large arguments are exact to single precision, and the closed forms are not.
LARGE_PRODUCT = 50.0
LARGE_SIGNAL = 12.0
#: Magnitude above which the expansion of the lowest cost is accurate enough to be subtracted.
BRIGHT = 3.0
#: Nodes of the table of the Fisher information, over s / (1 + s).
N_NODES = 1024
#: Half the range of magnitudes, in sigma, over which the information is integrated, and the number of points.
REACH = 9.0
N_POINTS = 1201
#: Highest signal, in sigma, and nodes of the table of mean magnitudes; beyond it the closed form is exact to 1e-6.
MEAN_TABLE = (64.0, 16_385)


class Information(NamedTuple):
    """Fisher information of one value on the signal and on sigma, in units of 1 / sigma^2; each (n, m)."""

    signal: torch.Tensor
    cross: torch.Tensor
    sigma: torch.Tensor


class MagnitudeNoise(Protocol):
    """Distribution of measured values; all arguments are (n, m)."""

    def cost(self, x: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cost and half its derivative by s."""

    def information(self, s: torch.Tensor) -> Information:
        """Return the Fisher information."""

    def misfit(self, x: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the squared deviations, and their expected values if sigma is right."""


class Magnitude:
    """One magnitude: Rice's distribution."""

    def __init__(self, device: str) -> None:
        self._table = _information_table().to(device)

    def cost(self, x: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cost, (x - s)^2 - 2 ln(e^{-xs} I0(xs)), and half its derivative, s - x I1(xs) / I0(xs).

        Nearly all of its lowest value at large x is subtracted, so that small differences keep their digits.
        """
        product = x * s
        scaled_i0 = torch.special.i0e(product)
        slope = s - x * torch.special.i1e(product) / scaled_i0
        bright = x.clamp(min=BRIGHT)
        lowest = torch.where(x > BRIGHT, (2 * math.pi * bright.square()).log() - bright.pow(-2), 0.0)
        return (x - s).square() - 2 * scaled_i0.log() - lowest, slope

    def information(self, s: torch.Tensor) -> Information:
        """Return the Fisher information, interpolated in a table made by quadrature."""
        position = s / (1 + s) * N_NODES
        node = position.floor().clamp(max=N_NODES - 1).long()
        table = self._table.to(s.dtype)
        low, high = table[node], table[node + 1]
        return Information(*torch.lerp(low, high, (position - node).unsqueeze(-1)).unbind(-1))

    def misfit(self, x: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (x - s)^2, and 2 - 2 xs (1 - I1(xs) / I0(xs)).

        Where s maximises the likelihood and the two sums are equal, sigma maximises it as well, since the derivative is
        zero (Sijbers et al. 1998). The expected value is 1 for large s, and 2 for s = 0.
        """
        product = x * s
        small = product.clamp(max=LARGE_PRODUCT)
        lost = 2 * small * (1 - torch.special.i1e(small) / torch.special.i0e(small))
        expansion = 1 + (1 + 1 / product.clamp(min=1)) / (4 * product.clamp(min=1))
        return (x - s).square(), 2 - torch.where(product > LARGE_PRODUCT, expansion, lost)


class MeanMagnitude:
    """Mean of n magnitudes of the same signal: nearly Gaussian, with the mean and variance of Rice's distribution.

    Parameters
    ----------
    n_averages : Tensor
        (m,) n of each value. Values and signals are multiplied by its square root, as everywhere in least squares.
    """

    def __init__(self, n_averages: torch.Tensor) -> None:
        self._n = n_averages
        self._root = n_averages.sqrt()

    def cost(self, x: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cost, n (x - mean)^2 / variance + ln(variance), and half its derivative."""
        mean, mean_slope, variance, variance_slope = rice_moments(s / self._root)
        residual = x - self._root * mean
        relative = variance_slope / (2 * variance * self._root)
        slope = relative - residual * (mean_slope + residual * relative) / variance
        return residual.square() / variance + (variance / (2 - math.pi / 2)).log(), slope

    def information(self, s: torch.Tensor) -> Information:
        """Return the Fisher information of a Gaussian whose mean and variance depend on signal and sigma."""
        single = s / self._root
        mean, mean_slope, variance, variance_slope = rice_moments(single)
        # sigma scales everything: mean = sigma f(S / sigma), variance = sigma^2 h(S / sigma).
        mean_by_sigma, variance_by_sigma = mean - single * mean_slope, 2 * variance - single * variance_slope
        square = 2 * variance.square()
        return Information(
            mean_slope.square() / variance + variance_slope.square() / (square * self._n),
            (self._n * mean_slope * mean_by_sigma / variance + variance_slope * variance_by_sigma / square)
            / self._root,
            self._n * mean_by_sigma.square() / variance + variance_by_sigma.square() / square,
        )

    def misfit(self, x: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return squares relative to the variance, Pearson's statistic, and their expected value, one."""
        mean, _, variance, _ = rice_moments(s / self._root)
        return (x - self._root * mean).square() / variance, torch.ones_like(x)


class Columns:
    """Measured values of which some are single magnitudes and some are means.

    Parameters
    ----------
    n_averages : Tensor
        (n_measurements,).
    """

    def __init__(self, n_averages: torch.Tensor) -> None:
        single = n_averages == 1
        kinds: list[tuple[torch.Tensor, MagnitudeNoise]] = [
            (torch.nonzero(single).squeeze(1), Magnitude(str(n_averages.device))),
            (torch.nonzero(~single).squeeze(1), MeanMagnitude(n_averages[~single])),
        ]
        self._kinds = [(columns, noise) for columns, noise in kinds if len(columns)]
        self._back = torch.cat([columns for columns, _ in self._kinds]).argsort()

    def cost(self, x: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cost and half its derivative, (n, n_measurements) each."""
        cost, slope = self._join([noise.cost(x[:, columns], s[:, columns]) for columns, noise in self._kinds])
        return cost, slope

    def information(self, s: torch.Tensor) -> Information:
        """Return the Fisher information."""
        return Information(*self._join([noise.information(s[:, columns]) for columns, noise in self._kinds]))

    def misfit(self, x: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return squares and their expected values, (n, n_measurements) each."""
        squares, expected = self._join([noise.misfit(x[:, columns], s[:, columns]) for columns, noise in self._kinds])
        return squares, expected

    def _join(self, parts: list[tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
        """Return the columns of all kinds in the order of the measurements."""
        if len(parts) == 1:
            return list(parts[0])
        return [torch.cat(values, dim=-1)[:, self._back] for values in zip(*parts, strict=True)]


def signal_of_mean(mean: npt.ArrayLike, n_coils: float = 1.0) -> npt.NDArray[np.float64]:
    r"""Return the signal whose magnitudes have this mean, in units of sigma: the inverse of the mean of `rice_moments`.

    Zero where the mean is at most :math:`\sqrt{\pi / 2}`, that of noise alone (Koay and Basser 2006, J Magn Reson
    179:317). The common correction :math:`\sqrt{m^2 - 1}` is the inverse of the mean square instead, and leaves 0.76 of
    noise alone.

    Parameters
    ----------
    mean : array_like
        Expectation of a magnitude over sigma, such as a denoised magnitude; any shape.
    n_coils : float
        Coils whose magnitudes were combined by the root of their sum of squares, which raises the floor to about
        :math:`\sqrt{2 n}`.
    """
    if n_coils > 1:
        square: npt.NDArray[np.float64] = np.maximum(_mean_square(mean, n_coils) - 2 * n_coils, 0)
        return np.sqrt(square)
    values = np.asarray(mean, dtype=np.float64)
    means, signals, _ = _mean_table()
    # For large signals the mean is s + 1 / (2 s).
    bright = 0.5 * (values + np.sqrt(np.maximum(values**2 - 2, 0)))
    return np.where(values < means[-1], np.interp(values, means, signals), bright)


def variance_of_mean(mean: npt.ArrayLike, n_coils: float = 1.0) -> npt.NDArray[np.float64]:
    r"""Return the variance of magnitudes of this mean, in units of sigma: from :math:`2 - \pi / 2` of noise alone to 1.

    Parameters
    ----------
    mean : array_like
        Expectation of a magnitude over sigma; any shape.
    n_coils : float
        As for `signal_of_mean`.
    """
    if n_coils > 1:
        return 1 - n_coils / _mean_square(mean, n_coils)
    means, _, variances = _mean_table()
    return np.interp(np.asarray(mean, dtype=np.float64), means, variances)


def _mean_square(mean: npt.ArrayLike, n_coils: float) -> npt.NDArray[np.float64]:
    r"""Return the mean square of magnitudes of this mean and several coils, over sigma squared; :math:`2 n` at least.

    The square follows a noncentral chi-square distribution of mean :math:`q = s^2 + 2 n` and variance
    :math:`4 (q - n)` (Constantinides et al. 1997, Magn Reson Med 38:852), so that the variance of the magnitude is
    about :math:`(q - n) / q`, and :math:`m^2 = q - (q - n) / q`.
    """
    twice = np.square(np.asarray(mean, dtype=np.float64)) + 1
    square: npt.NDArray[np.float64] = (twice + np.sqrt(np.maximum(twice**2 - 4 * n_coils, 0))) / 2
    return np.maximum(square, 2 * n_coils)


@cache
def _mean_table() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean magnitudes, ascending from noise alone, their signals and their variances."""
    signals = torch.linspace(0, MEAN_TABLE[0], MEAN_TABLE[1], dtype=torch.float64)
    mean, _, variance, _ = rice_moments(signals)
    return mean.numpy(), signals.numpy(), variance.numpy()


def rice_moments(s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""Return mean and variance of Rice's distribution for sigma = 1, each followed by its derivative.

    .. math:: \mu(s) = \sqrt{\pi / 2}\, L_{1/2}(-s^2 / 2), \quad v(s) = 2 + s^2 - \mu(s)^2

    with the Laguerre function :math:`L_{1/2}` (Koay and Basser 2006, J Magn Reson 179:317).
    """
    small, large = s.clamp(max=LARGE_SIGNAL), s.clamp(min=LARGE_SIGNAL)
    z = small.square() / 4
    i0, i1 = torch.special.i0e(z), torch.special.i1e(z)
    root = math.sqrt(math.pi / 2)
    mean = root * ((1 + 2 * z) * i0 + 2 * z * i1)
    slope = root * small / 2 * (i0 + i1)
    closed = (mean, slope, 2 + 4 * z - mean.square(), 2 * (small - mean * slope))
    inverse = large.pow(-2)
    expansion = (
        large * (1 + inverse * (0.5 + inverse * (0.125 + 0.1875 * inverse))),
        1 - inverse * (0.5 + 0.375 * inverse),
        1 - inverse * (0.5 + 0.5 * inverse),
        inverse / large * (1 + 2 * inverse),
    )
    first, second, third, fourth = (
        torch.where(s > LARGE_SIGNAL, value, exact) for exact, value in zip(closed, expansion, strict=True)
    )
    return first, second, third, fourth


@cache
def _information_table() -> torch.Tensor:
    """Return (N_NODES + 1, 3) the elements of `Information` of a magnitude at equal steps of s / (1 + s), float64.

    The expectation of products of the scores, a I1/I0 - s for the signal and the like for sigma, is integrated over the
    density by the trapezoidal rule, which is exact to rounding for such smooth integrands.
    """
    share = torch.arange(N_NODES, dtype=torch.float64) / N_NODES
    s = (share / (1 - share)).unsqueeze(-1)
    low = (s - REACH).clamp(min=0)
    step = (s + REACH - low) / (N_POINTS - 1)
    x = low + step * torch.arange(N_POINTS)
    i0, i1 = torch.special.i0e(x * s), torch.special.i1e(x * s)
    density = x * torch.exp(-(x - s).square() / 2) * i0
    by_signal = x * i1 / i0 - s
    by_sigma = (x - s).square() + 2 * x * s * (1 - i1 / i0) - 2
    products = (by_signal.square(), by_signal * by_sigma, by_sigma.square())
    elements = torch.stack([(density * product * step).sum(-1) for product in products], dim=-1)
    return torch.cat([elements, elements.new_tensor([[1.0, 0.0, 2.0]])])
