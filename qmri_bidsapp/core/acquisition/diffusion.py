"""Protocols of diffusion weighting: gradient directions, and powder averages over them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.acquisition.base import Acquisition, check_times
from qmri_bidsapp.core.acquisition.shells import B0_THRESHOLD, MIN_GAP, group_b_values, reference_limit
from qmri_bidsapp.errors import ProtocolError

#: Powder averages of at most this b-value, s/mm2, are of b = 0.
B_ROUNDING = 1.0
#: Orders of even functions on the sphere, and measurements for each of their coefficients: fewer would follow noise.
ANGULAR_ORDERS, PER_COEFFICIENT = (6, 4, 2), 1.5
#: Variance of a weighted average over directions, relative to a plain one, from which on a lower order is used.
MAX_UNEVENNESS = 2.0
#: Longer gradient pulses, s, must be in milliseconds.
MAX_PULSE_TIME = 1.0


#: Higher b-values, s/mm2, are not reached.
MAX_B_VALUE = 5e4
#: So many directions among b-values up to `B0_THRESHOLD`, without a higher one, are weighted volumes.
MANY_DIRECTIONS = 6


@dataclass(frozen=True)
class Diffusion(Acquisition):
    """Pulsed-gradient diffusion weighting with linear encoding.

    Attributes
    ----------
    b_value : tuple of float
        (n_measurements,) s/mm2.
    direction : tuple of tuple of float
        (n_measurements, 3) unit vectors; zeros allowed where ``b_value`` is at most `B0_THRESHOLD`: no weighting.
    small_delta, large_delta : float or tuple of float or None
        Gradient pulse duration and separation, s, where the sidecar states them: one value for the series, or
        (n_measurements,) where volumes of different timings were joined.
    """

    noise_floor_removed: ClassVar[bool] = True

    b_value: tuple[float, ...]
    direction: tuple[tuple[float, ...], ...]
    small_delta: float | tuple[float, ...] | None = None
    large_delta: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.b_value) != len(self.direction):
            raise ProtocolError(f"{len(self.b_value)} b-values but {len(self.direction)} directions.")
        b_value = np.asarray(self.b_value, dtype=float)
        if not np.all(np.isfinite(b_value)) or np.any(b_value < 0):
            raise ProtocolError("b-values must be finite and not negative (s/mm2).")
        norm = np.linalg.norm(np.asarray(self.direction, dtype=float).reshape(-1, 3), axis=1)
        bad = (b_value > B0_THRESHOLD) & ~(np.abs(norm - 1) < 0.05)
        if np.any(bad):
            index = int(np.flatnonzero(bad)[0])
            raise ProtocolError(
                f"Directions of diffusion-weighted volumes must be unit vectors; volume {index} "
                f"(b = {b_value[index]:g} s/mm2) has norm {norm[index]:.3g}."
            )
        for name, time in (("SmallDelta", self.small_delta), ("BigDelta", self.large_delta)):
            if isinstance(time, tuple) and len(time) != len(self.b_value):
                raise ProtocolError(f"{len(self.b_value)} b-values but {len(time)} values of {name}.")

    def doubt_about_units(self) -> str | None:
        """Doubt b-values that no scanner reaches, and those of many directions that are all very low."""
        b_value = np.asarray(self.b_value, dtype=float)
        highest = float(b_value.max(initial=0.0))
        if highest > MAX_B_VALUE:
            unit = "s/m2" if highest > 1e6 * B0_THRESHOLD else "s/cm2"
            return f"b-values must be in s/mm2, got {highest:g}: are they in {unit}?"
        directions = np.asarray(self.direction, dtype=float).reshape(-1, 3)[b_value > 0]
        if highest <= B0_THRESHOLD and len(np.unique(directions.round(3), axis=0)) >= MANY_DIRECTIONS:
            return f"b-values must be in s/mm2, got {highest:g} at most in many directions: are they in ms/um2?"
        return None

    @property
    def effective_b_value(self) -> npt.NDArray[np.float64]:
        """(n_measurements,) s/mm2; zero where there is no direction."""
        norm = np.linalg.norm(np.asarray(self.direction, dtype=float).reshape(-1, 3), axis=1)
        return np.where(norm > 0, np.asarray(self.b_value, dtype=float), 0.0)

    @property
    def n_measurements(self) -> int:
        """Number of volumes."""
        return len(self.b_value)

    def summary(self) -> str:
        """Return number of volumes and of those of each shell."""
        shells = ", ".join(map(self._describe, self.shells()))
        return f"{self.n_measurements} volumes ({shells} s/mm²)"

    def rows(self) -> list[tuple[str, str]]:
        """Return the number of volumes of each shell."""
        return [("Volumes", "; ".join(f"{self._describe(shell)} s/mm²" for shell in self.shells()))]

    def pulse_timing(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return duration and separation of the gradient pulses, (n_measurements,) each, in s.

        Raises
        ------
        ProtocolError
            If one is unknown, is not in seconds, or the pulses overlap.
        """
        times = {"SmallDelta": self.small_delta, "BigDelta": self.large_delta}
        missing = [name for name, time in times.items() if time is None]
        if missing:
            raise ProtocolError(
                f"The timing of the gradient pulses is unknown: {' and '.join(missing)} (s) missing in the sidecar."
            )
        small, large = (np.broadcast_to(np.asarray(time, dtype=float), self.n_measurements) for time in times.values())
        for name, values in zip(times, (small, large), strict=True):
            check_times(name, tuple(values.tolist()), longest=MAX_PULSE_TIME)
        if np.any(small > large):
            raise ProtocolError("The gradient pulses overlap: SmallDelta is larger than BigDelta.")
        return small, large

    def select(self, index: npt.NDArray[np.intp]) -> Diffusion:
        """Return the protocol of some of the volumes."""

        def part(values: Any) -> Any:
            return tuple(values[i] for i in index) if isinstance(values, tuple) else values

        return Diffusion(part(self.b_value), part(self.direction), part(self.small_delta), part(self.large_delta))

    def shells(self, tolerance: float | None = None) -> list[npt.NDArray[np.intp]]:
        """Group volumes by b-value, see `group_b_values`.

        Parameters
        ----------
        tolerance : float, optional
            s/mm2: b-values up to it count as no weighting, and neighbours that differ by no more than it, or by 5 %,
            belong to one shell. By default these are two numbers: `reference_limit` and `shells.MIN_GAP`.

        Returns
        -------
        list of ndarray
            Indices of the volumes of each shell, by ascending b-value; volumes without weighting come first,
            if there are any.
        """
        limit = reference_limit(self.b_value) if tolerance is None else tolerance
        b_value = np.where(np.asarray(self.b_value) <= limit, 0.0, self.b_value)
        return group_b_values(b_value, MIN_GAP if tolerance is None else tolerance)

    def _describe(self, shell: npt.NDArray[np.intp]) -> str:
        """Return the number of volumes of a shell and its b-value, with the recorded range where they differ."""
        b_value = np.asarray(self.b_value)[shell]
        if b_value.max() == b_value.min():
            return f"{len(shell)} at b = {b_value[0]:g}"
        return f"{len(shell)} at b = {b_value.mean():.0f} ({b_value.min():g} to {b_value.max():g})"

    def angular_fit(self, tolerance: float | None = None) -> npt.NDArray[np.float64]:
        """Return the (n, n) matrix that fits every shell by an even function of the direction, of order 2 to 6.

        ``signals @ matrix`` are the fitted values: the mean of volumes without weighting, elsewhere a least-squares
        fit of spherical harmonics, which are spanned by the products of as many components of the direction as the
        order. The order is the highest that leaves enough freedom; a shell of fewer than 9 directions is returned as
        it is. The matrix is symmetric and a projection: residuals have n minus its trace degrees of freedom.

        Parameters
        ----------
        tolerance : float, optional
            s/mm2, see `shells`.
        """
        direction = np.asarray(self.direction, dtype=float)
        fit = np.zeros((self.n_measurements, self.n_measurements))
        for shell in self.shells(tolerance):
            if self.b_value[shell[0]] <= reference_limit(self.b_value):
                basis = np.ones((len(shell), 1))
            else:
                basis = next((values for values, _ in _even_functions(direction[shell])), np.eye(len(shell)))
            fit[np.ix_(shell, shell)] = basis @ np.linalg.pinv(basis)
        return fit

    def timed_shells(self) -> list[npt.NDArray[np.intp]]:
        """Group volumes by b-value, as `shells` does, and by the timing of their gradient pulses.

        They come by ascending b-value, duration and separation of the first volume of each.

        Raises
        ------
        ProtocolError
            See `pulse_timing`.
        """
        timing = np.stack(self.pulse_timing())
        parts = []
        for shell in self.shells():
            _, index = np.unique(timing[:, shell], axis=1, return_inverse=True)
            parts += [shell[index.ravel() == i] for i in range(index.max() + 1)]
        return sorted(parts, key=lambda part: (self.b_value[part[0]], *timing[:, part[0]]))

    def up_to(self, b_value: float) -> tuple[Diffusion, npt.NDArray[np.float64]]:
        """Return the protocol of the volumes of at most this b-value (s/mm2), and the matrix that selects them.

        ``signals @ matrix`` turns (..., n_measurements) signals into those (..., n_kept) of the protocol.
        """
        keep = np.flatnonzero(np.asarray(self.b_value) <= b_value)
        return self.select(keep), np.eye(self.n_measurements)[:, keep]


def _even_functions(
    direction: npt.NDArray[np.float64],
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Yield bases of even functions by falling order: (n, n_functions) values at (n, 3) directions, and their means.

    The mean over the sphere of the product of even powers i, j, k is (i - 1)!! (j - 1)!! (k - 1)!! / (i + j + k + 1)!!.
    """
    for order in ANGULAR_ORDERS:
        powers = [(i, j, order - i - j) for i in range(order + 1) for j in range(order + 1 - i)]
        if PER_COEFFICIENT * len(powers) <= len(direction):
            values = np.stack([np.prod(direction**power, axis=1) for power in np.array(powers)], axis=-1)
            mean = [0.0 if np.any(np.mod(power, 2)) else _odd_factorials(power, order) for power in powers]
            yield values, np.array(mean)


def _odd_factorials(power: tuple[int, ...], order: int) -> float:
    """Return the product of (p - 1)!! over the powers, divided by (order + 1)!!."""
    return math.prod(math.prod(range(1, p, 2)) for p in power) / math.prod(range(1, order + 2, 2))


def _weights_of_directions(direction: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return (n,) weights, with the sum one, that average even functions over the sphere with the least noise.

    The order is the highest at which uneven directions, (n, 3), do not double the variance. Equal weights where there
    is none.
    """
    n = len(direction)
    for values, mean in _even_functions(direction):
        weights = np.asarray(np.linalg.pinv(values).T @ mean)
        if np.isclose(weights.sum(), 1) and n * np.square(weights).sum() < MAX_UNEVENNESS:
            return weights
    return np.full(n, 1 / n)


@dataclass(frozen=True)
class SphericalMean(Acquisition):
    """Powder averages: one value per b-value shell, averaged over directions.

    Attributes
    ----------
    b_value : tuple of float
        (n_shells,) s/mm2, ascending.
    n_directions : tuple of int
        (n_shells,) number of volumes that were averaged; with weights, the number whose plain mean is as noisy.
    """

    noise_floor_removed: ClassVar[bool] = True

    b_value: tuple[float, ...]
    n_directions: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.n_directions:
            object.__setattr__(self, "n_directions", (1,) * len(self.b_value))
        if len(self.n_directions) != len(self.b_value):
            raise ProtocolError(f"{len(self.b_value)} shells but {len(self.n_directions)} direction counts.")

    @property
    def n_measurements(self) -> int:
        """Number of shells."""
        return len(self.b_value)

    @property
    def n_averages(self) -> tuple[int, ...]:
        """Directions per shell."""
        return self.n_directions

    @classmethod
    def from_diffusion(
        cls, acquisition: Diffusion, tolerance: float | None = None
    ) -> tuple[SphericalMean, npt.NDArray[np.float64]]:
        """Return the powder-averaged protocol and the (n_measurements, n_shells) averaging matrix.

        ``signals @ matrix`` turns (..., n_measurements) signals into (..., n_shells) means over all directions; for
        `tolerance`, see `Diffusion.shells`. Directions are weighted so that even functions are averaged exactly, see
        `_weights_of_directions`: a plain mean of few or uneven directions differs from the mean over the sphere. The
        b-value of a shell is the mean of its volumes; in the lowest shell, volumes without a direction count as b = 0.
        """
        shells = acquisition.shells(tolerance)
        matrix = np.zeros((acquisition.n_measurements, len(shells)))
        b_value = np.asarray(acquisition.b_value)
        for column, index in enumerate(shells):
            is_weighted = acquisition.b_value[index[0]] > reference_limit(acquisition.b_value)
            directions = np.asarray(acquisition.direction, dtype=float)[index]
            matrix[index, column] = _weights_of_directions(directions) if is_weighted else 1 / len(index)
        limit = reference_limit(acquisition.b_value) if tolerance is None else tolerance
        effective = np.where(b_value <= limit, acquisition.effective_b_value, b_value)
        effective = np.where(effective <= B_ROUNDING, 0.0, effective)
        means = tuple(float(round(effective[i].mean(), 3)) for i in shells)
        n_directions = tuple(round(1 / n) for n in np.square(matrix).sum(axis=0))
        return cls(b_value=means, n_directions=n_directions), matrix
