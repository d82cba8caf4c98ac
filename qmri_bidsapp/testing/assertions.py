"""Assertions with messages that say what a contract needs and what it got."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt


def require(condition: bool | np.bool_, message: str) -> None:
    """Raise AssertionError with a message unless a condition holds; optimised Python does not remove this one."""
    if not condition:
        raise AssertionError(message)


def require_close(
    found: npt.ArrayLike, expected: npt.ArrayLike, *, rtol: float, atol: npt.ArrayLike = 0.0, message: str
) -> None:
    """Raise AssertionError unless arrays agree within ``rtol * |expected| + atol``; NaN agrees with NaN."""
    first, second = (np.asarray(values, dtype=np.float64) for values in (found, expected))
    require(first.shape == second.shape, f"{message}: shapes are {first.shape} and {second.shape}")
    allowed = rtol * np.abs(second) + np.asarray(atol, dtype=np.float64)
    difference = np.abs(first - second)
    wrong = ~((difference <= allowed) | (first == second) | (np.isnan(first) & np.isnan(second)))
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{message}: {int(wrong.sum())} of {wrong.size} values differ, the first at {place}: "
            f"{first[place]:g} instead of {second[place]:g}"
        )


def require_raises(kind: type[Exception], call: Callable[[], object], *, saying: str = "", message: str) -> None:
    """Raise AssertionError unless a call raises an exception of a kind with a message that contains a text."""
    try:
        call()
    except kind as error:
        require(saying in str(error), f"{message}: the message must contain {saying!r}, got {str(error)!r}")
    except Exception as error:
        raise AssertionError(f"{message}: needs {kind.__name__}, got {type(error).__name__}: {error}") from error
    else:
        raise AssertionError(f"{message}: needs {kind.__name__}, but nothing was raised")
