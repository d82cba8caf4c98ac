"""Progress: whole lines for a file, a line of running steps for a terminal."""

from __future__ import annotations

import io

import pytest

from qmri_bidsapp.cli.app.progress import CLEAR, Progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_lines(clock):
    stream = io.StringIO()
    progress = Progress({"01": 2, "02": 3}, stream, clock)
    progress.start("01", "T1w: brain mask")
    clock.now += 42.4
    progress.end("01", "T1w: brain mask")
    progress.end("02", "T1w: brain mask")
    progress.start("01", "save T1w")
    clock.now += 20
    progress.fail("01", "save T1w")
    progress.start("02", "save T1w")
    clock.now += 3600
    progress.end("02", "save T1w")
    lines = [" ".join(line.split()) for line in stream.getvalue().splitlines()]
    assert lines == [
        "[00:42] sub-01 1/2 T1w: brain mask 42.4 s",
        "[00:42] sub-02 1/3 T1w: brain mask unchanged",
        "[01:02] sub-01 2/2 save T1w FAILED",
        "[1:01:02] sub-02 2/3 save T1w 3600.0 s about 15:16 left",
    ]
    assert "\r" not in stream.getvalue()


def test_nothing_is_left_at_the_end(clock):
    stream = io.StringIO()
    progress = Progress({"01": 3}, stream, clock)
    for step in "abc":
        progress.end("01", step)
    assert "left" not in stream.getvalue()


def test_terminal_shows_what_runs(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    progress = Progress({"01": 2, "02": 1}, stream, clock)
    progress.start("01", "T1w: brain mask")
    progress.start("02", "a step with a name that is far too long for the terminal")
    progress.end("02", "a step with a name that is far too long for the terminal")
    first, second, done, last = stream.getvalue().split(CLEAR)[1:]
    assert first == last == "  running: sub-01 T1w: brain mask"
    assert second.startswith("  running: sub-01 T1w: brain mask, sub-02 a step")
    assert len(second) == 59
    assert done.endswith("\n")
    assert "sub-02" in done
