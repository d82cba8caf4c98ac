"""Repeatability of maps against their own standard deviations: differences of two fits that measure the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from qmri_bidsapp.bids.halves import Pair
from qmri_bidsapp.bids.record import FitRecord, SeriesRecord, SubjectRecord
from qmri_bidsapp.bids.record_files import read_record, record_file
from qmri_bidsapp.images.volumes import load_image
from qmri_bidsapp.preprocess.rigid import head_points, register, too_small
from qmri_bidsapp.registry import get_model

#: Goals: robust standard deviation of z, and percentage of voxels with \|z\| below `LIMIT`. Normal errors with right
#: standard deviations give 1 and 95 %.
SD_GOAL = (0.9, 1.15)
WITHIN_GOAL = 92.0
LIMIT = 1.96
#: Fewer voxels do not determine the standard deviation to a tenth.
MIN_VOXELS = 100
#: Between runs, a head that moved by more than this part of a voxel is not compared: tissue borders would differ.
MAX_DISPLACEMENT = 0.25
#: Median of \|z\| of a standard normal variable.
_MEDIAN = 0.67449
#: Column of the table -> description.
COLUMNS = {
    "participant_id": "Participant",
    "series": "Series whose halves are compared, or the two series",
    "model": "Model",
    "estimator": "Estimator",
    "parameter": "Parameter",
    "n_voxels": "Voxels compared: usable in both fits, each with a standard deviation of the parameter",
    "usable": "Percentage of the voxels of the common mask that are compared",
    "sd_z": f"Robust standard deviation of z about zero; 1 where standard deviations are right; goal {SD_GOAL[0]:g} to "
    f"{SD_GOAL[1]:g}",
    "within": f"Percentage of the voxels with z within {LIMIT} of zero; goal {WITHIN_GOAL:g} or more",
    "median_z": "Median of z; far from zero where the fits differ systematically",
    "verdict": "ok; std too small, std too large: what the standard deviations of the maps are; outliers: only the "
    f"percentage within misses its goal; few voxels: fewer than {MIN_VOXELS}; not independent: the halves share "
    "their only volume of the lowest b-value, so that nothing can be concluded unless z is too large",
}

Values = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Row:
    """One parameter of one pair; see `COLUMNS`."""

    participant_id: str
    series: str
    model: str
    estimator: str
    parameter: str
    n_voxels: int
    usable: float
    sd_z: float
    within: float
    median_z: float
    verdict: str


def z_scores(first: Values, first_std: Values, second: Values, second_std: Values) -> Values:
    """Return the differences of independent estimates over their standard deviations.

    Parameters
    ----------
    first, first_std, second, second_std : ndarray
        (n,) estimates and their standard deviations, in one unit.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((first - second) / np.hypot(first_std, second_std))


def summarise(z: Values, *, are_independent: bool = True) -> dict[str, Any]:
    """Return `sd_z`, `within`, `median_z` and `verdict` of z-scores, see `COLUMNS`.

    Parameters
    ----------
    z : ndarray
        (n,) finite.
    are_independent : bool
        Whether the errors are. Those that correlate make z smaller: too large a spread is still a fault, but nothing
        else can be concluded.
    """
    if len(z) < MIN_VOXELS:
        return {"sd_z": np.nan, "within": np.nan, "median_z": np.nan, "verdict": "few voxels"}
    spread = float(np.median(np.abs(z))) / _MEDIAN
    within = 100 * float(np.mean(np.abs(z) < LIMIT))
    if spread > SD_GOAL[1]:
        verdict = "std too small"
    elif spread < SD_GOAL[0] and are_independent:
        verdict = "std too large"
    elif within < WITHIN_GOAL:
        verdict = "outliers"
    else:
        verdict = "ok" if are_independent else "not independent"
    return {"sd_z": spread, "within": within, "median_z": float(np.median(z)), "verdict": verdict}


def compare(pairs: Sequence[Pair], out_dir: Path) -> tuple[list[Row], list[str]]:
    """Compare the maps of each pair.

    Parameters
    ----------
    pairs : sequence of Pair
    out_dir : Path
        Output folder of the participant level for the data set of the pairs.

    Returns
    -------
    rows : list of Row
    notes : list of str
        What was not compared, and why.
    """
    rows: list[Row] = []
    notes: list[str] = []
    for pair in pairs:
        record = read_record(record_file(out_dir, pair.subject))
        found, reasons = _compare_pair(pair, record, out_dir)
        rows += found
        notes += [f"sub-{pair.subject} {pair.title}: {reason}" for reason in reasons]
    return rows, notes


def _compare_pair(pair: Pair, record: SubjectRecord, out_dir: Path) -> tuple[list[Row], list[str]]:
    series = {item.name: item for item in record.series}
    fits = [
        {(fit.model, fit.estimator): fit for fit in record.fits if fit.series == name and record.usable_of(fit)}
        for name in (pair.first, pair.second)
    ]
    common = [key for key in fits[0] if key in fits[1]]
    reasons = [f"{model} was fitted to one of the two only." for model, _ in sorted(set(fits[0]) ^ set(fits[1]))]
    if not common:
        return [], [*reasons, "no model was fitted to both; see the problems above."]
    pictures = series[pair.first], series[pair.second]
    if not pair.are_halves and (reason := _moved(*pictures, out_dir)):
        return [], [reason]
    mask = np.logical_and(*(_read(out_dir, item.mask) > 0 for item in pictures))
    rows = []
    for key in common:
        two = fits[0][key], fits[1][key]
        masks = [_read(out_dir, entry.mask) > 0 for fit in two if (entry := record.usable_of(fit))]
        usable = mask & masks[0] & masks[1]
        for parameter, z in _by_parameter(*two, usable, out_dir):
            share = 100 * len(z) / max(1, int(mask.sum()))
            summary = summarise(z, are_independent=not pair.share_reference)
            rows.append(Row(f"sub-{pair.subject}", pair.title, *key, parameter, len(z), share, **summary))
    return rows, reasons


def _moved(first: SeriesRecord, second: SeriesRecord, out_dir: Path) -> str | None:
    """Return why two series cannot be compared voxel by voxel; None if they can."""
    masks = [nib.load(out_dir / str(item.mask)) for item in (first, second)]
    if masks[0].shape != masks[1].shape or not np.allclose(masks[0].affine, masks[1].affine, atol=1e-3):
        return "not compared, since their grids differ."
    # Of a series of single images, the first one has the contrast of the first one.
    images = [_mean_image(out_dir / str(item.preproc)) for item in (first, second)]
    if too_small(images[0]):
        return None
    moved = register(*images, effort="near").displacement(head_points(images[0]))
    limit = MAX_DISPLACEMENT * float(np.linalg.norm(masks[0].affine[:3, :3], axis=0).min())
    return f"not compared, since the head moved by {moved:.2g} mm (at most {limit:.2g} mm)." if moved > limit else None


def _mean_image(path: Path) -> nib.Nifti1Image:
    image = nib.load(path)
    if image.ndim == 3:
        return load_image(path, ndim=3)
    return nib.Nifti1Image(np.asarray(image.dataobj, dtype=np.float32).mean(axis=3), image.affine)


def _by_parameter(
    first: FitRecord, second: FitRecord, usable: npt.NDArray[np.bool_], out_dir: Path
) -> list[tuple[str, Values]]:
    """Return the finite z-scores of each parameter; angles, whose differences are no errors, are left out."""
    model = get_model(first.model)
    angles = {parameter.name for parameter in model.parameters if parameter.is_periodic}
    found = []
    for one, other in zip(first.maps, second.maps, strict=True):
        if one.parameter not in angles:
            names = (one.estimate, one.std, other.estimate, other.std)
            z = z_scores(*(_read(out_dir, name)[usable].astype(float) for name in names))
            found.append((one.parameter, z[np.isfinite(z)]))
    return found


def _read(out_dir: Path, name: str | None) -> npt.NDArray[Any]:
    return np.asarray(nib.load(out_dir / str(name)).dataobj)
