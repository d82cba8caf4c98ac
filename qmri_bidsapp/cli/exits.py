"""How commands end: one line on the error stream for a failure, and an exit code."""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path

from qmri_bidsapp.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_PARTICIPANT_FAILED, QmriError

LOGGER = logging.getLogger("qmri_bidsapp")


def exit_code(error: BaseException | None, n_failed: int = 0) -> int:
    """Return the exit code for an error, or for a run in which `n_failed` participants failed.

    Every program decides its exit code here.
    """
    if isinstance(error, QmriError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if error is not None:
        return EXIT_PARTICIPANT_FAILED
    return EXIT_PARTICIPANT_FAILED if n_failed else EXIT_OK


def say_error(program: str, message: str) -> None:
    """Print a message as one line on the error stream, and log it."""
    line = " ".join(message.split("\n"))
    LOGGER.debug("%s", line)
    print(f"{program}: {line}", file=sys.stderr)


def say_unexpected(program: str, error: Exception) -> None:
    """Print one line for an error that the user did not cause; the traceback goes to the log, or else is printed."""
    details = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    log = log_file()
    LOGGER.debug("%s", details)
    if log is None:
        print(details, file=sys.stderr)
    where = f"; details in {log}" if log else ""
    say_error(program, f"unexpected error: {type(error).__name__}: {error}{where}")


def log_file() -> Path | None:
    """Return the path of the open log, or None."""
    files = (item.baseFilename for item in LOGGER.handlers if isinstance(item, logging.FileHandler))
    return next((Path(name) for name in files), None)
