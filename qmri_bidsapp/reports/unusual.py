"""Unusual regions of white matter in the report: which map, where, how large and by how much."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from qmri_bidsapp.bids.record import FitRecord, MapRecord, SubjectRecord
from qmri_bidsapp.bids.result_names import TISSUE_LABELS
from qmri_bidsapp.errors import InputError
from qmri_bidsapp.fitting.unusual import FALSE_ALARMS, Region, Scan, find_unusual
from qmri_bidsapp.reports.tables import notes, table
from qmri_bidsapp.units import to_display

#: Maps that are searched: one for each property of tissue. Others are functions of these (rates, axial and radial
#: values), depend on the scanner (amplitudes), or on the direction of fibres (angles, elements of tensors).
SEARCHED = ("t1", "t2", "t2star", "fa", "md", "mk", "intra_fraction", "diffusivity", "ndi", "odi", "fwf")
HEADER = ("Map", "Voxels", "Centre x, y, z (world mm)", "From the centre of the head", "Mean", "Difference", "z", "p")


def unusual_text(out_dir: Path, record: SubjectRecord) -> tuple[str, list[str]]:
    """Return the unusual regions of all maps of a participant, and why maps were not searched.

    Returns
    -------
    str
        HTML; empty if the participant has no map that is searched.
    list of str
        One sentence per region, for the summary.
    """
    searched = list(_searched(record))
    if not searched:
        return "", []
    rows: list[tuple[str, ...]] = []
    left_out: dict[str, list[str]] = {}
    for fit, item in searched:
        name = f"{fit.series}, {fit.model_title}: {item.description}"
        found = _scan(out_dir, record, fit, item, len(searched))
        rows += [(name, *_cells(region, item.unit)) for region in found.regions]
        if found.left_out:
            left_out.setdefault(found.left_out, []).append(f"{fit.series} {fit.model} {item.parameter}")
    about = (
        "Regions of white matter whose mean differs from that of the white matter around them, although each voxel may "
        f"look ordinary. Rate of false alarms, over all maps of a head: {FALSE_ALARMS:.0%} of heads, checked on "
        "simulated ones. A region is a place to look at, not a diagnosis."
    )
    text = f"<p class='elem-desc'>{about}</p>"
    text += notes([f"Not searched: {', '.join(names)}: {reason}." for reason, names in left_out.items()])
    if rows:
        return text + table(HEADER, rows), [_sentence(row) for row in rows]
    n_left_out = sum(len(names) for names in left_out.values())
    return text + (notes(["No region is unusual."]) if n_left_out < len(searched) else ""), []


def _scan(out_dir: Path, record: SubjectRecord, fit: FitRecord, item: MapRecord, n_maps: int) -> Scan:
    tissues, usable = record.series_of(fit).tissues, record.usable_of(fit)
    if tissues is None:
        return Scan(left_out="there is no segmentation of tissues, which needs a T1w")
    if usable is None:
        return Scan(left_out="the run stopped before the usable voxels were known")
    files = [out_dir / file for file in (item.estimate, item.std, usable.mask, tissues)]
    if missing := [file.name for file in files if not file.is_file()]:
        return Scan(left_out=f"not in the output folder: {', '.join(missing)}")
    images = [nib.load(file) for file in files]
    values, std, mask, labels = (np.asarray(image.dataobj) for image in images)
    try:
        return find_unusual(values, std, mask > 0, labels, images[0].affine, label=TISSUE_LABELS["WM"], n_maps=n_maps)
    except InputError as error:
        return Scan(left_out=str(error).rstrip("."))


def _searched(record: SubjectRecord) -> Iterator[tuple[FitRecord, MapRecord]]:
    for fit in record.fits:
        for item in fit.maps:
            if item.parameter in SEARCHED:
                yield fit, item


def _sentence(row: tuple[str, ...]) -> str:
    name, n_voxels, centre, place, _, difference, _, p_value = row
    return (
        f"{name}: unusual region of {n_voxels} voxels of white matter around ({centre}) mm, {place}: {difference} "
        f"against the white matter around it (p = {p_value})."
    )


def _cells(region: Region, unit: str) -> tuple[str, ...]:
    name, factor = to_display(unit)
    cluster = region.cluster
    return (
        f"{cluster.n_voxels:,}",
        ", ".join(f"{value:.0f}" for value in cluster.centre),
        cluster.place,
        f"{region.value * factor:.3g} {name}".strip(),
        f"{region.difference * factor:+.2g} {name}".strip(),
        f"{region.z:+.1f}",
        f"{region.p_value:.1g}",
    )
