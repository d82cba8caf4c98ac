"""The contract of a protocol."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from qmri_bidsapp.errors import ProtocolError


@dataclass(frozen=True)
class Acquisition:
    """Base of all protocols. Fields are tuples of plain numbers, so that equal protocols are equal objects.

    Attributes
    ----------
    registry : dict
        Class name -> class, for `from_dict`.
    noise_floor_removed : bool
        Whether the app removes the noise floor of magnitudes of such a series before the fit: the noise of the values
        that are fitted is then Gaussian.
    """

    registry: ClassVar[dict[str, type[Acquisition]]] = {}
    noise_floor_removed: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Acquisition.registry[cls.__name__] = cls

    @property
    def n_measurements(self) -> int:
        """Number of values per voxel."""
        raise NotImplementedError

    @property
    def n_averages(self) -> tuple[int, ...]:
        """Raw measurements averaged into each value, (n_measurements,); the noise variance is divided by them."""
        return (1,) * self.n_measurements

    @property
    def has_sign(self) -> bool:
        """Whether values may be negative; otherwise they are magnitudes."""
        return False

    def doubt_about_units(self) -> str | None:
        """Return which value is implausible in its unit, and the unit in which it would not be; None if all may be.

        Experiments may have any protocol; that of measured data is refused where there is a doubt.
        """
        return None

    def summary(self) -> str:
        """Return a few words about the protocol, for the list of planned work."""
        return f"{self.n_measurements} measurements"

    def rows(self) -> list[tuple[str, str]]:
        """Return name and value of each setting, with units, for tables of reports."""
        return [("Measurements", str(self.n_measurements))]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, with the class name under ``"type"``, for node inputs and records."""
        return {"type": type(self).__name__, **asdict(self)}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Acquisition:
        """Rebuild a protocol from `to_dict`, also after a round trip through JSON.

        Raises
        ------
        ProtocolError
            If the type is unknown or a value is out of range.
        """
        values = dict(data)
        name = values.pop("type", None)
        if name not in Acquisition.registry:
            raise ProtocolError(f"Unknown acquisition type {name!r}; known: {', '.join(sorted(Acquisition.registry))}.")
        return Acquisition.registry[name](**{key: _as_tuple(value) for key, value in values.items()})


def _as_tuple(value: Any) -> Any:
    """Turn nested lists into nested tuples."""
    return tuple(_as_tuple(item) for item in value) if isinstance(value, (list, tuple)) else value


def check_times(name: str, times: tuple[float, ...], *, longest: float, allow_zero: bool = False) -> None:
    """Raise ProtocolError unless all times, s, are finite, positive and at most `longest`."""
    for time in times:
        if not np.isfinite(time) or time < 0 or (time == 0 and not allow_zero):
            raise ProtocolError(f"{name} must be finite and positive seconds, got {time}.")
        if time > longest:
            unit = "milliseconds" if max(times) <= 1e3 * longest else "microseconds"
            raise ProtocolError(f"{name} must be in seconds, got {time:g}: is it in {unit}?")
