"""Progress of a run on the terminal: one line per finished step."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

CLEAR = "\r\033[K"
#: Number of finished steps from which the remaining time is estimated.
MIN_STEPS = 3


class Progress:
    """Print finished and failed steps, with the elapsed and the estimated remaining time.

    On a terminal the last line shows the running steps. Elsewhere only complete lines are written.

    Parameters
    ----------
    totals : dict
        Subject -> number of steps.
    stream : file
        Output.
    clock : callable
        Time in s, replaced in tests.
    """

    def __init__(
        self,
        totals: dict[str, int],
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._totals = totals
        self._done = dict.fromkeys(totals, 0)
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._begin = clock()
        self._running: dict[tuple[str, str], float] = {}

    def start(self, subject: str, step: str) -> None:
        """Record the start of a step."""
        self._running[subject, step] = self._clock()
        self._show_running()

    def end(self, subject: str, step: str) -> None:
        """Record the end of a step. A step that never started is unchanged since an earlier run."""
        self._done[subject] += 1
        self._line(subject, step, self._took(subject, step), self._left())

    def fail(self, subject: str, step: str) -> None:
        """Record the failure of a step."""
        self._done[subject] += 1
        self._took(subject, step)
        self._line(subject, step, "FAILED", "")

    def _took(self, subject: str, step: str) -> str:
        begin = self._running.pop((subject, step), None)
        return "unchanged" if begin is None else f"{self._clock() - begin:.1f} s"

    def _left(self) -> str:
        done, total = sum(self._done.values()), sum(self._totals.values())
        if done < MIN_STEPS or done >= total:
            return ""
        elapsed = self._clock() - self._begin
        return f"   about {_clock_text(elapsed * (total - done) / done)} left"

    def _line(self, subject: str, step: str, result: str, left: str) -> None:
        clear = CLEAR if self._stream.isatty() else ""
        elapsed = _clock_text(self._clock() - self._begin)
        count = f"{self._done[subject]}/{self._totals[subject]}"
        line = f"[{elapsed}] sub-{subject:<10} {count:>6}  {step:<36} {result:>10}{left}"
        print(f"{clear}{line}", file=self._stream, flush=True)
        self._show_running()

    def _show_running(self) -> None:
        if self._stream.isatty() and self._running:
            names = ", ".join(f"sub-{subject} {step}" for subject, step in self._running)
            # A wrapped line could not be cleared.
            width = shutil.get_terminal_size().columns - 1
            print(f"{CLEAR}{f'  running: {names}'[:width]}", end="", file=self._stream, flush=True)


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
