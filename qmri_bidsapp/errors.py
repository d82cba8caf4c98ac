"""Every error that a user can cause, with the exit code that it leads to.

The codes follow the draft of the BIDS execution specification. An error says what was needed, what came,
which file it concerns and what to do about it.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_PARTICIPANT_FAILED = 1
EXIT_INTERRUPTED = 130


class QmriError(Exception):
    """Base of all errors that the user can fix; the program ends with ``exit_code``."""

    exit_code: int = EXIT_PARTICIPANT_FAILED


class InvalidBIDSError(QmriError):
    """The input folder is not a valid BIDS data set."""

    exit_code = 16


class UnknownLevelError(QmriError):
    """The analysis level is neither ``participant`` nor ``group``."""

    exit_code = 17


class NothingMatchedError(QmriError):
    """The chosen labels or filters match no data."""

    exit_code = 18


class UsageError(QmriError):
    """The command line or configuration file cannot be understood."""

    exit_code = 64


class NotComparableError(QmriError):
    """Maps and true maps cannot be compared: there is none, they cannot be read or lie on different grids."""

    exit_code = 65


class InputMissingError(QmriError):
    """A file or folder that was named does not exist or cannot be read."""

    exit_code = 66


class OutputError(QmriError):
    """The output or work folder cannot be written."""

    exit_code = 73


class InputError(QmriError):
    """A series is unfit for use (missing field, wrong shape, unreadable or empty image)."""


class RepeatabilityError(QmriError):
    """Differences between halves or repeats do not agree with the standard deviations of the maps."""


class CoverageError(QmriError):
    """Ranges or intervals of maps hold the truth more or less often than they say."""


class ProtocolError(InputError):
    """A protocol cannot identify the parameters of the chosen model."""


class PriorError(UsageError):
    """A training distribution cannot be made, or does not suit the model."""


class WeightsError(UsageError):
    """Trained weights are damaged, or belong to another model, protocol or version."""
