"""Nodes of preprocessing: each loads images, calls one function of `preprocess` and saves."""

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

ALIGNED = "Images aligned rigidly by mutual information"


def defined(value: Any) -> Any:
    """Return the value of an optional input, or None if it was not given."""
    return value if isdefined(value) else None


def load(path: str, ndim: int, *, may_be_zero: bool = False) -> Any:
    """Return an image as float32, see `images.volumes.load_image`."""
    from qmri_bidsapp.images.volumes import load_image

    return load_image(path, ndim=ndim, may_be_zero=may_be_zero)


class PreprocessingNode(SimpleInterface):
    """A node that saves images into its working folder."""

    def _save(self, runtime: Any, name: str, image: Any, output: str = "out_file") -> None:
        from qmri_bidsapp.images.volumes import save_image

        self._results[output] = str(save_image(image, Path(runtime.cwd) / name))

    def _did(self, step: str | None) -> None:
        # A function of `preprocess` that leaves its step out returns the image that it was given.
        self._results["steps"] = [step] if step else []

    def _note(self, note: str | None) -> None:
        self._results["notes"] = [note] if note else []


class ImageInputSpec(BaseInterfaceInputSpec):
    """An image."""

    in_file = File(exists=True, mandatory=True, desc="3-D image, or 4-D series")


class MaskedInputSpec(ImageInputSpec):
    """An image and its mask."""

    in_mask = File(exists=True, mandatory=True, desc="3-D mask on the grid of the image")


class SkipInputSpec(BaseInterfaceInputSpec):
    """Steps that the user leaves out."""

    skip = traits.List(traits.Str, [], usedefault=True, desc="steps left out, see `config.STEPS`")


class _ImageOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="uncompressed float32 image")


class NotedOutputSpec(_ImageOutputSpec):
    """An image, with what was done to it."""

    notes = traits.List(traits.Str, desc="why the step, or a part of it, was left out, and what was assumed")
    steps = traits.List(traits.Str, desc="what was done to the images, for their sidecars")


class _MaskOutputSpec(TraitedSpec):
    out_mask = File(exists=True, desc="uint8 mask")


class _ImportInputSpec(BaseInterfaceInputSpec):
    in_files = InputMultiObject(File(exists=True), mandatory=True, desc="one image, or the images of a series in order")
    ndim = traits.Enum(3, 4, mandatory=True, desc="number of dimensions that the images must have")
    is_magnitude = traits.Bool(False, usedefault=True, desc="whether the images must be magnitudes")


class ImportImages(PreprocessingNode):
    """Check the input images and write them as one uncompressed float32 file that can be memory mapped."""

    input_spec = _ImportInputSpec
    output_spec = NotedOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.images.volumes import grid_notes, load_image, merge_series

        files, is_magnitude = self.inputs.in_files, self.inputs.is_magnitude
        if len(files) > 1:
            image = merge_series(files, ndim=self.inputs.ndim, is_magnitude=is_magnitude)
        else:
            image = load_image(files[0], ndim=self.inputs.ndim, is_magnitude=is_magnitude)
        self._save(runtime, "imported.nii", image)
        self._results["notes"] = grid_notes(files)
        self._did(None)
        return runtime


class _PolarityInputSpec(BaseInterfaceInputSpec):
    in_files = InputMultiObject(File(exists=True), mandatory=True, desc="magnitudes or real parts, by inversion time")
    complement = InputMultiObject(File(exists=True), mandatory=True, desc="phases or imaginary parts, in this order")
    part = traits.Enum("phase", "imag", mandatory=True, desc="whether the complement is phases or imaginary parts")
    unit = traits.Str(desc="Units of the phase")
    inversion_time = traits.List(traits.Float, mandatory=True, desc="of each image, s")


class RestorePolarity(PreprocessingNode):
    """Inversion-recovery images with their sign, as one uncompressed float32 file."""

    input_spec = _PolarityInputSpec
    output_spec = NotedOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.images.volumes import grid_notes, merge_series
        from qmri_bidsapp.preprocess.polarity import signed_series

        is_real_part = self.inputs.part == "imag"
        first = merge_series(self.inputs.in_files, may_be_zero=is_real_part, is_magnitude=not is_real_part)
        second = merge_series(self.inputs.complement, may_be_zero=True)
        inputs = self.inputs
        image, note = signed_series(first, second, inputs.part, defined(inputs.unit), inputs.inversion_time)
        self._save(runtime, "signed.nii", image)
        self._results["notes"] = [*grid_notes(self.inputs.in_files), *([note] if note else [])]
        self._did(f"Polarity from part-{inputs.part}")
        return runtime


class CorrectBias(PreprocessingNode):
    """N4 bias-field correction of a T1w."""

    input_spec = ImageInputSpec
    output_spec = _ImageOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.preprocess.anat import correct_bias

        self._save(runtime, "biascorrected.nii", correct_bias(load(self.inputs.in_file, 3)))
        return runtime


class ExtractBrain(PreprocessingNode):
    """Brain mask of a T1w."""

    input_spec = ImageInputSpec
    output_spec = _MaskOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.preprocess.anat import extract_brain

        self._save(runtime, "brainmask.nii", extract_brain(load(self.inputs.in_file, 3)), "out_mask")
        return runtime


class _SegmentTissuesOutputSpec(TraitedSpec):
    out_dseg = File(exists=True, desc="uint8 labels: 1 GM, 2 WM, 3 CSF")


class SegmentTissues(PreprocessingNode):
    """Grey matter, white matter and cerebrospinal fluid of a T1w."""

    input_spec = MaskedInputSpec
    output_spec = _SegmentTissuesOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.preprocess.anat import segment_tissues

        dseg = segment_tissues(load(self.inputs.in_file, 3), load(self.inputs.in_mask, 3))
        self._save(runtime, "tissues.nii", dseg, "out_dseg")
        return runtime


class AlignOutputSpec(NotedOutputSpec):
    """Aligned images."""

    motion = traits.List(desc="(n_volumes, 6): rotation, radian, and translation, mm")


class AlignSeries(PreprocessingNode):
    """Rigid alignment of the images of a series."""

    input_spec = ImageInputSpec
    output_spec = AlignOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.preprocess.relaxometry import align

        source = load(self.inputs.in_file, 4)
        image, motion, note = align(source)
        self._did(None if image is source else f"{ALIGNED}. {note}")
        self._save(runtime, "aligned.nii", image)
        self._results["motion"] = motion.tolist()
        self._note(note)
        return runtime


class _NotedMaskOutputSpec(_MaskOutputSpec):
    notes = traits.List(traits.Str, desc="what is doubtful about the mask")


class SeriesMask(PreprocessingNode):
    """Brain mask from the series itself."""

    input_spec = ImageInputSpec
    output_spec = _NotedMaskOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.preprocess.masks import doubt_of_mask, series_mask

        mask = series_mask(load(self.inputs.in_file, 4))
        self._save(runtime, "seriesmask.nii", mask, "out_mask")
        self._note(doubt_of_mask(mask))
        return runtime


class _FieldmapInputSpec(ImageInputSpec):
    factor = traits.Float(
        desc="from stored values to effective over nominal flip angle; without it, it is derived from the values"
    )
    nominal_angle = traits.Float(desc="nominal flip angle of the map, degree, where its sidecar states it")
    reference = File(exists=True, mandatory=True, desc="4-D series")


class ResampleFieldmap(PreprocessingNode):
    """Relative transmit field on the grid of a series; NaN where it is unknown."""

    input_spec = _FieldmapInputSpec
    output_spec = NotedOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.preprocess.fieldmaps import onto_grid, relative_field

        inputs = self.inputs
        field, note = relative_field(load(inputs.in_file, 3), defined(inputs.factor), defined(inputs.nominal_angle))
        self._save(runtime, "b1.nii", onto_grid(field, load(inputs.reference, 4)))
        self._note(note)
        return runtime


class _TransferInputSpec(SkipInputSpec):
    t1w = File(exists=True, mandatory=True)
    in_mask = File(exists=True, mandatory=True, desc="brain mask on the T1w grid")
    in_dseg = File(exists=True, mandatory=True, desc="tissues on the T1w grid")
    reference = File(exists=True, mandatory=True, desc="4-D series")


class _TransferOutputSpec(_NotedMaskOutputSpec):
    out_dseg = File(exists=True, desc="tissues on the grid of the series")


class TransferLabels(PreprocessingNode):
    """Brain mask and tissues of the T1w on the grid of a series."""

    input_spec = _TransferInputSpec
    output_spec = _TransferOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.preprocess.masks import series_reference, transfer

        inputs = self.inputs
        labels = [load(name, 3) for name in (inputs.in_mask, inputs.in_dseg)]
        reference = series_reference(load(inputs.reference, 4))
        (mask, dseg), note = transfer(load(inputs.t1w, 3), labels, reference, skip=inputs.skip)
        self._save(runtime, "mask.nii", mask, "out_mask")
        self._save(runtime, "tissues.nii", dseg, "out_dseg")
        self._note(note)
        return runtime
