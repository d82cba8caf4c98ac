"""Medians and interquartile ranges of every map, per subject and tissue."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from qmri_bidsapp.bids.derivatives import save_json, save_table
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.errors import NothingMatchedError, QmriError
from qmri_bidsapp.reports.flags import MOST, main_reason, part_flagged
from qmri_bidsapp.reports.tables import protocol_rows, truth_of
from qmri_bidsapp.uncertainty.ood import Reason

TISSUES = {"GM": 1, "WM": 2, "CSF": 3}
COLUMNS: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Participant"},
    "session": {"Description": "Session, n/a where the data set has none"},
    "series": {"Description": "Series that the map was estimated from"},
    "model": {"Description": "Model"},
    "estimator": {"Description": "Estimator"},
    "tissue": {
        "Description": "Region that the numbers stand for",
        "Levels": {
            "brain": "Whole mask of the series",
            "GM": "Grey matter",
            "WM": "White matter",
            "CSF": "Cerebrospinal fluid",
        },
    },
    "n_voxels": {"Description": "Voxels that count: status OK"},
    "n_flagged": {"Description": "Voxels of the region that do not count: another status"},
    "n_unlike": {"Description": "Voxels of the region unlike all that was simulated; n/a where they were not compared"},
    "median": {"Description": "Median"},
    "q1": {"Description": "First quartile"},
    "q3": {"Description": "Third quartile"},
    "iqr": {"Description": "Interquartile range"},
    "unit": {"Description": "Unit of median, q1, q3 and iqr"},
}
#: What reading a missing, truncated or foreign image, or one of another shape, leads to.
_UNREADABLE = (OSError, EOFError, zlib.error, ImageFileError, HeaderDataError, ValueError, IndexError)


@dataclass
class GroupTable:
    """All subjects' values of one parameter.

    Attributes
    ----------
    name : str
        ``T1map``, ``smt-intrafraction``.
    description, unit : str
        Of the parameter.
    rows : list of dict
        One per map and tissue, with the keys of `COLUMNS`.
    protocols : dict
        (participant, series) -> (kind of series, name and value of each part of its protocol).
    missing : list of str
        Participants without this map.
    unlike : list of str
        Fits most of whose voxels are unlike all that was simulated, with the main reason.
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
        Records or maps that could not be read; the others count.

    Raises
    ------
    NothingMatchedError
        If there is no record.
    """
    records = sorted((out_dir / "logs").glob("sub-*.json"))
    if participant_labels:
        records = [path for path in records if path.stem[4:] in participant_labels]
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
    """Add the rows of all fits of a participant; a fit that cannot be read adds a warning instead."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        series = {item["name"]: item for item in record["series"]}
        fits = [
            (fit, truth_of(record, fit), series[fit["series"]], dict(protocol_rows(series[fit["series"]])[1:]))
            for fit in record["fits"]
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, QmriError) as error:
        warnings.append(f"{path.name} cannot be used ({type(error).__name__}: {error}): run the participant again.")
        return
    for fit, truth, source, protocol in fits:
        try:
            flags, warning = _flags(out_dir, truth)
            warnings += [f"{path.stem}, {fit['series']}, {fit['model']}: {warning}"] if warning else []
            entries = _fit_rows(out_dir, path.stem, source, fit, flags)
        except KeyError as error:
            warnings.append(f"{path.name} cannot be used (no entry {error}): run the participant again.")
            continue
        except _UNREADABLE as error:
            where = f"{path.stem}, {fit['series']}, {fit['model']}"
            warnings.append(f"{where}: a map cannot be read ({error}): run the participant again.")
            continue
        for name, item, rows in entries:
            table = found.setdefault(name, GroupTable(name, item["description"], item["unit"]))
            table.rows += rows
            table.protocols[path.stem, fit["series"]] = (source["kind"], protocol)
            counts = truth.get("flag_counts", {})
            if part_flagged(counts) > MOST:
                where = f"{path.stem}, {fit['series']} {fit['model']} ({fit['estimator']})"
                table.unlike.append(f"{where}: {part_flagged(counts):.0%}; mostly: {main_reason(counts)}")


def _flags(out_dir: Path, truth: Mapping[str, Any]) -> tuple[npt.NDArray[np.integer] | None, str]:
    """Return the flags of a fit, or None, and what is wrong with them."""
    if "flag" not in truth:
        return None, ""
    try:
        return _load(out_dir / truth["flag"]), ""
    except _UNREADABLE as error:
        return None, f"{truth['flag']} cannot be read ({error}): run the participant again."


def _fit_rows(
    out_dir: Path,
    participant: str,
    series: Mapping[str, Any],
    fit: Mapping[str, Any],
    flags: npt.NDArray[np.integer] | None,
) -> list[tuple[str, Mapping[str, Any], list[dict[str, Any]]]]:
    """Return name of the table, map of the record and rows, for all maps of a fit: all or none."""
    status = _load(out_dir / fit["status"])
    regions = {"brain": status != Status.OUTSIDE}
    if series["tissues"]:
        tissues = _load(out_dir / series["tissues"])
        regions |= {name: regions["brain"] & (tissues == label) for name, label in TISSUES.items()}
    entries = []
    for item in fit["maps"]:
        values = _load(out_dir / item["map"])
        if values.shape != status.shape:
            raise ValueError(f"{item['map']} has the shape {values.shape}, its status map {status.shape}")
        origin = {
            "participant_id": participant,
            "session": series["entities"].get("ses"),
            "series": fit["series"],
            "model": fit["model"],
            "estimator": fit["estimator"],
        }
        rows = [
            {
                **origin,
                "tissue": tissue,
                **_statistics(values, region, status),
                "n_unlike": None if flags is None or flags.shape != region.shape else _n_unlike(flags[region]),
                "unit": item["unit"],
            }
            for tissue, region in regions.items()
        ]
        entries.append((_table_name(fit, item), item, rows))
    return entries


def _table_name(fit: Mapping[str, Any], item: Mapping[str, Any]) -> str:
    """Return ``T1map`` for relaxometry, ``smt-intrafraction`` for diffusion; S0 is told apart by its model."""
    suffix = Path(item["map"]).name.split("_")[-1].split(".")[0]
    label = item["parameter"].replace("_", "")
    return f"{fit['model']}-{label}" if suffix in ("dwimap", "S0map") else suffix


def _load(path: Path) -> npt.NDArray[Any]:
    return np.asarray(nib.load(path).dataobj)


def _n_unlike(flags: npt.NDArray[np.integer]) -> int:
    return int(((flags > Reason.TYPICAL) & (flags < Reason.NO_ESTIMATE)).sum())


def _statistics(
    values: npt.NDArray[np.floating], region: npt.NDArray[np.bool_], status: npt.NDArray[np.integer]
) -> dict[str, Any]:
    """Return counts, median and quartiles of the voxels with status OK; None where there are none."""
    counted = region & (status == Status.OK) & np.isfinite(values)
    part = values[counted].astype(float)
    numbers: dict[str, Any] = {"n_voxels": int(part.size), "n_flagged": int(region.sum()) - int(part.size)}
    if not part.size:
        return {**numbers, "median": None, "q1": None, "q3": None, "iqr": None}
    q1, median, q3 = (float(value) for value in np.percentile(part, [25, 50, 75]))
    return {**numbers, "median": median, "q1": q1, "q3": q3, "iqr": q3 - q1}
