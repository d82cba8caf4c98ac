"""Regression of regional measures on the motion score: arrays and tables in, tables out.

Motion blurs and biases images. If some participants move more than others, motion may cause part of a group difference.
Each measure is regressed on the score, with covariates, by Huber's M-estimator. Standard errors account for residuals
whose spread grows with motion and for several sessions of a participant.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

#: Smallest number of participants beyond the number of coefficients.
MIN_DEGREES = 8
#: Relative tolerance below which a column counts as constant or collinear.
_TOLERANCE = 1e-4
#: Fraction below which a leave-one-out residual, or the motion without one participant, counts as zero.
_NOTHING_LEFT = 1e-6
#: Scale of residuals, of measures with a median absolute deviation of 1, that rounding alone explains.
_NO_SPREAD = 1e-9
COLUMNS = (
    *("measure", "slope", "slope_low", "slope_high", "standard_error", "n", "n_participants", "degrees_of_freedom"),
    *("p_value", "p_fdr", "covariates", "note"),
)
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Slope:
    """Change of a measure with motion.

    Attributes
    ----------
    slope, standard_error, low, high : float
        In the unit of the measure per mm; `low` and `high` bound the 95 % interval.
    p_value : float
        Of a slope of zero, two-sided.
    degrees : int
        Degrees of freedom: participants minus coefficients.
    n, n_participants : int
        Rows and participants in the regression.
    intercept : float
        Value of the fitted line at a motion of 0 mm and the mean of the covariates.
    spread : float
        Standard deviation of the values (by the median absolute deviation), in the unit of the measure.
    kept : tuple of int
        Columns of the covariates that are linearly independent of those before them.
    """

    slope: float
    standard_error: float
    low: float
    high: float
    p_value: float
    degrees: int
    n: int
    n_participants: int
    intercept: float
    spread: float
    kept: tuple[int, ...]


def regress(
    values: npt.ArrayLike, motion: npt.ArrayLike, covariates: npt.ArrayLike, participants: npt.ArrayLike
) -> Slope:
    r"""Regress a measure on motion and covariates by Huber's M-estimator (Huber 1964; c = 1.345, scale by the MAD).

    The covariance of the coefficients is the one-step jackknife over participants, a sandwich whose scores are divided
    by one minus their leverage (HC3 of MacKinnon and White 1985; CR3 of Bell and McCaffrey 2002, eq. 5):

    .. math:: s^2 A \left[\sum_g X_g^T e_g e_g^T X_g\right] A, \quad A = (X^T D X)^{-1},
        \quad e_g = (I - D_g X_g A X_g^T)^{-1} \psi(r_g / s)

    once with the mean of psi' in D (few participants) and once with psi' of each row (spread that grows with motion);
    the larger standard error is used. Tests and intervals use the t distribution with as many degrees of freedom as
    participants minus coefficients.

    Parameters
    ----------
    values : (n,) array
        Finite.
    motion : (n,) array
        mm.
    covariates : (n, k) array
        Columns that are constant or collinear are left out.
    participants : (n,) array
        Labels without ``sub-``; rows of one participant are not independent.

    Raises
    ------
    ValueError
        If the slope cannot be estimated; the message has the reason.
    """
    y, x = np.asarray(values, dtype=float), np.asarray(motion, dtype=float)
    if not x.size:
        raise ValueError("no row has a value, a motion score and all covariates")
    if not np.ptp(x) > _TOLERANCE * np.abs(x).max():
        raise ValueError(f"all {len(x)} motion scores are equal")
    groups, group = np.unique(np.asarray(participants), return_inverse=True)
    columns = np.column_stack([np.ones_like(x), np.asarray(covariates, dtype=float), x])
    kept = _independent(columns)
    design = columns[:, kept]
    if kept[-1] != columns.shape[1] - 1:
        raise ValueError("motion is a linear combination of the covariates: their effects cannot be separated")
    members = _members(group)
    if (only := _decides_alone(design, members)) is not None:
        raise ValueError(f"the slope rests on one participant (sub-{groups[only]})")
    degrees = len(groups) - design.shape[1]
    if degrees < MIN_DEGREES:
        raise ValueError(
            f"{len(groups)} participants for {design.shape[1]} coefficients; at least "
            f"{design.shape[1] + MIN_DEGREES} are needed"
        )
    scale = float(np.median(np.abs(y - np.median(y))))
    if not scale > 0:
        raise ValueError("more than half of the values are equal")
    # Scaling makes convergence independent of the unit.
    coefficients, error = _huber(y / scale, design, members)
    slope, error = float(coefficients[-1] * scale), float(error * scale)
    if not error > 0:
        raise ValueError("motion and covariates explain more than half of the values exactly: no spread is left")
    half = float(stats.t.ppf(0.975, degrees)) * error
    others = float(design[:, :-1].mean(axis=0) @ coefficients[:-1]) * scale
    p_value = float(2 * stats.t.sf(abs(slope) / error, degrees))
    spread, used = scale / float(stats.norm.ppf(0.75)), tuple(k - 1 for k in kept[1:-1])
    return Slope(slope, error, slope - half, slope + half, p_value, degrees, len(y), len(groups), others, spread, used)


def _members(group: npt.NDArray[np.intp]) -> list[npt.NDArray[np.intp]]:
    """Return the rows of each participant."""
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def _decides_alone(design: FloatArray, members: list[npt.NDArray[np.intp]]) -> int | None:
    """Return the participant without whom the last column would be collinear with the others, None without one."""
    basis = np.linalg.qr(design[:, :-1])[0]
    rest = design[:, -1] - basis @ (basis.T @ design[:, -1])
    total = float(rest @ rest)
    for k, rows in enumerate(members):
        inverse = _pseudo_inverse(np.eye(len(rows)) - basis[rows] @ basis[rows].T)
        if rest[rows] @ inverse @ rest[rows] > (1 - _NOTHING_LEFT) * total:
            return k
    return None


def _pseudo_inverse(rest: FloatArray) -> FloatArray:
    """Return the pseudo-inverse of one minus a leverage; singular values from 0 to 1 need no relative threshold."""
    left, values, right = np.linalg.svd(rest)
    kept = values > _NOTHING_LEFT
    return (right[kept].T / values[kept]) @ left[:, kept].T


def _huber(y: FloatArray, design: FloatArray, members: list[npt.NDArray[np.intp]]) -> tuple[FloatArray, float]:
    """Return the coefficients, and the standard error of the last."""
    import statsmodels.api as sm

    norm = sm.robust.norms.HuberT()
    fit = sm.RLM(y, design, M=norm).fit(maxiter=200)
    if not fit.scale > _NO_SPREAD:
        return fit.params, 0.0
    residuals = fit.resid / fit.scale
    scores, own = norm.psi(residuals), norm.psi_deriv(residuals)
    errors = [_jackknife(design, scores, weights, members) for weights in (np.full_like(own, own.mean()), own)]
    return fit.params, fit.scale * max(errors)


def _jackknife(
    design: FloatArray, scores: FloatArray, weights: FloatArray, members: list[npt.NDArray[np.intp]]
) -> float:
    """Return the standard error of the last coefficient, in units of the scale."""
    bread = np.linalg.pinv((design.T * weights) @ design, hermitian=True)
    total = 0.0
    for rows in members:
        part = design[rows]
        rest = np.eye(len(rows)) - weights[rows, None] * (part @ bread @ part.T)
        # A coefficient that one participant alone decides (the only one of a site) leaves no residual.
        # The pseudo-inverse skips it.
        total += float(bread[-1] @ part.T @ _pseudo_inverse(rest) @ scores[rows]) ** 2
    return total**0.5


def _independent(design: FloatArray) -> list[int]:
    """Return the columns that are linearly independent of those before them."""
    kept = []
    basis = np.empty((len(design), 0))
    for k, column in enumerate(design.T):
        rest = column - basis @ (basis.T @ column)
        if np.linalg.norm(rest) > _TOLERANCE * np.linalg.norm(column) > 0:
            kept.append(k)
            basis = np.column_stack([basis, rest / np.linalg.norm(rest)])
    return kept


def code_covariates(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Turn covariates into columns of numbers.

    Parameters
    ----------
    table : DataFrame
        Columns ``age`` (numbers), ``sex``, ``site`` (categories), each optional; NaN where unknown.

    Returns
    -------
    coded : DataFrame
        One column for age, and one for every category but the first; NaN where the covariate is unknown.
    used : list of str
        Covariate of each column; constant covariates have no column.
    """
    columns: dict[Hashable, pd.Series[float]] = {}
    used = []
    for name, values in table.items():
        levels = sorted(values.dropna().unique())
        if len(levels) < 2:
            continue
        if pd.api.types.is_numeric_dtype(values):
            columns[name] = values - values.mean()
            used.append(str(name))
        else:
            used += [str(name)] * (len(levels) - 1)
            for level in levels[1:]:
                columns[f"{name} {level}"] = (values == level).astype(float).where(values.notna())
    return pd.DataFrame(columns, index=table.index), used


@dataclass(frozen=True)
class Correction:
    """Result of `correct`.

    Attributes
    ----------
    slopes : DataFrame
        One row per measure, with `COLUMNS`.
    adjusted : DataFrame
        Measures at the reference motion, in the shape of the input; NaN without a slope or a score.
    lines : dict
        Measure -> `Slope`; measures without a slope are absent.
    reference : float
        Motion that values are adjusted to, mm.
    """

    slopes: pd.DataFrame
    adjusted: pd.DataFrame
    lines: dict[str, Slope]
    reference: float


def correct(
    measures: pd.DataFrame,
    motion: pd.Series[float],
    participants: npt.ArrayLike,
    covariates: pd.DataFrame | None = None,
    reference: float | None = None,
) -> Correction:
    """Regress every measure on motion, and adjust it to the reference motion.

    Parameters
    ----------
    measures : DataFrame
        (n, measures) numbers; NaN where missing.
    motion : Series
        (n,) mm; NaN where there is no score.
    participants : (n,) array
        Participant of each row.
    covariates : DataFrame, optional
        See `code_covariates`. Rows with an unknown covariate are left out of the regression.
    reference : float, optional
        Motion that values are adjusted to, mm (default: the median of the scores).

    Returns
    -------
    Correction
        P-values are corrected over all measures by Benjamini and Hochberg (1995).
    """
    reference = float(motion.median()) if reference is None else reference
    names = np.asarray(participants)
    table = pd.DataFrame(index=measures.index) if covariates is None else covariates
    adjusted = pd.DataFrame(np.nan, index=measures.index, columns=measures.columns)
    lines: dict[str, Slope] = {}
    rows = []
    for name, values in measures.items():
        row, line = _correct_one(values, motion, names, table)
        rows.append({"measure": name, **row})
        if line is not None:
            lines[str(name)] = line
            adjusted[name] = values - line.slope * (motion - reference)
    slopes = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    tested = slopes["p_value"].notna()
    if tested.any():
        slopes.loc[tested, "p_fdr"] = stats.false_discovery_control(slopes.loc[tested, "p_value"].astype(float))
    return Correction(slopes, adjusted, lines, reference)


def _correct_one(
    values: pd.Series[float], motion: pd.Series[float], participants: npt.NDArray[Any], covariates: pd.DataFrame
) -> tuple[dict[str, Any], Slope | None]:
    """Regress one measure on motion; return its row of the table of slopes, and the slope, if there is one."""
    counted = motion.notna() & values.notna()
    varying = covariates.columns[(covariates[counted].nunique() > 1).to_numpy()]
    index = np.flatnonzero(counted & covariates[varying].notna().all(axis=1))
    # Code only the categories that occur in the regression.
    coded, used = code_covariates(covariates.iloc[index])
    notes = []
    if lost := int(counted.sum()) - len(index):
        notes.append(f"{lost} rows without a known {' or '.join(map(str, varying))} are left out")
    notes += [f"{column} is constant and is left out" for column in covariates if column not in used]
    row: dict[str, Any] = {"covariates": ", ".join(dict.fromkeys(used)), "n": len(index)}
    row["n_participants"] = len(np.unique(participants[index]))
    line = None
    try:
        line = regress(values.iloc[index], motion.iloc[index], coded, participants[index])
    except ValueError as error:
        notes.append(f"no slope: {error}")
    else:
        kept = list(dict.fromkeys(used[k] for k in line.kept))
        row["covariates"] = ", ".join(kept)
        collinear = (column for column in dict.fromkeys(used) if column not in kept)
        notes += [f"{column} is collinear with {row['covariates']} and is left out" for column in collinear]
        row |= {"slope": line.slope, "slope_low": line.low, "slope_high": line.high, "p_value": line.p_value}
        row |= {"standard_error": line.standard_error, "degrees_of_freedom": line.degrees}
    return {**row, "note": "; ".join(notes)}, line
