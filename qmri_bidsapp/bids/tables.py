"""Reading of tables with tabs (TSV), from the app or from users."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd

from qmri_bidsapp.errors import InputMissingError, UsageError

#: Words for a missing value.
MISSING = ("", "n/a", "N/A", "NA", "nan", "NaN")
PARTICIPANT = "participant_id"


def read_table(path: Path, option: str = "") -> pd.DataFrame:
    """Return the words of a TSV file.

    Parameters
    ----------
    path : Path
    option : str
        Command-line option that named the file, for messages.

    Returns
    -------
    DataFrame
        Strings, NaN where missing; the index is the line of each row in the file. Empty lines are skipped.

    Raises
    ------
    InputMissingError
        If there is no such file.
    UsageError
        If it is no table with a header of distinct names.
    """
    where = f"{option}: {path}" if option else f"{path}"
    if not path.is_file():
        raise InputMissingError(f"{where} does not exist or is no file.")
    try:
        with path.open(encoding="utf-8-sig") as file:
            start = next((row for row, line in enumerate(file) if line.strip()), 0)
        words = pd.read_csv(
            path,
            sep="\t",
            header=None,
            dtype=str,
            na_values=list(MISSING),
            keep_default_na=False,
            encoding="utf-8-sig",
            skiprows=start,
            skip_blank_lines=False,
        )
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        raise UsageError(f"{where} cannot be read as a table with tabs ({error}).") from error
    words.index += start + 1
    words = words[(words.fillna("").map(str.strip) != "").any(axis=1)]
    if words.empty:
        raise UsageError(f"{where} cannot be read as a table with tabs (it is empty).")
    header = [str(name).strip() for name in words.iloc[0]]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UsageError(f"{where} has several columns {', '.join(twice)}; rename or remove them.")
    return words.iloc[1:].set_axis(header, axis=1)
