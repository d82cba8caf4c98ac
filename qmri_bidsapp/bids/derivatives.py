"""Names, sidecars and files of the output data set. Every file appears whole or not at all."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qmri_bidsapp.artifacts.atomic import atomic_file
from qmri_bidsapp.errors import OutputError

BIDS_VERSION = "1.10.0"
#: Entities in the order in which BIDS puts them into names; ``model`` and ``param`` as proposed by BEP016.
ENTITY_ORDER = (
    "sub",
    "ses",
    "sample",
    "acq",
    "ce",
    "rec",
    "dir",
    "run",
    "echo",
    "flip",
    "inv",
    "mt",
    "part",
    "space",
    "chunk",
    "model",
    "param",
)
LATE_ENTITIES = ("res", "label", "desc")
#: What the validator does not know, or is not part of the data set.
BIDSIGNORE = (
    "figures",
    "logs",
    "motion",
    "*_desc-preproc_dwi.bv*",
    "*.html",
    "*_dwimap.*",
    "*_fieldmap.*",
    "*_IEmap.*",
    "*_logevidence.*",
    "*_pvalue.*",
    "*_model-*",
    "group_*",
)
DESCRIPTIONS = {
    "preproc": "Preprocessed images",
    "brain": "Brain mask",
    "motion": "Distribution of the motion score of the T1w",
    "tissue": "Tissue segmentation brought to the grid of the series",
}
GZIP_LEVEL = 5


def relative_path(
    subject: str,
    entities: Mapping[str, str],
    *,
    datatype: str,
    suffix: str,
    extension: str = ".nii.gz",
    extra: Mapping[str, str] | None = None,
) -> str:
    """Return the path of a derivative, relative to the output folder.

    Parameters
    ----------
    subject : str
        Label, without ``sub-``.
    entities : mapping
        BIDS keys and labels of the series.
    datatype, suffix, extension : str
        ``"anat"``, ``"T1map"``, ``".nii.gz"``.
    extra : mapping, optional
        Further entities, such as ``desc``.

    Raises
    ------
    ValueError
        If an entity is not known or a label holds other than letters, digits and ``+``.
    """
    given = {"sub": subject, **entities, **(extra or {})}
    order = (*ENTITY_ORDER, *LATE_ENTITIES)
    unknown = sorted(set(given) - set(order))
    if unknown:
        raise ValueError(f"Unknown entities {unknown}; known: {', '.join(order)}.")
    for key, label in given.items():
        if not re.fullmatch(r"[0-9a-zA-Z+]+", label):
            raise ValueError(f"The label of {key} must hold only letters, digits and +, got {label!r}.")
    name = "_".join([*(f"{key}-{given[key]}" for key in order if key in given), suffix])
    session = [f"ses-{given['ses']}"] if "ses" in given else []
    return "/".join([f"sub-{subject}", *session, datatype, name + extension])


def bids_uri(path: str | Path, root: str | Path, dataset: str = "raw") -> str:
    """Return the BIDS URI of a file of a data set that ``DatasetLinks`` names."""
    return f"bids:{dataset}:{Path(path).relative_to(root).as_posix()}"


def _write(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it; leave an unchanged file untouched."""
    try:
        if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
            return
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}); check space and permissions."
        ) from error


def save_image(source: str | Path, out_dir: str | Path, relative: str, sidecar: Mapping[str, Any]) -> str:
    """Copy an image to its place, compressed, with its sidecar.

    Parameters
    ----------
    source : path
        ``.nii`` or ``.nii.gz``.
    out_dir : path
    relative : str
        From `relative_path`, ending in ``.nii.gz``.
    sidecar : mapping
        Written as JSON; NaN becomes null.
    """
    content = Path(source).read_bytes()
    if str(source).endswith(".gz"):
        content = gzip.decompress(content)
    # No time stamp: the same image gives the same bytes.
    _write(Path(out_dir) / relative, gzip.compress(content, GZIP_LEVEL, mtime=0))
    save_json(sidecar, out_dir, relative.replace(".nii.gz", ".json"))
    return relative


def save_text(text: str, out_dir: str | Path, relative: str) -> str:
    """Write a text file."""
    _write(Path(out_dir) / relative, text.encode())
    return relative


def save_json(data: Mapping[str, Any], out_dir: str | Path, relative: str) -> str:
    """Write a JSON file; NaN and infinity become null."""
    return save_text(json_text(data), out_dir, relative)


def json_text(data: Mapping[str, Any]) -> str:
    """Return JSON; NaN and infinity become null."""
    return json.dumps(_plain(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def save_table(
    rows: Sequence[Mapping[str, Any]], out_dir: str | Path, relative: str, columns: Sequence[str] | None = None
) -> str:
    """Write a TSV of these columns (default: those of the first row); missing values are ``n/a``."""
    return save_text(table_text(rows, columns), out_dir, relative)


def table_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Return a TSV of these columns (default: those of the first row); missing values are ``n/a``."""
    if columns is None:
        columns = list(rows[0]) if rows else []
    lines = ["\t".join(columns)]
    lines += ["\t".join(_cell(row.get(column)) for column in columns) for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "n/a"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def check_output_dir(out_dir: Path, bids_dir: Path) -> None:
    """Make the output folder and see that it can be written.

    Raises
    ------
    OutputError
        If it cannot, or if it is the input folder or a folder that holds it.
    """
    resolved, source = out_dir.resolve(), bids_dir.resolve()
    if resolved == source or resolved in source.parents:
        raise OutputError(f"The output folder {out_dir} would mix with the input {bids_dir}; choose another one.")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out_dir).close()
    except OSError as error:
        raise OutputError(f"The output folder {out_dir} cannot be written ({error.strerror or error}).") from error


def write_dataset_files(
    out_dir: Path, bids_dir: Path, *, version: str, source: Mapping[str, Any], descriptions: Mapping[str, str]
) -> None:
    """Write ``dataset_description.json``, ``.bidsignore``, ``descriptions.tsv`` and ``README``.

    Parameters
    ----------
    out_dir, bids_dir : Path
    version : str
        Of this program.
    source : mapping
        Description of the input data set.
    descriptions : mapping
        Labels of ``desc`` beyond `DESCRIPTIONS`, with their meaning.
    """
    generated: dict[str, Any] = {"Name": "qmri_bidsapp", "Version": version}
    container = os.environ.get("QMRI_CONTAINER_TAG")
    if container:
        generated["Container"] = {"Type": os.environ.get("QMRI_CONTAINER_TYPE", "docker"), "Tag": container}
    location = bids_dir.resolve().as_uri()
    origin: dict[str, Any] = {"URL": location}
    if source.get("DatasetDOI"):
        origin["DOI"] = source["DatasetDOI"]
    description = {
        "Name": f"Quantitative maps of: {source.get('Name', bids_dir.name)}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [generated],
        "SourceDatasets": [origin],
        "DatasetLinks": {"raw": location},
    }
    save_json(description, out_dir, "dataset_description.json")
    save_text("\n".join(BIDSIGNORE) + "\n", out_dir, ".bidsignore")
    rows = [{"desc_id": f"desc-{key}", "description": text} for key, text in {**DESCRIPTIONS, **descriptions}.items()]
    save_table(rows, out_dir, "descriptions.tsv")
    save_text(
        "Quantitative maps made by qmri_bidsapp.\n\nOpen sub-<label>.html for the report of a subject. Maps are in "
        "BIDS units (s, mm2/s, 1/s); each has a\nstandard deviation (desc-<estimator>std) and each fit a status map "
        "(desc-<...>status_dseg). How far\na value can be trusted: desc-<estimator>bias, the range of the truth "
        "(truthlow, truthhigh) and\ndesc-<...>trust_dseg. Voxels that differ from all simulated ones: "
        "desc-<...>flag_dseg. Voxels that\ncount in tables: desc-<...>usable_mask. descriptions.tsv explains all "
        "labels.\n",
        out_dir,
        "README",
    )
