"""Protocols of relaxometry: images that differ by a time, by the flip angle or by a preparation pulse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qmri_bidsapp.core.acquisition.base import Acquisition, check_times
from qmri_bidsapp.errors import ProtocolError

#: Longer times, s, must be milliseconds: no tissue has signal at such an echo time or still recovers at such an
#: inversion time.
MAX_INVERSION_TIME = 60.0
MAX_ECHO_TIME = 4.0


#: Series whose longest time, s, is shorter show no relaxation of tissue.
SHORT_INVERSION_TIME = 0.02
SHORT_ECHO_TIME = 5e-4
#: Series whose first echo, s, is later have no signal of tissue.
LATE_ECHO_TIME = 0.3
#: With longer repetition times, s, and smaller flip angles, degree, all tissue is relaxed; shorter ones are impossible.
LONG_REPETITION_TIME, LARGE_FLIP_ANGLE = 1.0, 45.0
SHORT_REPETITION_TIME = 2e-4
#: T1, s, of the Ernst angle that some flip angle of a series exceeds, unless angles are in radian.
TYPICAL_T1 = 1.0


def _milliseconds(times: Sequence[float]) -> str:
    return ", ".join(f"{1e3 * time:g}" for time in times) + " ms"


def _too_short(name: str, times: Sequence[float], shortest: float) -> str | None:
    """Return a doubt about times, s, of which the longest is shorter than this."""
    if not times or max(times) >= shortest:
        return None
    return f"{name} must be in seconds, got {max(times):g} at most: was it divided by 1000 twice?"


def _range(times: Sequence[float]) -> str:
    return f"{min(times) * 1e3:g} to {max(times) * 1e3:g} ms"


@dataclass(frozen=True)
class InversionRecovery(Acquisition):
    """Inversion recovery.

    Attributes
    ----------
    inversion_time : tuple of float
        (n_measurements,) s.
    signed : bool
        Whether the polarity was restored: values before the null are negative, not magnitudes.
    """

    inversion_time: tuple[float, ...]
    signed: bool = False

    def __post_init__(self) -> None:
        check_times("InversionTime", self.inversion_time, longest=MAX_INVERSION_TIME)

    def doubt_about_units(self) -> str | None:
        """Doubt inversion times that are all very short."""
        return _too_short("InversionTime", self.inversion_time, SHORT_INVERSION_TIME)

    @property
    def n_measurements(self) -> int:
        """Number of inversion times."""
        return len(self.inversion_time)

    @property
    def has_sign(self) -> bool:
        """Whether the polarity was restored."""
        return self.signed

    def summary(self) -> str:
        """Return number and range of the inversion times."""
        return f"{len(self.inversion_time)} inversion times, {_range(self.inversion_time)}"

    def rows(self) -> list[tuple[str, str]]:
        """Return inversion times and polarity."""
        polarity = "restored" if self.signed else "not known, magnitude"
        return [("Inversion times", _milliseconds(self.inversion_time)), ("Polarity", polarity)]


@dataclass(frozen=True)
class MultiEcho(Acquisition):
    """Multi-echo spin echo or gradient echo.

    Attributes
    ----------
    echo_time : tuple of float
        (n_measurements,) s.
    """

    echo_time: tuple[float, ...]

    def __post_init__(self) -> None:
        check_times("EchoTime", self.echo_time, longest=MAX_ECHO_TIME)

    def doubt_about_units(self) -> str | None:
        """Doubt echo times that are all late or all very short."""
        if self.echo_time and min(self.echo_time) > LATE_ECHO_TIME:
            return (
                f"EchoTime must be in seconds, got {min(self.echo_time):g} for the first echo, when no signal is left: "
                "is it in milliseconds?"
            )
        return _too_short("EchoTime", self.echo_time, SHORT_ECHO_TIME)

    @property
    def n_measurements(self) -> int:
        """Number of echoes."""
        return len(self.echo_time)

    def summary(self) -> str:
        """Return number and range of the echo times."""
        return f"{len(self.echo_time)} echoes, {_range(self.echo_time)}"

    def rows(self) -> list[tuple[str, str]]:
        """Return the echo times."""
        return [("Echo times", _milliseconds(self.echo_time))]


@dataclass(frozen=True)
class T2Preparation(Acquisition):
    """Images after a T2 preparation: excitation, refocusing pulses, tip-up, then the same readout for all.

    Attributes
    ----------
    preparation_time : tuple of float
        (n_measurements,) time from excitation to tip-up, s; zero without a preparation.
    """

    preparation_time: tuple[float, ...]

    def __post_init__(self) -> None:
        check_times("The T2 preparation time", self.preparation_time, longest=MAX_ECHO_TIME, allow_zero=True)

    @property
    def n_measurements(self) -> int:
        """Number of preparation times."""
        return len(self.preparation_time)

    def summary(self) -> str:
        """Return number and range of the preparation times."""
        return f"{len(self.preparation_time)} preparation times, {_range(self.preparation_time)}"

    def rows(self) -> list[tuple[str, str]]:
        """Return the preparation times."""
        return [("Preparation times", _milliseconds(self.preparation_time))]


@dataclass(frozen=True)
class SpoiledGradientEcho(Acquisition):
    """Spoiled gradient echoes in the steady state, some of them with a magnetization transfer pulse.

    Attributes
    ----------
    flip_angle : tuple of float
        (n_measurements,) nominal flip angle, degree.
    repetition_time : tuple of float
        (n_measurements,) time between two excitations, s.
    mt_pulse : tuple of bool
        (n_measurements,) whether a magnetization transfer pulse precedes each excitation; empty for none.
    """

    flip_angle: tuple[float, ...]
    repetition_time: tuple[float, ...]
    mt_pulse: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if not self.mt_pulse:
            object.__setattr__(self, "mt_pulse", (False,) * len(self.flip_angle))
        counts = (len(self.flip_angle), len(self.repetition_time), len(self.mt_pulse))
        if len(set(counts)) > 1:
            raise ProtocolError("Got {} flip angles, {} repetition times and {} MT states.".format(*counts))
        for angle in self.flip_angle:
            if not 0 < angle < 180:
                raise ProtocolError(f"FlipAngle must lie between 0 and 180 degrees, got {angle}.")
        if self.flip_angle and max(self.flip_angle) < 0.7:
            raise ProtocolError(f"FlipAngle must be in degrees, got {max(self.flip_angle)} at most: is it in radian?")
        for time in self.repetition_time:
            if not 0 < time <= 5:
                raise ProtocolError(
                    f"The repetition time of a spoiled gradient echo must lie between 0 and 5 s, got {time}: "
                    "is it in milliseconds?"
                )

    def doubt_about_units(self) -> str | None:
        """Doubt repetition times after which all tissue is relaxed, and flip angles below all Ernst angles."""
        if not self.flip_angle:
            return None
        angle, time = max(self.flip_angle), max(self.repetition_time)
        if time > LONG_REPETITION_TIME and angle < LARGE_FLIP_ANGLE:
            return (
                f"The repetition time of a spoiled gradient echo must be in seconds, got {time:g} with flip angles of "
                f"at most {angle:g} degrees, where T1 has no effect: is it in milliseconds, or that of a volume?"
            )
        ernst = math.degrees(math.acos(math.exp(-time / TYPICAL_T1)))
        if angle < min(math.pi, ernst):
            return (
                f"FlipAngle must be in degrees, got {angle:g} at most with a repetition time of {time:g} s: is it in "
                "radian?"
            )
        return _too_short("The repetition time", self.repetition_time, SHORT_REPETITION_TIME)

    @property
    def n_measurements(self) -> int:
        """Number of images."""
        return len(self.flip_angle)

    def summary(self) -> str:
        """Return number of images, flip angles and number of images with a magnetization transfer pulse."""
        angles = ", ".join(f"{angle:g}" for angle in self.flip_angle)
        n_pulses = sum(self.mt_pulse)
        pulses = f", the last {n_pulses} with MT pulse" if n_pulses else ""
        return f"{len(self.flip_angle)} images, flip angles {angles} degree{pulses}"

    def rows(self) -> list[tuple[str, str]]:
        """Return flip angles, repetition times and, where there are any, magnetization transfer pulses."""
        found = [
            ("Flip angles", ", ".join(f"{angle:g}" for angle in self.flip_angle) + " degree"),
            ("Repetition times", _milliseconds(self.repetition_time)),
        ]
        if any(self.mt_pulse):
            found.append(("MT pulse", ", ".join("on" if pulse else "off" for pulse in self.mt_pulse)))
        return found
