"""Nodes that save results into the output folder and add them to the record.

They always run: unchanged files are left untouched, deleted files are restored.
"""

from __future__ import annotations

from dataclasses import replace
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

from qmri_bidsapp.bids.record import (
    FitRecord,
    MotionScoreRecord,
    OrientationRecord,
    SeriesRecord,
    TruthRecord,
    score_values,
)
from qmri_bidsapp.bids.record_files import write_step
from qmri_bidsapp.bids.save_results import (
    FitSidecars,
    TruthSidecars,
    remove_images,
    save_fit,
    save_gradients,
    save_images,
    save_truth,
    save_volumes,
)
from qmri_bidsapp.bids.usable_record import UsableRecord
from qmri_bidsapp.interfaces.preprocess import defined


class _SaveInputSpec(BaseInterfaceInputSpec):
    out_dir = traits.Str(mandatory=True, desc="output folder")
    record_file = traits.Str(mandatory=True, desc="file for this step's part of the record")


class _RecordOutputSpec(TraitedSpec):
    record_file = traits.Str(desc="the part of the record that was written")


class _SaveImagesInputSpec(_SaveInputSpec):
    record = traits.Either(traits.Instance(SeriesRecord), traits.Instance(OrientationRecord), mandatory=True)
    in_files = InputMultiObject(File(exists=True), mandatory=True, desc="images to save")
    names = traits.List(traits.Str, mandatory=True, desc="their names, relative to out_dir")
    sidecars = traits.List(traits.Dict, mandatory=True, desc="their sidecars")
    notes = traits.List(traits.Str, desc="steps that were left out and assumptions, with their reason")


class SaveImages(SimpleInterface):
    """Save images under their BIDS names."""

    input_spec = _SaveImagesInputSpec
    output_spec = _RecordOutputSpec
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        inputs = self.inputs
        save_images(inputs.in_files, inputs.names, inputs.sidecars, inputs.out_dir)
        record = replace(inputs.record, notes=(*inputs.record.notes, *(defined(inputs.notes) or ())))
        self._results["record_file"] = write_step(record, inputs.record_file)
        return runtime


class _SaveSeriesInputSpec(_SaveInputSpec):
    record = traits.Instance(SeriesRecord, mandatory=True, desc="the series before processing")
    preproc = File(exists=True, mandatory=True, desc="preprocessed 4-D series")
    preproc_names = traits.List(traits.Str, mandatory=True, desc="one name, or one per volume")
    preproc_sidecars = traits.List(traits.Dict, mandatory=True)
    mask = File(exists=True, mandatory=True)
    dseg = File(exists=True, desc="tissues on the grid of the series")
    label_names = traits.List(traits.Str, mandatory=True, desc="names of the mask and of the tissues")
    label_sidecars = traits.List(traits.Dict, mandatory=True)
    notes = traits.List(traits.Str, desc="steps that were left out, with their reason")
    steps = traits.List(traits.Str, desc="what was done to the images, for their sidecars")
    motion = traits.List(desc="head motion, (n_volumes, 6): rotation, rad, and translation, mm")
    b_value = traits.List(traits.Float, desc="(n_volumes,) s/mm2, of a diffusion series")
    direction = traits.List(desc="(n_volumes, 3), of a diffusion series")
    field = File(exists=True, desc="3-D field that corrected the distortion of a diffusion series")
    displacement = File(exists=True, desc="3-D displacement by it")
    field_names = traits.List(traits.Str, desc="names of both")
    field_sidecars = traits.List(traits.Dict)


class SaveSeries(SimpleInterface):
    """Save a preprocessed series, its mask, tissues and gradients."""

    input_spec = _SaveSeriesInputSpec
    output_spec = _RecordOutputSpec
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        inputs, out_dir = self.inputs, self.inputs.out_dir
        steps = {"PreprocessingSteps": list(inputs.steps)}
        sidecars = [{**sidecar, **steps} for sidecar in inputs.preproc_sidecars]
        save_volumes(inputs.preproc, inputs.preproc_names, sidecars, out_dir, Path(runtime.cwd))
        labels = [inputs.mask] + ([inputs.dseg] if defined(inputs.dseg) else [])
        names = inputs.label_names[: len(labels)]
        save_images(labels, names, inputs.label_sidecars[: len(labels)], out_dir)
        if defined(inputs.field):
            save_images([inputs.field, inputs.displacement], inputs.field_names, inputs.field_sidecars, out_dir)
        if defined(inputs.b_value):
            save_gradients(inputs.preproc_names[0], np.array(inputs.b_value), np.array(inputs.direction), out_dir)
        record = replace(
            inputs.record,
            notes=(*inputs.record.notes, *(defined(inputs.notes) or ())),
            head_motion=tuple(map(tuple, inputs.motion)) if defined(inputs.motion) else None,
            preproc=inputs.preproc_names[0],
            mask=names[0],
            tissues=names[1] if len(names) > 1 else None,
        )
        self._results["record_file"] = write_step(record, inputs.record_file)
        return runtime


class _SaveFitInputSpec(_SaveInputSpec):
    record = traits.Instance(FitRecord, mandatory=True, desc="the fit before it runs, with the names of its files")
    sidecars = traits.Instance(FitSidecars, mandatory=True)
    estimates = traits.List(File(exists=True), mandatory=True)
    stds = traits.List(File(exists=True), mandatory=True)
    posterior = traits.List(File(exists=True), desc="intervals and log evidence, see `Fit`")
    status = File(exists=True, mandatory=True)
    counts = traits.Dict(mandatory=True)
    seconds = traits.Float(mandatory=True)
    training = traits.Dict(desc="further fields of all sidecars of the maps; see `Fit`")
    obsolete = traits.List(traits.Str, desc="images that an earlier run may have left and this run does not write")


class SaveFit(SimpleInterface):
    """Save the maps of a fit; their names are in the record."""

    input_spec = _SaveFitInputSpec
    output_spec = _RecordOutputSpec
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        inputs = self.inputs
        record = replace(
            inputs.record,
            status_counts=dict(inputs.counts),
            seconds=inputs.seconds,
            training=dict(defined(inputs.training) or {}),
        )
        remove_images(defined(inputs.obsolete) or [], inputs.out_dir)
        save_fit(
            record,
            inputs.sidecars,
            estimates=inputs.estimates,
            stds=inputs.stds,
            posterior=defined(inputs.posterior) or [],
            status=inputs.status,
            out_dir=inputs.out_dir,
        )
        self._results["record_file"] = write_step(record, inputs.record_file)
        return runtime


class _SaveTruthInputSpec(_SaveInputSpec):
    record = traits.Instance(
        TruthRecord, mandatory=True, desc="names of all files, written only if there is a certificate"
    )
    sidecars = traits.Instance(TruthSidecars, mandatory=True)
    maps = traits.List(File(exists=True), mandatory=True, desc="see `ReadTruth`; likewise the next seven")
    trust = traits.Str(mandatory=True)
    counts = traits.Dict(mandatory=True)
    wide_counts = traits.Dict(mandatory=True)
    flags = traits.List(File(exists=True), mandatory=True)
    flag_counts = traits.Dict(mandatory=True)
    noise_factor = traits.Float(mandatory=True)
    certificate = traits.Str(mandatory=True)
    training = traits.Dict(desc="further fields of all sidecars; see `Fit`")


class SaveTruth(SimpleInterface):
    """Save the certificate maps of a fit; a node of its own, so that `SaveFit` does not wait for the certificate."""

    input_spec = _SaveTruthInputSpec
    output_spec = _RecordOutputSpec
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        inputs = self.inputs
        record = save_truth(
            replace(
                inputs.record,
                counts=dict(inputs.counts),
                wide_counts=dict(inputs.wide_counts),
                flag_counts=dict(inputs.flag_counts),
                noise_factor=inputs.noise_factor,
            ),
            inputs.sidecars,
            maps=inputs.maps,
            trust=inputs.trust,
            flags=inputs.flags,
            certificate=inputs.certificate,
            training=defined(inputs.training) or {},
            out_dir=inputs.out_dir,
        )
        self._results["record_file"] = write_step(record, inputs.record_file)
        return runtime


class _SaveUsableInputSpec(_SaveInputSpec):
    record = traits.Instance(UsableRecord, mandatory=True, desc="the fit, with the name of the mask")
    sidecar = traits.Dict(mandatory=True)
    status = File(exists=True, mandatory=True, desc="of `Fit`")
    trust = traits.Str("", usedefault=True, desc="of `ReadTruth`; empty without a certificate, likewise the next")
    flags = traits.List(traits.Str, desc="reasons, then p-values")


class SaveUsable(SimpleInterface):
    """Find the usable voxels of a fit, and save their mask."""

    input_spec = _SaveUsableInputSpec
    output_spec = _RecordOutputSpec
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.core.maps import Status
        from qmri_bidsapp.fitting.clusters import Clusters, find_clusters
        from qmri_bidsapp.fitting.usable import definition, unlike_voxels, usable_voxels
        from qmri_bidsapp.images.volumes import load_image, make_image, save_image

        inputs = self.inputs
        image = load_image(inputs.status, ndim=3)
        files = [inputs.trust, *inputs.flags[:1]] if inputs.trust else []
        status, *labels = (np.asarray(load_image(file, ndim=3).dataobj, np.uint8) for file in (inputs.status, *files))
        usable = usable_voxels(status, *labels)
        mask = save_image(make_image(usable, image), Path(runtime.cwd) / "usable.nii")
        text = f"{inputs.sidecar['Description']}: 1 where {definition(has_certificate=bool(labels))}"
        save_images([mask], [inputs.record.mask], [{**inputs.sidecar, "Description": text}], inputs.out_dir)
        inside = status != Status.OUTSIDE
        unlike = unlike_voxels(*labels) if labels else None
        record = replace(
            inputs.record,
            n_voxels=int(inside.sum()),
            n_usable=int(usable.sum()),
            n_unlike=None if unlike is None else int(unlike.sum()),
            clusters=Clusters() if unlike is None else find_clusters(unlike, inside, image.affine),
        )
        self._results["record_file"] = write_step(record, inputs.record_file)
        return runtime


class _SaveScoreInputSpec(_SaveInputSpec):
    record = traits.Instance(MotionScoreRecord, mandatory=True, desc="the T1w and what scores it")
    found = traits.Dict(mandatory=True, desc="of `ScoreMotion`")
    sidecar = traits.Dict(mandatory=True, desc="further fields of the file")


class SaveMotionScore(SimpleInterface):
    """Save the distribution of a motion score."""

    input_spec = _SaveScoreInputSpec
    output_spec = _RecordOutputSpec
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.bids.derivatives import save_json
        from qmri_bidsapp.bids.scans_table import distribution_file
        from qmri_bidsapp.motion.scorer import MotionScore

        inputs, found = self.inputs, dict(self.inputs.found)
        content = {**inputs.sidecar, **distribution_file(found, MotionScore.bins())}
        save_json(content, inputs.out_dir, inputs.record.distribution)
        record = replace(
            inputs.record,
            score=score_values(found),
            refusal=found.get("refusal", ""),
            warnings=tuple(found.get("warnings", ())),
        )
        self._results["record_file"] = write_step(record, inputs.record_file)
        return runtime
