"""The files of a comparison: true maps, regions and tissues beside the maps of a run."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError

from qmri_bidsapp.bids.record import FitRecord, SeriesRecord, SubjectRecord
from qmri_bidsapp.bids.record_files import read_record, record_files
from qmri_bidsapp.bids.result_names import TISSUE_LABELS
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.errors import InputError, InputMissingError, NotComparableError
from qmri_bidsapp.fitting.usable import unlike_voxels
from qmri_bidsapp.images.volumes import compare_grids

Mask = npt.NDArray[np.bool_]
Volume = npt.NDArray[Any]

#: Where a data set keeps its truth, below its folder.
TRUTH_FOLDER = Path("derivatives") / "truth"


def find_truth(out_dir: Path) -> Path:
    """Return the folder of true maps of the data set from which a run was made.

    Raises
    ------
    InputMissingError
        If the output folder does not name its data set, or that has no truth.
    """
    description = out_dir / "dataset_description.json"
    remedy = "name the folder of true maps with --truth"
    try:
        sources = json.loads(description.read_text(encoding="utf-8"))["SourceDatasets"]
        source = Path(unquote(urlparse(next(item["URL"] for item in sources)).path))
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise InputMissingError(
            f"{description} must name the data set of the maps in SourceDatasets, as an output folder of qmri-bids "
            f"does ({type(error).__name__}); check the folder, or {remedy}."
        ) from error
    if not (source / TRUTH_FOLDER).is_dir():
        raise InputMissingError(f"{out_dir} was made from {source}, which has no {TRUTH_FOLDER}; {remedy}.")
    return source / TRUTH_FOLDER


def read_records(out_dir: Path, truth_dir: Path, labels: tuple[str, ...] = ()) -> list[SubjectRecord]:
    """Return the records of the participants that have maps and truth: of these labels, or of all.

    Raises
    ------
    InputMissingError
        If there is no truth or no run, or a participant lacks either.
    """
    if not truth_dir.is_dir():
        raise InputMissingError(f"There is no folder {truth_dir} with true maps.")
    known = {path.name.removeprefix("sub-") for path in truth_dir.glob("sub-*") if path.is_dir()}
    records = [read_record(path) for path in record_files(out_dir)]
    run = {record.subject for record in records if record.fits}
    if not run:
        raise InputMissingError(f"{out_dir} holds no maps: it must be an output folder of qmri-bids participant.")
    wanted = set(labels) or known | run
    for found, what in ((known, f"true maps in {truth_dir}"), (run, f"maps in {out_dir}")):
        if missing := sorted(wanted - found):
            raise InputMissingError(
                f"sub-{missing[0]} has no {what}; there are those of {', '.join(f'sub-{x}' for x in sorted(found))}: "
                "name the participants that have both with --participant-label."
            )
    return [record for record in records if record.subject in wanted]


def true_map(truth_dir: Path, estimate: str) -> Path | None:
    """Return the true map for a map of the app: the same name without ``desc``; None if there is none."""
    path = truth_dir / re.sub(r"_desc-[0-9A-Za-z+]+", "", estimate)
    return path if path.is_file() else None


def regions_of(truth_dir: Path, estimate: str) -> dict[str, Path]:
    """Return the regions in the truth that differ from healthy tissue in this kind of data, by their label."""
    found = sorted((truth_dir / estimate).parent.glob("*_label-*_mask.nii.gz"))
    return {re.search(r"_label-([0-9A-Za-z+]+)", path.name)[1]: path for path in found}  # type: ignore[index]


def tissues_of(
    truth_dir: Path, out_dir: Path, subject: str, series: SeriesRecord, like: nib.Nifti1Image
) -> dict[str, Mask]:
    """Return grey matter, white matter and CSF on the grid of a map.

    They come from the truth where it has a segmentation on this grid, else from the app; without any there is one
    region, the brain.
    """
    names = sorted((truth_dir / f"sub-{subject}").rglob("*_dseg.nii.gz"))
    own = [path for path in names if on_grid(nib.load(path), like)]
    if series.tissues is not None:
        own.append(out_dir / series.tissues)
    if not own:
        return {"brain": np.ones(like.shape, dtype=bool)}
    labels = read(own[0], like)
    return {name: labels == label for name, label in TISSUE_LABELS.items()}


def fit_masks(out_dir: Path, record: SubjectRecord, fit: FitRecord) -> tuple[nib.Nifti1Image, Mask, Mask, Mask | None]:
    """Return the status map of a fit as an image, and which voxels were fitted, are usable and are flagged.

    Without a certificate there are no flags, None.
    """
    path, usable, truth = out_dir / fit.status, record.usable_of(fit), record.truth_of(fit)
    if usable is None or not path.is_file():
        raise InputMissingError(
            f"{path} or the mask of its usable voxels is missing: run participant sub-{record.subject} again."
        )
    like = nib.load(path)
    fitted, counted = read(path, like) != Status.OUTSIDE, read(out_dir / usable.mask, like) > 0
    if truth is None or truth.trust is None or truth.flag is None:
        return like, fitted, counted, None
    return like, fitted, counted, unlike_voxels(read(out_dir / truth.trust, like), read(out_dir / truth.flag, like))


def read(path: Path, like: nib.Nifti1Image) -> Volume:
    """Return an image on the grid of another one.

    Raises
    ------
    InputMissingError
        If the file does not exist.
    NotComparableError
        If it cannot be read, or has another grid.
    """
    if not path.is_file():
        raise InputMissingError(f"{path} is missing: run the participant again.")
    try:
        image = nib.load(path)
        values = np.asarray(image.dataobj)
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise NotComparableError(
            f"{path} cannot be read as an image ({error}); the file may be truncated: make it again."
        ) from error
    if not on_grid(image, like):
        raise NotComparableError(
            f"{path} has the shape {image.shape} or another position than {like.get_filename()} of shape "
            f"{like.shape}: truth and maps must share a grid; resample the truth to that of the series."
        )
    return values


def on_grid(image: nib.Nifti1Image, like: nib.Nifti1Image) -> bool:
    """Return whether two images have one shape and their voxels the same places, up to rounding."""
    if image.shape != like.shape:
        return False
    try:
        compare_grids(image.get_filename(), image.affine, like.get_filename(), like.affine, like.shape)
    except InputError:
        return False
    return True
