"""Display units: BIDS units are used everywhere inside; only reports show the units that readers expect."""

from __future__ import annotations

#: BIDS unit -> (display unit, factor): displayed value = stored value * factor.
DISPLAY_UNITS: dict[str, tuple[str, float]] = {
    "s": ("ms", 1e3),
    "mm2/s": ("µm²/ms", 1e3),
    "1/s": ("1/s", 1.0),
    "mm": ("µm", 1e3),
    "degree": ("°", 1.0),
    "1": ("", 1.0),
    "arbitrary": ("a.u.", 1.0),
}


def to_display(unit: str) -> tuple[str, float]:
    """Return the display unit of a BIDS unit and the factor that converts values to it.

    Raises
    ------
    KeyError
        If the unit is not one that this project writes.
    """
    return DISPLAY_UNITS[unit]
