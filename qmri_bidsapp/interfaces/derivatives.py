"""Nodes that put results into the output folder, and note in the record what they made.

They always run: what is already there and unchanged is left untouched, what was deleted by hand comes back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from qmri_bidsapp.interfaces.preprocess import defined


class _SaveInputSpec(BaseInterfaceInputSpec):
    out_dir = traits.Str(mandatory=True, desc="output folder")
    record = traits.Dict(mandatory=True, desc="what the report needs to know; completed by the node")
    record_file = traits.Str(mandatory=True, desc="where the record of this step goes")


class _SaveImagesInputSpec(_SaveInputSpec):
    in_files = InputMultiObject(File(exists=True), mandatory=True, desc="images to save")
    names = traits.List(traits.Str, mandatory=True, desc="their names, relative to out_dir")
    sidecars = traits.List(traits.Dict, mandatory=True, desc="their sidecars")
    notes = traits.List(traits.Str, desc="what was left out or taken for granted, with its reason")


class _RecordOutputSpec(TraitedSpec):
    record_file = traits.Str(desc="the record that was written")


class SaveImages(SimpleInterface):
    """Save images under their BIDS names."""

    input_spec = _SaveImagesInputSpec
    output_spec = _RecordOutputSpec
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        _save_all(self.inputs.in_files, self.inputs.names, self.inputs.sidecars, self.inputs.out_dir)
        notes = [*self.inputs.record["notes"], *(defined(self.inputs.notes) or [])]
        self._results["record_file"] = _write_record({**self.inputs.record, "notes": notes}, self.inputs.record_file)
        return runtime


class _SaveSeriesInputSpec(_SaveInputSpec):
    preproc = File(exists=True, mandatory=True, desc="preprocessed 4-D series")
    preproc_names = traits.List(traits.Str, mandatory=True, desc="one name, or one per volume")
    preproc_sidecars = traits.List(traits.Dict, mandatory=True)
    mask = File(exists=True, mandatory=True)
    dseg = File(exists=True, desc="tissues on the grid of the series")
    label_names = traits.List(traits.Str, mandatory=True, desc="names of the mask and of the tissues")
    label_sidecars = traits.List(traits.Dict, mandatory=True)
    notes = traits.List(traits.Str, desc="steps that were left out, with their reason")
    motion = traits.List(desc="(n_volumes, 6): rotation, radian, and translation, mm")
    b_value = traits.List(traits.Float, desc="(n_volumes,) s/mm2, of a diffusion series")
    direction = traits.List(desc="(n_volumes, 3), of a diffusion series")


class SaveSeries(SimpleInterface):
    """Save a preprocessed series, its mask, tissues and gradients."""

    input_spec = _SaveSeriesInputSpec
    output_spec = _RecordOutputSpec
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        inputs = self.inputs
        volumes = [inputs.preproc]
        if len(inputs.preproc_names) > 1:
            volumes = _split(inputs.preproc, len(inputs.preproc_names), Path(runtime.cwd))
        _save_all(volumes, inputs.preproc_names, inputs.preproc_sidecars, inputs.out_dir)
        labels = [inputs.mask] + ([inputs.dseg] if defined(inputs.dseg) else [])
        _save_all(labels, inputs.label_names[: len(labels)], inputs.label_sidecars[: len(labels)], inputs.out_dir)
        if defined(inputs.b_value):
            _save_gradients(inputs.preproc_names[0], inputs.b_value, inputs.direction, inputs.out_dir)
        record = {
            **inputs.record,
            "notes": [*inputs.record["notes"], *(defined(inputs.notes) or [])],
            "motion": defined(inputs.motion),
            "preproc": inputs.preproc_names[0],
            "mask": inputs.label_names[0],
            "tissues": inputs.label_names[1] if len(labels) > 1 else None,
        }
        self._results["record_file"] = _write_record(record, inputs.record_file)
        return runtime


class _SaveFitInputSpec(_SaveInputSpec):
    estimates = traits.List(File(exists=True), mandatory=True)
    stds = traits.List(File(exists=True), mandatory=True)
    posterior = traits.List(File(exists=True), desc="intervals and log evidence, see `Fit`")
    status = File(exists=True, mandatory=True)
    counts = traits.Dict(mandatory=True)
    seconds = traits.Float(mandatory=True)
    sidecars = traits.List(traits.Dict, mandatory=True, desc="of the estimates")
    std_sidecars = traits.List(traits.Dict, mandatory=True)
    posterior_sidecars = traits.List(traits.Dict, mandatory=True)
    status_sidecar = traits.Dict(mandatory=True)
    training = traits.Dict(desc="further fields of all sidecars of the maps; see `Fit`")
    obsolete = traits.List(traits.Str, desc="maps that were read from an earlier fit, to be removed")


class SaveFit(SimpleInterface):
    """Save the maps of a fit; their names are in the record."""

    input_spec = _SaveFitInputSpec
    output_spec = _RecordOutputSpec
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.bids.derivatives import save_table
        from qmri_bidsapp.core.maps import Status

        inputs, record = self.inputs, dict(self.inputs.record)
        training = defined(inputs.training) or {}
        _remove(inputs.obsolete, inputs.out_dir)
        for files, names, sidecars in (
            (inputs.estimates, [item["map"] for item in record["maps"]], inputs.sidecars),
            (inputs.stds, [item["std"] for item in record["maps"]], inputs.std_sidecars),
            (defined(inputs.posterior) or [], record["posterior"], inputs.posterior_sidecars),
        ):
            _save_all(files, names, [{**sidecar, **training} for sidecar in sidecars], inputs.out_dir)
        _save_all([inputs.status], [record["status"]], [inputs.status_sidecar], inputs.out_dir)
        table = [{"index": int(status), "name": status.name} for status in Status]
        save_table(table, inputs.out_dir, record["status"].replace(".nii.gz", ".tsv"))
        record.update(status_counts=inputs.counts, seconds=inputs.seconds, training=training)
        self._results["record_file"] = _write_record(record, inputs.record_file)
        return runtime


class _SaveTruthInputSpec(_SaveInputSpec):
    maps = traits.List(File(exists=True), mandatory=True, desc="see `ReadTruth`; likewise the next seven")
    trust = traits.Str(mandatory=True)
    counts = traits.Dict(mandatory=True)
    wide_counts = traits.Dict(mandatory=True)
    flags = traits.List(File(exists=True), mandatory=True)
    flag_counts = traits.Dict(mandatory=True)
    noise_factor = traits.Float(mandatory=True)
    certificate = traits.Str(mandatory=True)
    sidecars = traits.List(traits.Dict, mandatory=True, desc="of the maps")
    trust_sidecar = traits.Dict(mandatory=True)
    flag_sidecars = traits.List(traits.Dict, mandatory=True)
    training = traits.Dict(desc="further fields of all sidecars; see `Fit`")


class SaveTruth(SimpleInterface):
    """Save what the certificate of an estimator says of its maps; apart from `SaveFit`, which never waits for it."""

    input_spec = _SaveTruthInputSpec
    output_spec = _RecordOutputSpec
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        inputs, record = self.inputs, dict(self.inputs.record)
        if inputs.certificate:
            record.update(self._save(), counts=inputs.counts, wide_counts=inputs.wide_counts)
            record.update(flag_counts=inputs.flag_counts, noise_factor=inputs.noise_factor)
        else:
            # Of an earlier run.
            old = [*(entry["map"] for entry in record["truths"]), record["trust"], record["flag"], record["p_value"]]
            _remove(old, inputs.out_dir)
            record = {name: record[name] for name in ("series", "model", "estimator")}
        self._results["record_file"] = _write_record(record, inputs.record_file)
        return runtime

    def _save(self) -> dict[str, str]:
        """Save certificate and maps; return the name of the former."""
        from qmri_bidsapp.bids.derivatives import save_json, save_table
        from qmri_bidsapp.uncertainty.inverse import Trust
        from qmri_bidsapp.uncertainty.ood import Reason

        inputs, record = self.inputs, self.inputs.record
        certificate = json.loads(Path(inputs.certificate).read_text(encoding="utf-8"))
        identity = certificate["identity"]
        name = f"logs/certificates/{identity['model']}-{identity['estimator']}-{certificate['key'][:16]}.json"
        save_json(certificate, inputs.out_dir, name)
        noise, spread = identity["noise"], identity["spread"]
        level = noise["snr"][0]
        fields = {
            **(defined(inputs.training) or {}),
            "Certificate": f"bids::{name}",
            "CertificatePrior": identity["prior"]["name"],
            "CertificateNoise": f"{noise['kind']}, signal-to-noise ratio {level / spread:.3g} to {level * spread:.3g}",
        }
        sidecars = [{**sidecar, **fields} for sidecar in inputs.sidecars]
        for entry, sidecar in zip(record["truths"], sidecars, strict=True):
            if entry["ending"] == "debiased" and entry["parameter"] in certificate["debiasing"]:
                sidecar["Debiasing"] = certificate["debiasing"][entry["parameter"]]
        _save_all(inputs.maps, [item["map"] for item in record["truths"]], sidecars, inputs.out_dir)
        _save_all([inputs.trust], [record["trust"]], [{**inputs.trust_sidecar, **fields}], inputs.out_dir)
        flag_sidecars = [{**sidecar, **fields} for sidecar in inputs.flag_sidecars]
        if inputs.noise_factor != 1:
            flag_sidecars = [{**sidecar, "NoiseFactor": inputs.noise_factor} for sidecar in flag_sidecars]
        _save_all(inputs.flags, [record["flag"], record["p_value"]], flag_sidecars, inputs.out_dir)
        for image, values in ((record["trust"], Trust), (record["flag"], Reason)):
            table = [{"index": int(value), "name": value.name} for value in values]
            save_table(table, inputs.out_dir, image.replace(".nii.gz", ".tsv"))
        return {"certificate": name}


def _remove(names: list[str], out_dir: str) -> None:
    """Remove images and what belongs to them, where there are any."""
    for name in names:
        for ending in (".nii.gz", ".json", ".tsv"):
            Path(out_dir, name.replace(".nii.gz", ending)).unlink(missing_ok=True)


def _save_all(files: list[str], names: list[str], sidecars: list[dict[str, Any]], out_dir: str) -> None:
    from qmri_bidsapp.bids.derivatives import save_image

    for source, name, sidecar in zip(files, names, sidecars, strict=True):
        save_image(source, out_dir, name, sidecar)


def _split(image_file: str, n_volumes: int, folder: Path) -> list[str]:
    """Write the volumes of a 4-D image as 3-D images."""
    from qmri_bidsapp.images.volumes import load_image, save_image

    image = load_image(image_file, ndim=4)
    return [str(save_image(image.slicer[..., i], folder / f"volume-{i:03d}.nii")) for i in range(n_volumes)]


def _save_gradients(image_name: str, b_value: list[float], direction: list[list[float]], out_dir: str) -> None:
    from qmri_bidsapp.bids.derivatives import save_text
    from qmri_bidsapp.images.gradients import format_gradients

    bval, bvec = format_gradients(np.asarray(b_value), np.asarray(direction))
    save_text(bval, out_dir, image_name.replace(".nii.gz", ".bval"))
    save_text(bvec, out_dir, image_name.replace(".nii.gz", ".bvec"))


def _write_record(record: dict[str, Any], record_file: str) -> str:
    path = Path(record_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1))
    return record_file
