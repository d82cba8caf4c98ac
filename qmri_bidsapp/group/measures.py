"""Tables of measures, motion scores and participants from users: read, check and join them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qmri_bidsapp.bids.tables import PARTICIPANT, read_table
from qmri_bidsapp.errors import UsageError

SCORE = "motion_score"
COVARIATES = ("age", "sex", "site")
#: Covariates that are categories even where they are written as numbers.
_CATEGORIES = ("sex", "site")
SESSIONS = ("session_id", "session")
#: Columns that identify a table of the group level, and columns that distinguish its measures.
_GROUP_TABLE = ("series", "model", "estimator", "tissue", "median", "unit")
_ORIGIN = ("series", "model", "estimator", "tissue")


def read_participants_table(path: Path, option: str) -> pd.DataFrame:
    """Return the words of a TSV file with one or more rows for each participant; see `read_table`.

    Raises
    ------
    InputMissingError
        If there is no such file.
    UsageError
        If it is no table, or has no rows or no ``participant_id``.
    """
    table = read_table(path, option)
    if PARTICIPANT not in table:
        separated = " The columns must be separated by tabs." if len(table.columns) == 1 else ""
        raise UsageError(f"{option}: {path} needs the column {PARTICIPANT}, got {', '.join(table.columns)}.{separated}")
    if table.empty:
        raise UsageError(f"{option}: {path} has no rows below its header.")
    if table[PARTICIPANT].isna().any():
        raise UsageError(f"{option}: {path} has no {PARTICIPANT} in row {table[PARTICIPANT].isna().idxmax()}.")
    return table


def numbers(column: pd.Series[str], where: str) -> pd.Series[float]:
    """Return a column as numbers; its index must be the line of each row in the file.

    Raises
    ------
    UsageError
        If a value is not a number; the message has its row.
    """
    values = pd.to_numeric(column, errors="coerce").astype(float)
    wrong = (values.isna() & column.notna()) | np.isinf(values)
    if wrong.any():
        row, word = next(column[wrong].items())
        raise UsageError(f"{where} must hold numbers, with a point for decimals, or n/a; got {word!r} in row {row}.")
    return values


def session_column(table: pd.DataFrame) -> str | None:
    """Return the column of sessions; None without one, or without any label in it."""
    return next((name for name in SESSIONS if name in table and table[name].notna().any()), None)


def keys(table: pd.DataFrame, with_sessions: bool) -> pd.MultiIndex:
    """Return participant and session of every row, without ``sub-`` and ``ses-``; no session is an empty string."""
    participants = table[PARTICIPANT].str.strip().str.removeprefix("sub-")
    column = session_column(table) if with_sessions else None
    sessions = pd.Series("", index=table.index) if column is None else table[column].fillna("")
    return pd.MultiIndex.from_arrays([participants, sessions.str.strip().str.removeprefix("ses-")])


@dataclass
class MeasureTable:
    """Measures, one row for each participant and session.

    Attributes
    ----------
    values : DataFrame
        Index (participant, session), a column of numbers for each measure.
    units : dict
        Measure -> unit, where known.
    notes : list of str
        Columns that were left out.
    source : DataFrame
        The table as read.
    is_long : bool
        Whether `source` has a row for each region, as group tables of the app.
    """

    values: pd.DataFrame
    units: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    source: pd.DataFrame = field(default_factory=pd.DataFrame)
    is_long: bool = False


def is_group_table(table: pd.DataFrame) -> bool:
    """Return whether a table is from the group level, with one row for each region."""
    return set(_GROUP_TABLE) <= set(table.columns)


def measures_of_groups(table: pd.DataFrame, where: str) -> MeasureTable:
    """Turn rows of group tables into measures: each is a map, series, model, estimator and region.

    Parameters
    ----------
    table : DataFrame
        Columns of the group tables, as words, and ``map``.
    where : str
        For messages.

    Raises
    ------
    UsageError
        If a measure of a participant and session comes more than once.
    """
    # Sessions are in the index: the name of a measure must not hold them.
    origin = table[["map", *_ORIGIN]].replace({"series": r"^ses-[0-9a-zA-Z+]+_"}, {"series": ""}, regex=True)
    table = table.assign(measure=origin.fillna("").agg("_".join, axis=1))
    index = keys(table, with_sessions=True)
    twice = pd.MultiIndex.from_arrays([*(index.get_level_values(k) for k in (0, 1)), table["measure"]]).duplicated()
    if twice.any():
        first = table[twice].iloc[0]
        raise UsageError(f"{where} has {first['measure']} of {first[PARTICIPANT]} more than once; remove one.")
    long = pd.DataFrame({"measure": table["measure"], "value": numbers(table["median"], f"{where}: median")})
    values = long.set_index(index).set_index("measure", append=True)["value"].unstack("measure")
    units = dict(zip(table["measure"], table["unit"].fillna("n/a"), strict=True))
    return MeasureTable(values, units, source=table, is_long=True)


def read_measures(path: Path, leave_out: Sequence[str] = ()) -> MeasureTable:
    """Read measures: columns of numbers, or a group table of the app.

    Parameters
    ----------
    path : Path
    leave_out : sequence of str
        Columns that are not measures.

    Raises
    ------
    InputMissingError, UsageError
        If it cannot be used; the message has the remedy.
    """
    table = read_participants_table(path, "--measures")
    if is_group_table(table):
        return measures_of_groups(table.assign(map=path.stem.removeprefix("group_")), f"--measures: {path}")
    index = keys(table, with_sessions=True)
    _refuse_twice(index, f"--measures: {path}", "one row for each participant (and session_id)")
    columns, notes = {}, []
    for name in table.columns.drop([PARTICIPANT, *(k for k in {*SESSIONS, *leave_out, SCORE} if k in table)]):
        if name.endswith("_adjusted") and name.removesuffix("_adjusted") in table:
            notes.append(f"{name} is left out: adjusted values of {name.removesuffix('_adjusted')} get this name.")
        elif pd.to_numeric(table[name], errors="coerce").notna().any():
            columns[name] = numbers(table[name], f"--measures: column {name} of {path}").to_numpy()
        else:
            notes.append(f"{name} holds no numbers and is left out.")
    if not columns:
        raise UsageError(f"--measures: {path} has no column of numbers beside {PARTICIPANT} and session_id.")
    return MeasureTable(pd.DataFrame(columns, index=index), notes=notes, source=table)


def read_motion(path: Path, column: str) -> pd.Series[float]:
    """Read motion scores, mm, by participant and session.

    Raises
    ------
    InputMissingError, UsageError
        If there are no scores, or they cannot be used.
    """
    table = read_participants_table(path, "--motion")
    if column not in table:
        raise UsageError(
            f"--motion: {path} has no column {column}, but {', '.join(table.columns)}; name one with --motion-column."
        )
    scores = numbers(table[column], f"--motion: column {column} of {path}")
    if (scores < 0).any():
        raise UsageError(f"--motion: column {column} of {path} holds negative scores, but motion is 0 mm or more.")
    if scores.notna().sum() == 0:
        raise UsageError(f"--motion: column {column} of {path} is empty.")
    if scores.nunique() == 1:
        raise UsageError(f"--motion: all scores in {path} are {scores.max():g}: no slope can be estimated from them.")
    index = keys(table, with_sessions=True)
    _refuse_twice(index, f"--motion: {path}", "one score for each participant (and session_id)")
    return scores.set_axis(index)


def _refuse_twice(index: pd.MultiIndex, where: str, need: str) -> None:
    twice = index[index.duplicated()]
    if len(twice):
        participant, session = twice[0]
        name = f"sub-{participant}" + (f", ses-{session}" if session else "")
        raise UsageError(f"{where} must have {need}; {name} comes more than once.")


def match(
    scores: pd.Series[float], index: pd.MultiIndex, names: tuple[str, str] = ("--measures", "--motion")
) -> pd.Series[float]:
    """Return the scores of the rows of measures, NaN where there is none.

    If only one of the two tables has sessions, and one session for each participant, rows are joined by participant.

    Parameters
    ----------
    scores : Series
        mm, by (participant, session).
    index : MultiIndex
        Participant and session of the rows of measures.
    names : (str, str)
        Names of the tables of measures and of scores, for messages.

    Raises
    ------
    UsageError
        If no participant is in both tables, or if only one has several sessions of a participant.
    """
    has_sessions = [bool((part.get_level_values(1) != "").any()) for part in (scores.index, index)]
    if has_sessions[0] == has_sessions[1]:
        found = scores.reindex(index)
    else:
        for name, part in zip(names, (index, scores.index), strict=True):
            if part.get_level_values(0).has_duplicates:
                raise UsageError(
                    f"{name}: several sessions of a participant, but the other table has no session_id; add it."
                )
        found = scores.droplevel(1).reindex(index.get_level_values(0)).set_axis(index)
    if not found.notna().any():
        raise UsageError(
            f"{names[0]} and {names[1]} have no participant (and session) in common: {_example(index)} against "
            f"{_example(scores.index)}; use the same labels in both."
        )
    return found


def _example(index: pd.Index[Any]) -> str:
    participant, session = index[0]
    return f"sub-{participant}" + (f" ses-{session}" if session else "")


def match_covariates(
    covariates: pd.DataFrame, participants: pd.Index[str], names: tuple[str, str]
) -> tuple[pd.DataFrame, list[str]]:
    """Return the covariates of the rows of measures.

    Parameters
    ----------
    covariates : DataFrame
        By participant.
    participants : Index
        Participant of each row of measures.
    names : (str, str)
        Names of the tables of measures and of covariates, for messages.

    Returns
    -------
    rows : DataFrame
        One row for each row of measures, NaN where a participant has none.
    notes : list of str
        Participants without covariates.

    Raises
    ------
    UsageError
        If no participant is in both tables.
    """
    unknown = participants[~participants.isin(covariates.index)].unique()
    if len(unknown) == participants.nunique():
        raise UsageError(
            f"{names[0]} and {names[1]} have no participant in common: sub-{participants[0]} against "
            f"sub-{covariates.index[0]}; use the same labels in both."
        )
    notes = []
    if len(unknown):
        some = ", ".join(f"sub-{label}" for label in unknown[:5]) + ", ..." * (len(unknown) > 5)
        notes.append(f"{len(unknown)} participants are not in {names[1]}: {some}.")
    return covariates.reindex(participants), notes


def read_covariates(path: Path, names: Sequence[str], option: str) -> tuple[pd.DataFrame, list[str]]:
    """Read covariates of participants.

    Parameters
    ----------
    path : Path
        ``participants.tsv``.
    names : sequence of str
        Columns, case-insensitive. Sex, site and columns with other than numbers are categories.
    option : str
        For messages.

    Returns
    -------
    covariates : DataFrame
        By participant without ``sub-``: the columns that exist.
    notes : list of str
        Values that are not numbers, and columns that are missing.
    """
    table = read_participants_table(path, option)
    participants = keys(table, with_sessions=False).get_level_values(0)
    if participants.has_duplicates:
        first = participants[participants.duplicated()][0]
        raise UsageError(f"{option}: {path} must have one row for each participant; sub-{first} comes more than once.")
    present = {name.lower(): name for name in table.columns}
    columns: dict[str, pd.Series] = {}
    notes = []
    for name in dict.fromkeys(name.lower() for name in names):
        if name not in present:
            notes.append(f"{path.name} has no column {name}.")
            continue
        words = table[present[name]].str.strip()
        # BIDS allows 89+ for an age of 89 years or more.
        values = pd.to_numeric(words.str.removesuffix("+") if name == "age" else words, errors="coerce").astype(float)
        # Pandas before 3 reads a number beyond the range of floats, 1e999, as text.
        values = values.mask(values.isna() & words.str.fullmatch(r"[+-]?[\d.]+[eE]\+?\d+", na=False), np.inf)
        unread = words[values.isna() & words.notna()]
        if name == "age" or (name not in _CATEGORIES and unread.empty):
            columns[name] = values.where(np.isfinite(values))
            lost = words[columns[name].isna() & words.notna()]
            notes += [f"{name} {lost.iloc[0]!r} is not a finite number and counts as missing."] if len(lost) else []
        else:
            # F, female and Female are one category.
            columns[name] = words.str[0].str.upper() if name == "sex" else words
    return pd.DataFrame(columns, index=table.index).set_axis(participants, axis=0), notes
