"""Nodes of preprocessing: each loads images, calls one pure function of `preprocess` and saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)


class _Node(SimpleInterface):
    """A simple interface that saves images into the node's working folder."""

    def _save(self, image: Any, name: str, runtime: Any) -> str:
        from qmri_bidsapp.images.volumes import save_image

        return str(save_image(image, Path(runtime.cwd) / name))


class _ImportInputSpec(BaseInterfaceInputSpec):
    in_files = InputMultiObject(File(exists=True), mandatory=True, desc="one image, or the images of a series in order")
    ndim = traits.Enum(3, 4, mandatory=True, desc="number of dimensions that the images must have")


class _ImageOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="uncompressed float32 image")


class ImportImages(_Node):
    """Check the input images and write them as one uncompressed float32 file that can be memory mapped."""

    input_spec = _ImportInputSpec
    output_spec = _ImageOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.images.volumes import load_image, merge_series

        files = self.inputs.in_files
        image = merge_series(files) if len(files) > 1 else load_image(files[0], ndim=self.inputs.ndim)
        self._results["out_file"] = self._save(image, "imported.nii", runtime)
        return runtime


class _PolarityInputSpec(BaseInterfaceInputSpec):
    in_files = InputMultiObject(File(exists=True), mandatory=True, desc="magnitudes or real parts, by inversion time")
    complement = InputMultiObject(File(exists=True), mandatory=True, desc="phases or imaginary parts, in this order")
    part = traits.Enum("phase", "imag", mandatory=True, desc="what the complement is")
    unit = traits.Str(desc="Units of the phase")


class _PolarityOutputSpec(_ImageOutputSpec):
    notes = traits.List(traits.Str)


class RestorePolarity(_Node):
    """Inversion-recovery images with their sign, as one uncompressed float32 file."""

    input_spec = _PolarityInputSpec
    output_spec = _PolarityOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.images.volumes import merge_series
        from qmri_bidsapp.preprocess.polarity import signed_series

        may_be_zero = self.inputs.part == "imag"
        first = merge_series(self.inputs.in_files, may_be_zero=may_be_zero)
        second = merge_series(self.inputs.complement, may_be_zero=True)
        image, note = signed_series(first, second, self.inputs.part, defined(self.inputs.unit))
        self._results["out_file"] = self._save(image, "signed.nii", runtime)
        self._results["notes"] = [note] if note else []
        return runtime


class _ImageInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True)


class CorrectBias(_Node):
    """N4 bias-field correction."""

    input_spec = _ImageInputSpec
    output_spec = _ImageOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.images.volumes import load_image
        from qmri_bidsapp.preprocess.anat import correct_bias

        image = correct_bias(load_image(self.inputs.in_file, ndim=3))
        self._results["out_file"] = self._save(image, "biascorrected.nii", runtime)
        return runtime


class _MaskOutputSpec(TraitedSpec):
    out_mask = File(exists=True, desc="uint8 mask")


class ExtractBrain(_Node):
    """Brain mask of a T1w image."""

    input_spec = _ImageInputSpec
    output_spec = _MaskOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.images.volumes import load_image
        from qmri_bidsapp.preprocess.anat import extract_brain

        mask = extract_brain(load_image(self.inputs.in_file, ndim=3))
        self._results["out_mask"] = self._save(mask, "brainmask.nii", runtime)
        return runtime


class _SegmentTissuesInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True)
    in_mask = File(exists=True, mandatory=True)


class _SegmentTissuesOutputSpec(TraitedSpec):
    out_dseg = File(exists=True, desc="uint8 labels: 1 GM, 2 WM, 3 CSF")


class SegmentTissues(_Node):
    """Grey matter, white matter and cerebrospinal fluid of a T1w image."""

    input_spec = _SegmentTissuesInputSpec
    output_spec = _SegmentTissuesOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.images.volumes import load_image
        from qmri_bidsapp.preprocess.anat import segment_tissues

        dseg = segment_tissues(
            load_image(self.inputs.in_file, ndim=3),
            load_image(self.inputs.in_mask, ndim=3),
        )
        self._results["out_dseg"] = self._save(dseg, "tissues.nii", runtime)
        return runtime


class _SeriesInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="4-D series")


class _StepOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="4-D series")
    notes = traits.List(traits.Str, desc="why the step, or a part of it, was left out")


class _AlignOutputSpec(_StepOutputSpec):
    motion = traits.List(desc="(n_volumes, 6): rotation, radian, and translation, mm")


class AlignSeries(_Node):
    """Rigid alignment of the images of a relaxometry series."""

    input_spec = _SeriesInputSpec
    output_spec = _AlignOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.images.volumes import load_image
        from qmri_bidsapp.preprocess.relaxometry import align

        image, motion, note = align(load_image(self.inputs.in_file, ndim=4))
        self._results["out_file"] = self._save(image, "aligned.nii", runtime)
        self._results["motion"] = motion.tolist()
        self._results["notes"] = [note] if note else []
        return runtime


class SeriesMask(_Node):
    """Brain mask from the series itself."""

    input_spec = _SeriesInputSpec
    output_spec = _MaskOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.images.volumes import load_image
        from qmri_bidsapp.preprocess.masks import series_mask

        mask = series_mask(load_image(self.inputs.in_file, ndim=4))
        self._results["out_mask"] = self._save(mask, "seriesmask.nii", runtime)
        return runtime


class _FieldmapInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="3-D map of the transmit field")
    factor = traits.Float(desc="from stored values to effective over nominal flip angle; without it, values tell")
    reference = File(exists=True, mandatory=True, desc="4-D series")


class _FieldmapOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="3-D relative transmit field on the grid of the series; NaN where not known")
    notes = traits.List(traits.Str)


class ResampleFieldmap(_Node):
    """Relative transmit field on the grid of a series."""

    input_spec = _FieldmapInputSpec
    output_spec = _FieldmapOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.images.volumes import load_image
        from qmri_bidsapp.preprocess.fieldmaps import onto_grid, relative_field

        field, note = relative_field(load_image(self.inputs.in_file, ndim=3), defined(self.inputs.factor))
        image = onto_grid(field, load_image(self.inputs.reference, ndim=4))
        self._results["out_file"] = self._save(image, "b1.nii", runtime)
        self._results["notes"] = [note] if note else []
        return runtime


class _TransferInputSpec(BaseInterfaceInputSpec):
    t1w = File(exists=True, mandatory=True)
    in_mask = File(exists=True, mandatory=True, desc="brain mask on the T1w grid")
    in_dseg = File(exists=True, mandatory=True, desc="tissues on the T1w grid")
    reference = File(exists=True, mandatory=True, desc="4-D series")


class _TransferOutputSpec(_MaskOutputSpec):
    out_dseg = File(exists=True, desc="tissues on the grid of the series")
    notes = traits.List(traits.Str)


class TransferLabels(_Node):
    """Brain mask and tissues of the T1w, on the grid of a series."""

    input_spec = _TransferInputSpec
    output_spec = _TransferOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.images.volumes import load_image
        from qmri_bidsapp.preprocess.masks import series_reference, transfer

        labels = [load_image(name, ndim=3) for name in (self.inputs.in_mask, self.inputs.in_dseg)]
        reference = series_reference(load_image(self.inputs.reference, ndim=4))
        (mask, dseg), note = transfer(load_image(self.inputs.t1w, ndim=3), labels, reference)
        self._results["out_mask"] = self._save(mask, "mask.nii", runtime)
        self._results["out_dseg"] = self._save(dseg, "tissues.nii", runtime)
        self._results["notes"] = [note] if note else []
        return runtime


class _MaskedInputSpec(_SeriesInputSpec):
    in_mask = File(exists=True, mandatory=True, desc="where the values are needed")


class _DenoiseOutputSpec(_StepOutputSpec):
    noise_std = File(desc="3-D standard deviation of the noise; undefined where the step was skipped")


class DenoiseDiffusion(_Node):
    """MP-PCA denoising."""

    input_spec = _MaskedInputSpec
    output_spec = _DenoiseOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        import nibabel as nib

        from qmri_bidsapp.images.volumes import load_image
        from qmri_bidsapp.preprocess.dwi import denoise

        source = load_image(self.inputs.in_file, ndim=4)
        image, noise_std, note = denoise(source, mask=load_image(self.inputs.in_mask, ndim=3))
        self._results["out_file"] = self._save(image, "denoised.nii", runtime)
        if noise_std is not None:
            noise_image = nib.Nifti1Image(noise_std, source.affine)
            self._results["noise_std"] = self._save(noise_image, "noise.nii", runtime)
        self._results["notes"] = [note] if note else []
        return runtime


class _UnringInputSpec(_MaskedInputSpec):
    n_threads = traits.Int(1, usedefault=True, nohash=True)


class UnringDiffusion(_Node):
    """Gibbs unringing."""

    input_spec = _UnringInputSpec
    output_spec = _StepOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.images.volumes import load_image
        from qmri_bidsapp.preprocess.dwi import unring

        source, mask = load_image(self.inputs.in_file, ndim=4), load_image(self.inputs.in_mask, ndim=3)
        image, note = unring(source, mask=mask, n_threads=self.inputs.n_threads)
        self._results["out_file"] = self._save(image, "unringed.nii", runtime)
        self._results["notes"] = [note] if note else []
        return runtime


class _AlignDiffusionInputSpec(_SeriesInputSpec):
    b_value = traits.List(traits.Float, mandatory=True, desc="(n_volumes,) s/mm2")
    direction = traits.List(mandatory=True, desc="(n_volumes, 3) unit vectors, FSL convention")


class _AlignDiffusionOutputSpec(_AlignOutputSpec):
    direction = traits.List(desc="(n_volumes, 3) rotated with the volumes")


class AlignDiffusion(_Node):
    """Rigid alignment of diffusion volumes, with rotation of the b-vectors."""

    input_spec = _AlignDiffusionInputSpec
    output_spec = _AlignDiffusionOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        import numpy as np

        from qmri_bidsapp.images.volumes import load_image
        from qmri_bidsapp.preprocess.dwi import align

        image, direction, motion, note = align(
            load_image(self.inputs.in_file, ndim=4),
            np.asarray(self.inputs.b_value),
            np.asarray(self.inputs.direction),
        )
        self._results["out_file"] = self._save(image, "aligned.nii", runtime)
        self._results["direction"] = direction.tolist()
        self._results["motion"] = motion.tolist()
        self._results["notes"] = [note] if note else []
        return runtime


def defined(value: Any) -> Any:
    """Return the value of an optional input, or None where it was not given."""
    return value if isdefined(value) else None
