"""Saving of results: images under their names in the output folder, with their sidecars."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.bids.derivatives import save_image, save_json, save_table, save_text
from qmri_bidsapp.bids.record import FitRecord, TruthRecord
from qmri_bidsapp.bids.result_names import companion

Sidecar = Mapping[str, Any]


@dataclass(frozen=True)
class FitSidecars:
    """Sidecars of the files of a fit, in the order of `FitRecord.maps` and `FitRecord.posterior_files`."""

    estimates: Sequence[Sidecar]
    stds: Sequence[Sidecar]
    posterior: Sequence[Sidecar]
    status: Sidecar


@dataclass(frozen=True)
class TruthSidecars:
    """Sidecars of the certificate maps of a fit; `maps` in the order of `TruthRecord.map_files`."""

    maps: Sequence[Sidecar]
    trust: Sidecar
    flag: Sidecar
    p_value: Sidecar


def save_images(files: Sequence[str], names: Sequence[str], sidecars: Sequence[Sidecar], out_dir: str) -> None:
    """Save images under names relative to the output folder; unchanged files keep their time stamp."""
    for source, name, sidecar in zip(files, names, sidecars, strict=True):
        save_image(source, out_dir, name, sidecar)


def save_volumes(
    image_file: str, names: Sequence[str], sidecars: Sequence[Sidecar], out_dir: str, scratch: Path
) -> None:
    """Save a 4-D image under one name, or its volumes under one name each."""
    from qmri_bidsapp.images.volumes import load_image
    from qmri_bidsapp.images.volumes import save_image as write_image

    files = [image_file]
    if len(names) > 1:
        image = load_image(image_file, ndim=4)
        files = [str(write_image(image.slicer[..., k], scratch / f"volume-{k:03d}.nii")) for k in range(len(names))]
    save_images(files, names, sidecars, out_dir)


def save_gradients(
    image_name: str, b_value: npt.NDArray[np.float64], direction: npt.NDArray[np.float64], out_dir: str
) -> None:
    """Save the gradient table beside a diffusion series: (n_volumes,) s/mm2 and (n_volumes, 3) unit vectors."""
    from qmri_bidsapp.images.gradients import format_gradients

    bval, bvec = format_gradients(b_value, direction)
    save_text(bval, out_dir, companion(image_name, ".bval"))
    save_text(bvec, out_dir, companion(image_name, ".bvec"))


def save_fit(
    record: FitRecord,
    sidecars: FitSidecars,
    *,
    estimates: Sequence[str],
    stds: Sequence[str],
    posterior: Sequence[str],
    status: str,
    out_dir: str,
) -> None:
    """Save the maps of a fit, its status map and the meaning of the status values.

    Parameters
    ----------
    record : FitRecord
        Names of the maps. ``training`` is added to all sidecars but that of the status.
    sidecars : FitSidecars
    estimates, stds, posterior : sequences of str
        Files, in the order of the record.
    status : str
        File.
    out_dir : str
    """
    from qmri_bidsapp.core.maps import Status

    for files, names, own in (
        (estimates, [item.estimate for item in record.maps], sidecars.estimates),
        (stds, [item.std for item in record.maps], sidecars.stds),
        (posterior, record.posterior_files, sidecars.posterior),
    ):
        save_images(files, names, [{**sidecar, **record.training} for sidecar in own], out_dir)
    _save_labels(status, record.status, sidecars.status, Status, out_dir)


def save_truth(
    record: TruthRecord,
    sidecars: TruthSidecars,
    *,
    maps: Sequence[str],
    trust: str,
    flags: Sequence[str],
    certificate: str,
    training: Mapping[str, Any],
    out_dir: str,
) -> TruthRecord:
    """Save the certificate of a fit and the maps that follow from it; return the record with its name.

    Without a certificate, remove the maps of an earlier run instead.

    Parameters
    ----------
    record : TruthRecord
        Names of the maps, counts and noise factor.
    sidecars : TruthSidecars
    maps : sequence of str
        Files, in the order of `TruthRecord.map_files`.
    trust : str
        File.
    flags : sequence of str
        Files of reasons and of p-values.
    certificate : str
        File of the summary of the certificate; empty without a certificate.
    training : mapping
        Fields about a learned estimator, added to all sidecars.
    out_dir : str
    """
    from qmri_bidsapp.uncertainty.inverse import Trust
    from qmri_bidsapp.uncertainty.ood import Reason

    if not certificate:
        remove_images(record.files, out_dir)
        return TruthRecord(record.series, record.model, record.estimator)
    assert record.trust is not None
    assert record.flag is not None
    assert record.p_value is not None
    summary = json.loads(Path(certificate).read_text(encoding="utf-8"))
    identity = summary["identity"]
    name = f"logs/certificates/{identity['model']}-{identity['estimator']}-{summary['key'][:16]}.json"
    save_json(summary, out_dir, name)
    fields = {**training, **_certificate_fields(summary, name)}
    entries, own = record.map_files(), [{**sidecar, **fields} for sidecar in sidecars.maps]
    for (what, parameter, _), sidecar in zip(entries, own, strict=True):
        if what == "debiased" and parameter in summary["debiasing"]:
            sidecar["Debiasing"] = summary["debiasing"][parameter]
    save_images(maps, [file for *_, file in entries], own, out_dir)
    _save_labels(trust, record.trust, {**sidecars.trust, **fields}, Trust, out_dir)
    if record.noise_factor != 1:
        fields["NoiseFactor"] = record.noise_factor
    _save_labels(flags[0], record.flag, {**sidecars.flag, **fields}, Reason, out_dir)
    save_image(flags[1], out_dir, record.p_value, {**sidecars.p_value, **fields})
    return replace(record, certificate=name)


def _certificate_fields(summary: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the sidecar fields that identify the certificate of a map."""
    identity = summary["identity"]
    noise, spread = identity["noise"], identity["spread"]
    level = noise["snr"][0]
    return {
        "Certificate": f"bids::{name}",
        "CertificatePrior": identity["prior"]["name"],
        "CertificateNoise": f"{noise['kind']}, signal-to-noise ratio {level / spread:.3g} to {level * spread:.3g}",
    }


def _save_labels(source: str, name: str, sidecar: Sidecar, values: type[IntEnum], out_dir: str) -> None:
    """Save a map of labels with the table of their names."""
    save_image(source, out_dir, name, sidecar)
    table = [{"index": int(value), "name": value.name} for value in values]
    save_table(table, out_dir, companion(name, ".tsv"))


def remove_images(names: Sequence[str], out_dir: str) -> None:
    """Remove images that an earlier run may have left, with their sidecars and tables."""
    for name in names:
        for extension in (".nii.gz", ".json", ".tsv"):
            Path(out_dir, companion(name, extension)).unlink(missing_ok=True)
