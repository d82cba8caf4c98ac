"""Estimates against true values, on arrays alone: errors, z-scores and coverage."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Limits = tuple[Array, Array]

#: Half width of the central 95 % interval of a Gaussian, in standard deviations.
Z_95 = 1.96
#: Shares of voxels between which the coverage must lie: of the 95 % interval, and of the 5 to 95 % range of the truth.
INTERVAL_LIMITS, RANGE_LIMITS = (0.92, 0.98), (0.87, 0.93)
#: Voxels below which coverage is not judged: the standard error of 0.9 is then 0.015, half of the room it has.
MIN_VOXELS = 400
#: Part of truth and width by which limits may miss it: maps hold single precision.
ROUNDING = 1e-6
#: Median absolute deviation of a standard Gaussian, inverted.
MAD_TO_STD = 1.4826


@dataclass(frozen=True)
class Agreement:
    """How estimates of one quantity agree with the truth; None where there is nothing to count.

    Attributes
    ----------
    n : int
        Voxels with a true value and an estimate.
    median_bias, rmse : float or None
        Median of the errors and root of their mean square, in the quantity's unit.
    mean_z, robust_sd_z : float or None
        Of the errors over their standard deviations: mean, and 1.4826 times the median absolute deviation from the
        median.
    n_interval, n_range, n_limit : int
        Voxels with a 95 % interval; with a range of the truth, if the truth is off its physical limits; with such a
        range, if the truth is on one of them.
    interval_coverage, range_coverage, limit_coverage : float or None
        Shares of these whose interval, or range, contains the truth.
    """

    n: int
    median_bias: float | None
    rmse: float | None
    mean_z: float | None
    robust_sd_z: float | None
    n_interval: int
    interval_coverage: float | None
    n_range: int
    range_coverage: float | None
    n_limit: int = 0
    limit_coverage: float | None = None

    def to_dict(self) -> dict[str, float | int | None]:
        """Return the fields."""
        return asdict(self)

    def faults(self) -> list[str]:
        """Return which coverage leaves its limits, in words; too few voxels are not judged.

        Ranges near a physical limit end on it and have both tails on their other side, so that they hold a truth on the
        limit in about 95 %: more than `RANGE_LIMITS` is right there.
        """
        parts = (
            ("range at the limit", self.n_limit, self.limit_coverage, (RANGE_LIMITS[0], 1.0)),
            ("range", self.n_range, self.range_coverage, RANGE_LIMITS),
            ("interval", self.n_interval, self.interval_coverage, INTERVAL_LIMITS),
        )
        return [
            f"{name} holds the truth in {100 * coverage:.1f} % of {n:,} voxels, not {100 * low:.0f} to {100 * high:.0f}"
            for name, n, coverage, (low, high) in parts
            if coverage is not None and n >= MIN_VOXELS and not low <= coverage <= high
        ]

    @property
    def is_judged(self) -> bool:
        """Whether there are enough voxels to judge the interval or the range."""
        return max(self.n_interval, self.n_range, self.n_limit) >= MIN_VOXELS


def agreement(
    truth: Array,
    estimate: Array,
    std: Array,
    *,
    interval: Limits | None = None,
    value_range: Limits | None = None,
    physical: tuple[float, float] = (-np.inf, np.inf),
) -> Agreement:
    """Compare estimates with true values.

    Limits belong to an interval: a truth of zero is in an interval that ends on zero, as that of a fraction does.

    Parameters
    ----------
    truth, estimate, std : ndarray
        (n,) in the same unit; NaN where there is none.
    interval : (ndarray, ndarray), optional
        Limits of the central 95 % interval; by default 1.96 standard deviations on each side of the estimate.
    value_range : (ndarray, ndarray), optional
        5th and 95th percentile of the truth.
    physical : (float, float)
        Limits of nature of the quantity, such as 0 and 1 of a fraction.
    """
    truth, estimate, std = (np.asarray(values, dtype=np.float64) for values in (truth, estimate, std))
    known = np.isfinite(truth) & np.isfinite(estimate)
    error = (estimate - truth)[known]
    has_std = known & np.isfinite(std) & (std > 0)
    z = ((estimate - truth)[has_std]) / std[has_std]
    if interval is None:
        spread = np.where(has_std, Z_95 * std, np.nan)
        interval = estimate - spread, estimate + spread
    n_interval, in_interval = _coverage(truth[known], *(limit[known] for limit in interval))
    on_limit = (truth <= physical[0]) | (truth >= physical[1])
    (n_range, in_range), (n_limit, on_it) = (
        (0, None) if value_range is None else _coverage(truth[where], *(limit[where] for limit in value_range))
        for where in (known & ~on_limit, known & on_limit)
    )
    return Agreement(
        n=int(known.sum()),
        median_bias=float(np.median(error)) if error.size else None,
        rmse=float(np.sqrt(np.mean(error**2))) if error.size else None,
        mean_z=float(z.mean()) if z.size else None,
        robust_sd_z=float(MAD_TO_STD * np.median(np.abs(z - np.median(z)))) if z.size else None,
        n_interval=n_interval,
        interval_coverage=in_interval,
        n_range=n_range,
        range_coverage=in_range,
        n_limit=n_limit,
        limit_coverage=on_it,
    )


def _coverage(truth: Array, low: Array, high: Array) -> tuple[int, float | None]:
    """Return the number of voxels with limits, and the share of these whose limits enclose the truth."""
    given = np.isfinite(low) & np.isfinite(high)
    truth, low, high = truth[given], low[given].astype(np.float64), high[given].astype(np.float64)
    if not truth.size:
        return 0, None
    slack = ROUNDING * (np.abs(truth) + high - low)
    return len(truth), float(np.mean((truth >= low - slack) & (truth <= high + slack)))


def nearest_turn(truth: Array, estimate: Array, turn: float) -> Array:
    """Return the true angles plus the whole turns that bring them nearest to their estimates, in the unit of `turn`."""
    return truth + turn * np.round((estimate - truth) / turn)


def nearest_axis(true_polar: Array, true_azimuth: Array, polar: Array, azimuth: Array) -> tuple[Array, Array]:
    """Return true angles of axes in the form nearest to the estimates; all in degrees.

    An axis has no sign: (theta, phi) and (180 - theta, phi + 180) are one.

    Parameters
    ----------
    true_polar, true_azimuth, polar, azimuth : ndarray
        (n,) polar angle and azimuth of the truth, and of the estimate.
    """
    a, b, c, d = (np.radians(values) for values in (true_polar, true_azimuth, polar, azimuth))
    cosine = np.sin(a) * np.sin(c) * np.cos(b - d) + np.cos(a) * np.cos(c)
    opposite = cosine < 0
    turned = np.where(opposite, true_azimuth + 180.0, true_azimuth)
    return np.where(opposite, 180.0 - true_polar, true_polar), nearest_turn(turned, azimuth, 360.0)
