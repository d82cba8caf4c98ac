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


def _load(path: str, ndim: int) -> Any:
    from qmri_bidsapp.images.volumes import load_image

    return load_image(path, ndim=ndim)


class _Node(SimpleInterface):
    """A node that saves images into its working folder."""

    def _save(self, runtime: Any, name: str, image: Any, output: str = "out_file") -> None:
        from qmri_bidsapp.images.volumes import save_image

        self._results[output] = str(save_image(image, Path(runtime.cwd) / name))

    def _did(self, step: str | None) -> None:
        # A function of `preprocess` that leaves its step out returns the image that it was given.
        self._results["steps"] = [step] if step else []

    def _note(self, note: str | None) -> None:
        self._results["notes"] = [note] if note else []


class _ImageInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="3-D image, or 4-D series")


class _MaskedInputSpec(_ImageInputSpec):
    in_mask = File(exists=True, mandatory=True, desc="3-D mask on the grid of the image")


class _SkipInputSpec(BaseInterfaceInputSpec):
    skip = traits.List(traits.Str, [], usedefault=True, desc="steps left out, see `config.STEPS`")


class _ImageOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="uncompressed float32 image")


class _NotedOutputSpec(_ImageOutputSpec):
    notes = traits.List(traits.Str, desc="why the step, or a part of it, was left out, and what was assumed")
    steps = traits.List(traits.Str, desc="what was done to the images, for their sidecars")


class _MaskOutputSpec(TraitedSpec):
    out_mask = File(exists=True, desc="uint8 mask")


class _ImportInputSpec(BaseInterfaceInputSpec):
    in_files = InputMultiObject(File(exists=True), mandatory=True, desc="one image, or the images of a series in order")
    ndim = traits.Enum(3, 4, mandatory=True, desc="number of dimensions that the images must have")
    is_magnitude = traits.Bool(False, usedefault=True, desc="whether the images must be magnitudes")


class ImportImages(_Node):
    """Check the input images and write them as one uncompressed float32 file that can be memory mapped."""

    input_spec = _ImportInputSpec
    output_spec = _NotedOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.images.volumes import grid_notes, load_image, merge_series

        files, is_magnitude = self.inputs.in_files, self.inputs.is_magnitude
        if len(files) > 1:
            image = merge_series(files, is_magnitude=is_magnitude)
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


class RestorePolarity(_Node):
    """Inversion-recovery images with their sign, as one uncompressed float32 file."""

    input_spec = _PolarityInputSpec
    output_spec = _NotedOutputSpec

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


class CorrectBias(_Node):
    """N4 bias-field correction of a T1w."""

    input_spec = _ImageInputSpec
    output_spec = _ImageOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.preprocess.anat import correct_bias

        self._save(runtime, "biascorrected.nii", correct_bias(_load(self.inputs.in_file, 3)))
        return runtime


class ExtractBrain(_Node):
    """Brain mask of a T1w."""

    input_spec = _ImageInputSpec
    output_spec = _MaskOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.preprocess.anat import extract_brain

        self._save(runtime, "brainmask.nii", extract_brain(_load(self.inputs.in_file, 3)), "out_mask")
        return runtime


class _SegmentTissuesOutputSpec(TraitedSpec):
    out_dseg = File(exists=True, desc="uint8 labels: 1 GM, 2 WM, 3 CSF")


class SegmentTissues(_Node):
    """Grey matter, white matter and cerebrospinal fluid of a T1w."""

    input_spec = _MaskedInputSpec
    output_spec = _SegmentTissuesOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.preprocess.anat import segment_tissues

        dseg = segment_tissues(_load(self.inputs.in_file, 3), _load(self.inputs.in_mask, 3))
        self._save(runtime, "tissues.nii", dseg, "out_dseg")
        return runtime


class _AlignOutputSpec(_NotedOutputSpec):
    motion = traits.List(desc="(n_volumes, 6): rotation, radian, and translation, mm")


class AlignSeries(_Node):
    """Rigid alignment of the images of a series."""

    input_spec = _ImageInputSpec
    output_spec = _AlignOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.preprocess.relaxometry import align

        source = _load(self.inputs.in_file, 4)
        image, motion, note = align(source)
        self._did(None if image is source else f"{ALIGNED}. {note}")
        self._save(runtime, "aligned.nii", image)
        self._results["motion"] = motion.tolist()
        self._note(note)
        return runtime


class _NotedMaskOutputSpec(_MaskOutputSpec):
    notes = traits.List(traits.Str, desc="what is doubtful about the mask")


class SeriesMask(_Node):
    """Brain mask from the series itself."""

    input_spec = _ImageInputSpec
    output_spec = _NotedMaskOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.preprocess.masks import doubt_of_mask, series_mask

        mask = series_mask(_load(self.inputs.in_file, 4))
        self._save(runtime, "seriesmask.nii", mask, "out_mask")
        self._note(doubt_of_mask(mask))
        return runtime


class _FieldmapInputSpec(_ImageInputSpec):
    factor = traits.Float(
        desc="from stored values to effective over nominal flip angle; without it, it is derived from the values"
    )
    nominal_angle = traits.Float(desc="nominal flip angle of the map, degree, where its sidecar states it")
    reference = File(exists=True, mandatory=True, desc="4-D series")


class ResampleFieldmap(_Node):
    """Relative transmit field on the grid of a series; NaN where it is unknown."""

    input_spec = _FieldmapInputSpec
    output_spec = _NotedOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.preprocess.fieldmaps import onto_grid, relative_field

        inputs = self.inputs
        field, note = relative_field(_load(inputs.in_file, 3), defined(inputs.factor), defined(inputs.nominal_angle))
        self._save(runtime, "b1.nii", onto_grid(field, _load(inputs.reference, 4)))
        self._note(note)
        return runtime


class _TransferInputSpec(_SkipInputSpec):
    t1w = File(exists=True, mandatory=True)
    in_mask = File(exists=True, mandatory=True, desc="brain mask on the T1w grid")
    in_dseg = File(exists=True, mandatory=True, desc="tissues on the T1w grid")
    reference = File(exists=True, mandatory=True, desc="4-D series")


class _TransferOutputSpec(_NotedMaskOutputSpec):
    out_dseg = File(exists=True, desc="tissues on the grid of the series")


class TransferLabels(_Node):
    """Brain mask and tissues of the T1w on the grid of a series."""

    input_spec = _TransferInputSpec
    output_spec = _TransferOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.preprocess.masks import series_reference, transfer

        inputs = self.inputs
        labels = [_load(name, 3) for name in (inputs.in_mask, inputs.in_dseg)]
        reference = series_reference(_load(inputs.reference, 4))
        (mask, dseg), note = transfer(_load(inputs.t1w, 3), labels, reference, skip=inputs.skip)
        self._save(runtime, "mask.nii", mask, "out_mask")
        self._save(runtime, "tissues.nii", dseg, "out_dseg")
        self._note(note)
        return runtime


class _DiffusionInputSpec(_MaskedInputSpec):
    b_value = traits.List(traits.Float, mandatory=True, desc="(n_volumes,) s/mm2")
    direction = traits.List(mandatory=True, desc="(n_volumes, 3) unit vectors, FSL convention")


def _protocol(inputs: Any) -> Any:
    """Return the protocol of a diffusion series."""
    from qmri_bidsapp.core.acquisition import Diffusion

    return Diffusion(tuple(inputs.b_value), tuple(map(tuple, inputs.direction)))


#: Methods of denoising -> their names.
_DENOISING = {"mppca": "MP-PCA (Veraart et al. 2016)", "patch2self": "Patch2Self (Fadnavis et al. 2020)"}


class _DenoiseInputSpec(_DiffusionInputSpec, _SkipInputSpec):
    method = traits.Enum(*_DENOISING, usedefault=True, desc="how the series is denoised")


class _DenoiseOutputSpec(_NotedOutputSpec):
    noise_std = File(desc="3-D standard deviation of the noise; undefined where it could not be measured")
    is_denoised = traits.Bool(desc="whether the series was denoised")
    floor_removed = traits.Bool(desc="whether the noise floor was removed")
    errors = File(desc="4-D errors of a replicate; undefined where the series was not denoised")
    removed = File(desc="4-D noise that was removed from the replicate")


class DenoiseDiffusion(_Node):
    """Denoising, or measurement of the noise alone."""

    input_spec = _DenoiseInputSpec
    output_spec = _DenoiseOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        import nibabel as nib

        from qmri_bidsapp.preprocess.dwi import denoise

        image, mask = _load(self.inputs.in_file, 4), _load(self.inputs.in_mask, 3)
        method = self.inputs.method
        found = denoise(image, _protocol(self.inputs), mask=mask, skip=self.inputs.skip, method=method)
        self._save(runtime, "denoised.nii", found.image)
        if found.noise_std is not None:
            self._save(runtime, "noise.nii", nib.Nifti1Image(found.noise_std, image.affine), "noise_std")
        for name in ("errors", "removed"):
            if (values := getattr(found, name)) is not None:
                self._save(runtime, f"{name}.nii", nib.Nifti1Image(values, image.affine), name)
        self._results.update(is_denoised=found.is_denoised, floor_removed=found.floor_removed)
        floor = "; noise floor corrected (Koay and Basser 2006)" if found.floor_removed else ""
        self._did(f"Denoised by {_DENOISING[method]}{floor}" if found.is_denoised else None)
        self._note(found.note)
        return runtime


class _UnringInputSpec(_DiffusionInputSpec):
    is_denoised = traits.Bool(mandatory=True, desc="whether the series was denoised")
    partial_fourier = traits.Float(1.0, usedefault=True, desc="acquired part of k-space")
    n_threads = traits.Int(1, usedefault=True, nohash=True)


class UnringDiffusion(_Node):
    """Gibbs unringing."""

    input_spec = _UnringInputSpec
    output_spec = _NotedOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        import torch

        from qmri_bidsapp.preprocess.dwi import unring

        inputs = self.inputs
        torch.set_num_threads(inputs.n_threads)
        source = _load(inputs.in_file, 4)
        image, note = unring(
            source,
            _protocol(inputs),
            mask=_load(inputs.in_mask, 3),
            is_denoised=inputs.is_denoised,
            partial_fourier=inputs.partial_fourier,
        )
        self._save(runtime, "unringed.nii", image)
        done = "Gibbs ringing removed by local subvoxel shifts (Kellner et al. 2016)"
        self._did(None if image is source else f"{done}. {note}")
        self._note(note)
        return runtime


class _AlignDiffusionInputSpec(_ImageInputSpec):
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

        from qmri_bidsapp.preprocess.dwi import align

        b_value, direction = np.asarray(self.inputs.b_value), np.asarray(self.inputs.direction)
        source = _load(self.inputs.in_file, 4)
        image, direction, motion, note = align(source, b_value, direction)
        rotated = "gradient directions rotated (Leemans and Jones 2009)"
        self._did(None if image is source else f"{ALIGNED}; {rotated}. {note}")
        self._save(runtime, "aligned.nii", image)
        self._results.update(direction=direction.tolist(), motion=motion.tolist())
        self._note(note)
        return runtime
