"""Medians and interquartile ranges of every map, per subject and tissue."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError

from qmri_bidsapp.bids.derivatives import save_json, save_table
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.errors import NothingMatchedError

TISSUES = {"GM": 1, "WM": 2, "CSF": 3}
COLUMNS = {
    "participant_id": "Participant",
    "session": "Session, n/a where the data set has none",
    "series": "Series that the map was estimated from",
    "estimator": "Estimator",
    "tissue": "brain (whole mask), GM, WM or CSF",
    "n_voxels": "Voxels that count: status OK",
    "n_flagged": "Voxels of the tissue that do not count: another status",
    "median": "Median",
    "q1": "First quartile",
    "q3": "Third quartile",
    "iqr": "Interquartile range",
    "unit": "Unit of median, q1, q3 and iqr",
}


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
    """

    name: str
    description: str
    unit: str
    rows: list[dict[str, Any]] = field(default_factory=list)

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
    tables: dict[str, GroupTable] = {}
    warnings: list[str] = []
    for path in records:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            series = {item["name"]: item for item in record["series"]}
            for fit in record["fits"]:
                _add_fit(out_dir, record["subject"], series[fit["series"]], fit, tables, warnings)
        except (ValueError, KeyError) as error:
            warnings.append(f"{path.name} cannot be used ({type(error).__name__}: {error}): run the participant again.")
    for table in tables.values():
        save_table(table.rows, out_dir, table.file_name)
        columns = {name: {"Description": text} for name, text in COLUMNS.items()}
        columns["median"]["Description"] = f"Median of: {table.description}"
        for name in ("median", "q1", "q3", "iqr"):
            columns[name]["Units"] = table.unit
        save_json(columns, out_dir, table.file_name.replace(".tsv", ".json"))
    return [tables[name] for name in sorted(tables)], warnings


def _add_fit(
    out_dir: Path,
    subject: str,
    series: Mapping[str, Any],
    fit: Mapping[str, Any],
    tables: dict[str, GroupTable],
    warnings: list[str],
) -> None:
    """Add the rows of all maps of a fit."""
    try:
        status = _load(out_dir / fit["status"])
        tissues = _load(out_dir / series["tissues"]) if series["tissues"] else None
        maps = [(item, _load(out_dir / item["map"])) for item in fit["maps"]]
    except (OSError, EOFError, ImageFileError) as error:
        warnings.append(f"sub-{subject}, {fit['series']}, {fit['model']}: a map cannot be read ({error}).")
        return
    regions = {"brain": status != Status.OUTSIDE}
    if tissues is not None:
        regions |= {name: regions["brain"] & (tissues == label) for name, label in TISSUES.items()}
    for item, values in maps:
        name = _table_name(fit, item)
        table = tables.setdefault(name, GroupTable(name, item["description"], item["unit"]))
        for tissue, region in regions.items():
            row = {
                "participant_id": f"sub-{subject}",
                "session": series["entities"].get("ses"),
                "series": fit["series"],
                "estimator": fit["estimator"],
                "tissue": tissue,
            }
            table.rows.append({**row, **_statistics(values, region, status), "unit": item["unit"]})


def _table_name(fit: Mapping[str, Any], item: Mapping[str, Any]) -> str:
    """Return ``T1map`` for relaxometry, ``smt-intrafraction`` for diffusion; S0 is told apart by its model."""
    suffix = Path(item["map"]).name.split("_")[-1].split(".")[0]
    label = item["parameter"].replace("_", "")
    return f"{fit['model']}-{label}" if suffix in ("dwimap", "S0map") else suffix


def _load(path: Path) -> npt.NDArray[Any]:
    return np.asarray(nib.load(path).dataobj)


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
