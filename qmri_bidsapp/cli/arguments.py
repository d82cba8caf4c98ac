"""Arguments that several commands share: a parser that raises, lists of words, seeds."""

from __future__ import annotations

import argparse
from typing import NoReturn

from qmri_bidsapp.errors import UsageError


class Parser(argparse.ArgumentParser):
    """A parser whose errors raise `UsageError`: argparse itself would exit with its own code."""

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError`; overrides the method of the same name."""
        raise UsageError(f"{message[0].upper()}{message[1:]}. See {self.prog} --help.")


def words(name: str, given: list[str], prefix: str = "") -> list[str]:
    """Return the distinct words of an option in the order given; words are separated by spaces or commas.

    Parameters
    ----------
    name : str
        Of the option, for the message.
    given : list of str
    prefix : str
        Removed from each word, such as ``sub-``.

    Raises
    ------
    UsageError
        If no word is left.
    """
    found = [word.removeprefix(prefix) for item in given for word in item.split(",") if word]
    if not found:
        # Elsewhere an empty list means "all".
        raise UsageError(f"--{name.replace('_', '-')} needs at least one value, got {' '.join(given)!r}.")
    return list(dict.fromkeys(found))


def seed(text: str) -> int:
    """Return the seed for the text of an option; a ``type`` for argparse."""
    if not (text.isascii() and text.isdecimal() and int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"a seed is a whole number from 0 to 2^63 - 1, got {text}")
    return int(text)
