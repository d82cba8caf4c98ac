"""Medians and interquartile ranges of every map, per subject and tissue."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from qmri_bidsapp.bids.derivatives import save_json, save_table
from qmri_bidsapp.bids.record import FitRecord, MapRecord, SeriesRecord, TruthRecord
from qmri_bidsapp.bids.record_files import read_record, record_files
from qmri_bidsapp.bids.result_names import TISSUE_LABELS
from qmri_bidsapp.bids.usable_record import UsableRecord
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.errors import NothingMatchedError, QmriError
from qmri_bidsapp.fitting.clusters import Clusters
from qmri_bidsapp.fitting.usable import unlike_voxels
from qmri_bidsapp.reports.flags import MOST, main_reason, part_flagged
from qmri_bidsapp.reports.tables import protocol_rows

COLUMNS: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Participant"},
    "session": {"Description": "Session, n/a where the data set has none"},
    "series": {"Description": "Series that the map was estimated from"},
    "model": {"Description": "Model"},
    "estimator": {"Description": "Estimator"},
    "tissue": {
        "Description": "Region that the values summarise",
        "Levels": {
            "brain": "Whole mask of the series",
            "GM": "Grey matter",
            "WM": "White matter",
            "CSF": "Cerebrospinal fluid",
        },
    },
    "n_voxels": {"Description": "Usable voxels (desc-...usable_mask); median and quartiles are over these"},
    "n_excluded": {"Description": "Other voxels of the region, left out"},
    "n_unlike": {"Description": "Voxels of the region unlike all simulated voxels; n/a without a certificate"},
    "cluster_voxels": {"Description": "Largest cluster of voxels unlike all simulated voxels; in rows of the brain"},
    "next_cluster_voxels": {"Description": "The next largest cluster; in rows of the brain"},
    "cluster_place": {"Description": "Centre of the largest cluster, world mm (x, y, z), and where this is"},
    "median": {"Description": "Median"},
    "q1": {"Description": "First quartile"},
    "q3": {"Description": "Third quartile"},
    "iqr": {"Description": "Interquartile range"},
    "unit": {"Description": "Unit of median, q1, q3 and iqr"},
}
#: Errors of nibabel for a missing, truncated or foreign image, and for an unexpected shape.
_UNREADABLE = (OSError, EOFError, zlib.error, ImageFileError, HeaderDataError, ValueError, IndexError)


@dataclass
class GroupTable:
    """Values of one parameter, of all participants.

    Attributes
    ----------
    name : str
        ``T1map``, ``smt-intrafraction``.
    description, unit : str
        Of the parameter.
    rows : list of dict
        One per map and tissue, with the keys of `COLUMNS`.
    protocols : dict
        (participant, series) -> (BIDS suffix, protocol as name -> value).
    missing : list of str
        Participants without this map.
    unlike : list of str
        Fits with more than half of the voxels unlike all simulated voxels, with the main reason, and fits with a
        cluster of such voxels that stands out, with its place.
    """

    name: str
    description: str
    unit: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    protocols: dict[tuple[str, str], tuple[str, dict[str, str]]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)

    @property
    def file_name(self) -> str:
        """Name in the output folder."""
        return f"group_{self.name}.tsv"


def aggregate(out_dir: Path, participant_labels: tuple[str, ...] = ()) -> tuple[list[GroupTable], list[str]]:
    """Write one table per parameter.

    Parameters
    ----------
    out_dir : Path
        Output folder of the participant level.
    participant_labels : tuple of str
        Empty for all.

    Returns
    -------
    tables : list of GroupTable
        Sorted by name.
    warnings : list of str
        Records and maps that could not be read; all others are in the tables.

    Raises
    ------
    NothingMatchedError
        If there is no record.
    """
    records = record_files(out_dir, participant_labels)
    if not records:
        raise NothingMatchedError(f"{out_dir / 'logs'} holds no record of these participants: run them first.")
    found: dict[str, GroupTable] = {}
    warnings: list[str] = []
    for path in records:
        _add_record(out_dir, path, found, warnings)
    tables = [found[name] for name in sorted(found)]
    for table in tables:
        present = {row["participant_id"] for row in table.rows}
        table.missing = [path.stem for path in records if path.stem not in present]
        _write(out_dir, table)
    return tables, warnings


def _write(out_dir: Path, table: GroupTable) -> None:
    """Write a table and its data dictionary."""
    save_table(table.rows, out_dir, table.file_name, columns=tuple(COLUMNS))
    columns = {name: dict(entry) for name, entry in COLUMNS.items()}
    columns["median"]["Description"] = f"Median of: {table.description}"
    for name in ("median", "q1", "q3", "iqr"):
        columns[name]["Units"] = table.unit
    save_json(columns, out_dir, table.file_name.removesuffix(".tsv") + ".json")


def _add_record(out_dir: Path, path: Path, found: dict[str, GroupTable], warnings: list[str]) -> None:
    """Add the rows of all fits of a participant; a record or fit that cannot be read adds a warning instead."""
    try:
        record = read_record(path)
        protocols = {series.name: dict(protocol_rows(series)[1:]) for series in record.series}
    except QmriError as error:
        warnings.append(str(error))
        return
    for fit in record.fits:
        series, truth = record.series_of(fit), record.truth_of(fit)
        where = f"{path.stem}, {fit.series}, {fit.model}"
        try:
            unlike, warning = _unlike(out_dir, truth)
            warnings += [f"{where}: {warning}"] if warning else []
            usable = record.usable_of(fit)
            if usable is None:
                raise ValueError("the run stopped before the usable voxels were known")
            entries = _fit_rows(out_dir, path.stem, series, fit, usable, unlike)
        except _UNREADABLE as error:
            warnings.append(f"{where}: a map cannot be read ({error}): run the participant again.")
            continue
        counts = truth.flag_counts if truth else {}
        where = f"{path.stem}, {usable.fit}"
        for name, item, rows in entries:
            table = found.setdefault(name, GroupTable(name, item.description, item.unit))
            table.rows += rows
            table.protocols[path.stem, fit.series] = (series.kind, protocols[fit.series])
            if part_flagged(counts) > MOST:
                table.unlike.append(f"{where}: {part_flagged(counts):.0%}; main reason: {main_reason(counts)}")
            if usable.clusters.stand_out:
                table.unlike.append(f"{where}: {usable.clusters.text}")


def _unlike(out_dir: Path, truth: TruthRecord | None) -> tuple[npt.NDArray[np.bool_] | None, str]:
    """Return which voxels of a fit are unlike all simulated ones, None if unknown, and a warning if unreadable."""
    if truth is None or truth.trust is None or truth.flag is None:
        return None, ""
    try:
        return unlike_voxels(_load(out_dir / truth.trust), _load(out_dir / truth.flag)), ""
    except _UNREADABLE as error:
        return None, f"{truth.trust} or {truth.flag} cannot be read ({error}): run the participant again."


def _fit_rows(
    out_dir: Path,
    participant: str,
    series: SeriesRecord,
    fit: FitRecord,
    found: UsableRecord,
    unlike: npt.NDArray[np.bool_] | None,
) -> list[tuple[str, MapRecord, list[dict[str, Any]]]]:
    """Return table name, record and rows of each map of a fit.

    Raises one of `_UNREADABLE` if any image cannot be read, so that a fit is in all tables or in none.
    """
    status, usable = _load(out_dir / fit.status), _load(out_dir / found.mask) > 0
    regions = {"brain": status != Status.OUTSIDE}
    if series.tissues:
        tissues = _load(out_dir / series.tissues)
        regions |= {name: regions["brain"] & (tissues == label) for name, label in TISSUE_LABELS.items()}
    entries = []
    for item in fit.maps:
        values = _load(out_dir / item.estimate)
        if not values.shape == usable.shape == status.shape:
            raise ValueError(
                f"{item.estimate} has the shape {values.shape}, its mask of usable voxels {usable.shape}, its status "
                f"map {status.shape}"
            )
        origin = {
            "participant_id": participant,
            "session": series.entities.get("ses"),
            "series": fit.series,
            "model": fit.model,
            "estimator": fit.estimator,
        }
        rows = [
            {
                **origin,
                "tissue": tissue,
                **_statistics(values, region, usable),
                "n_unlike": None if unlike is None or unlike.shape != region.shape else int(unlike[region].sum()),
                **(_cluster(found.clusters) if tissue == "brain" else {}),
                "unit": item.unit,
            }
            for tissue, region in regions.items()
        ]
        entries.append((_table_name(fit, item), item, rows))
    return entries


def _table_name(fit: FitRecord, item: MapRecord) -> str:
    """Return ``T1map`` for relaxometry, ``smt-intrafraction`` for diffusion; maps of S0 are named by their model."""
    suffix = Path(item.estimate).name.split("_")[-1].split(".")[0]
    return f"{fit.model}-{item.parameter.replace('_', '')}" if suffix in ("dwimap", "S0map") else suffix


def _load(path: Path) -> npt.NDArray[Any]:
    return np.asarray(nib.load(path).dataobj)


def _cluster(clusters: Clusters) -> dict[str, Any]:
    """Return the columns of the largest cluster of voxels unlike all simulated ones; none without any."""
    if not clusters.largest:
        return {}
    first, *others = clusters.largest
    return {
        "cluster_voxels": first.n_voxels,
        "next_cluster_voxels": others[0].n_voxels if others else 0,
        "cluster_place": f"{', '.join(f'{value:.0f}' for value in first.centre)} mm: {first.place}",
    }


def _statistics(
    values: npt.NDArray[np.floating], region: npt.NDArray[np.bool_], usable: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """Return counts, median and quartiles of the usable voxels; None where there are none."""
    counted = region & usable & np.isfinite(values)
    part = values[counted].astype(float)
    numbers: dict[str, Any] = {"n_voxels": int(part.size), "n_excluded": int(region.sum()) - int(part.size)}
    if not part.size:
        return {**numbers, "median": None, "q1": None, "q3": None, "iqr": None}
    q1, median, q3 = (float(value) for value in np.percentile(part, [25, 50, 75]))
    return {**numbers, "median": median, "q1": q1, "q3": q3, "iqr": q3 - q1}
