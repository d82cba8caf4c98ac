"""Correction of measures for motion, of the group tables and of tables of users, and the files with its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qmri_bidsapp.bids.derivatives import json_text, save_text, table_text
from qmri_bidsapp.bids.tables import PARTICIPANT, read_table
from qmri_bidsapp.errors import InputMissingError, UsageError
from qmri_bidsapp.group.aggregate import COLUMNS as GROUP_COLUMNS
from qmri_bidsapp.group.aggregate import GroupTable
from qmri_bidsapp.group.measures import (
    COVARIATES,
    SCORE,
    MeasureTable,
    keys,
    match,
    match_covariates,
    measures_of_groups,
    numbers,
    read_covariates,
    session_column,
)
from qmri_bidsapp.group.regression import COLUMNS, MIN_DEGREES, Correction, correct

SLOPES, ADJUSTED = "motion_slopes", "motionadjusted"
#: Columns of the table of slopes beside those of `correct`.
_SLOPE_COLUMNS = ("measure", "unit", *COLUMNS[1:])
_DESCRIPTIONS = {
    "measure": "Measure; of group tables: map, series, model, estimator, region",
    "unit": "Unit of the measure, n/a where not known",
    "slope": "Change of the measure per mm of motion, in its unit per mm",
    "slope_low": "Lower limit of the 95 % interval of slope",
    "slope_high": "Upper limit of the 95 % interval of slope",
    "standard_error": "Standard error of slope: jackknife over participants",
    "n": "Rows (participants, or their sessions) in the regression",
    "n_participants": "Participants in the regression",
    "degrees_of_freedom": "Degrees of freedom of the t distribution: participants minus coefficients",
    "p_value": "Two-sided p-value of a slope of zero, for this measure alone",
    "p_fdr": "p_value, corrected over all measures of this table (Benjamini and Hochberg)",
    "covariates": "Covariates in the regression",
    "note": "Why there is no slope; rows and covariates that were left out",
}
#: Names of the tables of the group level in messages.
_GROUP_NAMES = ("The group tables", "the motion scores in scans.tsv", "participants.tsv")
#: Columns of group tables that identify a row.
_ORIGIN = ("participant_id", "session", "series", "model", "estimator", "tissue")


@dataclass(frozen=True)
class MotionCorrection:
    """Measures, their motion scores and the regression of one on the other.

    Attributes
    ----------
    measures : MeasureTable
    motion : Series
        mm, by the rows of the measures.
    correction : Correction
    notes : list of str
        Remarks for the user.
    left_out : list of str
        Covariates that do not vary among rows with a motion score.
    files : list of str
        Names of the tables of `correction_files`.
    """

    measures: MeasureTable
    motion: pd.Series[float]
    correction: Correction
    notes: list[str]
    left_out: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """How many measures change with motion, in two sentences."""
        slopes = self.correction.slopes
        n_clear = int((slopes["p_fdr"] < 0.05).sum())
        n_known = int(self.motion.notna().sum())
        return (
            f"{len(slopes)} measures, {n_known} of {len(self.motion)} rows with a motion score, "
            f"{int(slopes['slope'].notna().sum())} slopes, {n_clear} of them other than zero (corrected p below 0.05). "
            f"Values are adjusted to a motion of {self.correction.reference:.3g} mm."
        )


def correct_measures(
    measures: MeasureTable,
    scores: pd.Series[float],
    covariates: pd.DataFrame | None = None,
    reference: float | None = None,
    names: tuple[str, str, str] = ("--measures", "--motion", "--participants"),
) -> MotionCorrection:
    """Join measures with scores and covariates by participant and session, and correct them.

    Parameters
    ----------
    measures : MeasureTable
    scores : Series
        mm, by (participant, session).
    covariates : DataFrame, optional
        By participant.
    reference : float, optional
        Motion that values are adjusted to, mm (default: the median of the scores).
    names : (str, str, str)
        Names of the tables of measures, scores and covariates, for messages.

    Raises
    ------
    UsageError
        If no participant with measures is in one of the other tables, or if all their scores are equal.
    """
    index = measures.values.index
    motion = match(scores, pd.MultiIndex.from_tuples(list(index)), names[:2])
    motion = motion.set_axis(index)
    participants = index.get_level_values(0)
    notes, rows, left_out = list(measures.notes), None, []
    if covariates is not None:
        rows, unknown = match_covariates(covariates, participants, (names[0], names[2]))
        rows = rows.set_axis(index)
        left_out = list(rows.columns[(rows[motion.notna()].nunique() < 2).to_numpy()])
        rows = rows.drop(columns=left_out)
        notes += [*unknown, *(f"{name} is constant and is left out of the covariates." for name in left_out)]
    n_lost = int(motion.isna().sum())
    if n_lost:
        some = ", ".join("_".join(part for part in key if part) for key in index[motion.isna()][:5])
        notes.append(f"{n_lost} of {len(index)} rows of measures have no motion score and are left out: {some}.")
    if participants.has_duplicates:
        notes.append(
            "Some participants have several sessions: each is a row, and standard errors account for repeated measures."
        )
    if motion.nunique() == 1:
        raise UsageError(
            f"All {int(motion.notna().sum())} motion scores are equal: no slope can be estimated from them."
        )
    result = correct(measures.values, motion, participants.to_numpy(), rows, reference)
    return MotionCorrection(measures, motion, result, notes, left_out)


def scan_scores(out_dir: Path) -> tuple[pd.Series[float], list[str]]:
    """Read the motion scores that the participant level wrote into ``scans.tsv``.

    Parameters
    ----------
    out_dir : Path
        Output folder of the participant level.

    Returns
    -------
    scores : Series
        mm, by (participant, session); the mean over the T1w of a session.
    warnings : list of str
        Files that cannot be read; all others are used.
    """
    found: dict[tuple[str, str], float] = {}
    warnings = []
    for path in sorted([*out_dir.glob("sub-*/sub-*_scans.tsv"), *out_dir.glob("sub-*/ses-*/sub-*_scans.tsv")]):
        try:
            table = read_table(path)
            if not {"filename", SCORE} <= set(table):
                continue
            table = table[table["filename"].fillna("").str.contains(r"_T1w\.nii(?:\.gz)?$")]
            score = numbers(table[SCORE], f"column {SCORE} of {path}").mean()
        except (InputMissingError, UsageError) as error:
            warnings.append(f"{path} cannot be used ({error}): run the participant again.")
            continue
        labels = dict(part.split("-", 1) for part in path.name.split("_") if "-" in part)
        if np.isfinite(score):
            found[labels["sub"], labels.get("ses", "")] = float(score)
    return pd.Series(found, dtype=float), warnings


def correct_group(
    out_dir: Path, bids_dir: Path, tables: Sequence[GroupTable]
) -> tuple[MotionCorrection | None, str, list[str]]:
    """Correct the medians of the group tables for motion, and write the results beside them.

    Parameters
    ----------
    out_dir, bids_dir : Path
        Output folder; data set, whose ``participants.tsv`` gives age, sex and site.
    tables : sequence of GroupTable

    Returns
    -------
    found : MotionCorrection or None
    reason : str
        Why there is no correction; empty if there is one.
    warnings : list of str
        Files that cannot be used.
    """
    scores, warnings = scan_scores(out_dir)
    rows = [{"map": table.name, **row} for table in tables for row in table.rows]
    files: dict[str, str] = {}
    found, reason = None, ""
    if len(scores) == 0 or not rows:
        reason = "No participant has a motion score of its T1w."
    elif (n_scored := scores.index.get_level_values(0).nunique()) < MIN_DEGREES + 2:
        reason = f"{n_scored} participants have a motion score, {MIN_DEGREES + 2} are needed."
    else:
        try:
            measures = measures_of_groups(_words(rows), _GROUP_NAMES[0])
            covariates, notes = _participants(bids_dir, measures)
            found = correct_measures(measures, scores, covariates, names=_GROUP_NAMES)
            found.notes.extend(notes)
            files = correction_files(found, f"group_{SLOPES}")
        except (UsageError, InputMissingError) as error:
            reason = str(error)
    # Tables of an earlier run, of other participants, would contradict the new ones.
    for path in (*out_dir.glob(f"group_{SLOPES}.*"), *out_dir.glob(f"group_*_{ADJUSTED}.*")):
        if path.name not in files:
            path.unlink()
    for name, text in files.items():
        save_text(text, out_dir, name)
    return found, reason, warnings


def _participants(bids_dir: Path, measures: MeasureTable) -> tuple[pd.DataFrame | None, list[str]]:
    """Return the covariates in the data set, None if they cover no participant of the group tables, and notes."""
    path = bids_dir / "participants.tsv"
    if not path.is_file():
        return None, ["The data set has no participants.tsv: slopes are without age, sex and site."]
    covariates, notes = read_covariates(path, COVARIATES, "The data set")
    try:
        match_covariates(covariates, measures.values.index.get_level_values(0), (_GROUP_NAMES[0], _GROUP_NAMES[2]))
    except UsageError as error:
        return None, [f"{error} Slopes are without age, sex and site."]
    return covariates, notes


def _words(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return rows of group tables as strings, as if read from their files, but with ten digits."""
    table = pd.DataFrame(rows)
    table = table.astype(object).where(table.notna(), None)
    return table.map(
        lambda value: f"{value:.10g}" if isinstance(value, float) else None if value is None else str(value)
    )


def correction_files(found: MotionCorrection, slopes_name: str, adjusted_name: str = "") -> dict[str, str]:
    """Return the tables of slopes and adjusted values with their data dictionaries, and name them in ``found.files``.

    Parameters
    ----------
    found : MotionCorrection
    slopes_name : str
        Name of the table of slopes, without extension.
    adjusted_name : str
        Name of the table of adjusted values (default: one table for each map, beside its group table).

    Returns
    -------
    dict
        Name of the file -> its text.
    """
    slopes = found.correction.slopes
    slopes = slopes.assign(unit=slopes["measure"].map(found.measures.units)).reindex(columns=list(_SLOPE_COLUMNS))
    tables: list[tuple[str, pd.DataFrame, dict[str, Any]]] = [
        (slopes_name, slopes, {name: {"Description": text} for name, text in _DESCRIPTIONS.items()})
    ]
    source = found.measures.source
    if not found.measures.is_long:
        tables.append((adjusted_name, *_wide(found)))
    elif adjusted_name:
        tables.append((adjusted_name, *_long(found, source)))
    else:
        for name, part in source.groupby("map", sort=True):
            tables.append((f"group_{name}_{ADJUSTED}", *_long(found, part)))
    files = {}
    for name, table, columns in tables:
        rows = table.astype(object).where(table.notna() & (table != ""), None).to_dict("records")
        names = [str(column) for column in table]
        files[f"{name}.tsv"] = table_text([dict(zip(names, row.values(), strict=True)) for row in rows], names)
        files[f"{name}.json"] = json_text({column: columns[column] for column in names})
    found.files.extend(f"{name}.tsv" for name, _, _ in tables)
    return files


def _adjusted_text(reference: float, what: str) -> str:
    return f"{what} minus slope times (motion_score - {reference:.6g} mm); n/a where there is no slope or no score"


def _digits(values: npt.NDArray[np.floating]) -> list[str]:
    """Return numbers as strings of ten digits: enough to keep values of users."""
    return [f"{value:.10g}" if np.isfinite(value) else "" for value in values]


_SCORE_ENTRY = {"Description": "Motion score of the T1w", "Units": "mm"}


def _wide(found: MotionCorrection) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return measures, each with its adjusted values beside it, and the descriptions of the columns."""
    source, adjusted = found.measures.source, found.correction.adjusted
    session = session_column(source)
    columns: dict[str, Any] = {PARTICIPANT: source[PARTICIPANT].to_numpy()}
    about: dict[str, Any] = {PARTICIPANT: {"Description": "Participant"}}
    if session is not None:
        columns[session], about[session] = source[session].to_numpy(), {"Description": "Session"}
    columns[SCORE], about[SCORE] = _digits(found.motion.to_numpy()), _SCORE_ENTRY
    for name in map(str, adjusted):
        columns[name], columns[f"{name}_adjusted"] = source[name].to_numpy(), _digits(adjusted[name].to_numpy())
        about[name] = {"Description": "Measure as given"}
        about[f"{name}_adjusted"] = {"Description": _adjusted_text(found.correction.reference, name)}
    return pd.DataFrame(columns), about


def _long(found: MotionCorrection, part: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return rows of a group table with the adjusted median beside the median, and the descriptions of the columns."""
    index = keys(part, with_sessions=True)
    places = found.measures.values.index.get_indexer(index)
    measures = found.correction.adjusted.columns.get_indexer(pd.Index(part["measure"]))
    table = part[[name for name in _ORIGIN if name in part]].copy()
    table[SCORE] = _digits(found.motion.to_numpy()[places])
    table["median"] = part["median"]
    table["median_adjusted"] = _digits(found.correction.adjusted.to_numpy()[places, measures])
    table["unit"] = part["unit"]
    adjusted = {"Description": _adjusted_text(found.correction.reference, "median")}
    return table, {**GROUP_COLUMNS, SCORE: _SCORE_ENTRY, "median_adjusted": adjusted}
