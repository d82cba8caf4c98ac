"""Nodes of diffusion preprocessing: denoising, unringing, field, alignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nipype.interfaces.base import File, InputMultiObject, TraitedSpec, traits

from qmri_bidsapp.interfaces.preprocess import (
    ALIGNED,
    AlignOutputSpec,
    ImageInputSpec,
    MaskedInputSpec,
    NotedOutputSpec,
    PreprocessingNode,
    SkipInputSpec,
    defined,
    load,
)

#: Share of the head from which on piled-up signal is worth a note.
MAX_PILED = 0.01
UNDISTORTED = "Susceptibility distortion corrected, with intensities by the Jacobian"


class _ProtocolInputSpec(ImageInputSpec):
    b_value = traits.List(traits.Float, mandatory=True, desc="(n_volumes,) s/mm2")
    direction = traits.List(mandatory=True, desc="(n_volumes, 3) unit vectors, FSL convention")


class _DiffusionInputSpec(_ProtocolInputSpec, MaskedInputSpec):
    pass


def _protocol(inputs: Any) -> Any:
    """Return the protocol of a diffusion series."""
    from qmri_bidsapp.core.acquisition import Diffusion

    return Diffusion(tuple(inputs.b_value), tuple(map(tuple, inputs.direction)))


#: Methods of denoising -> their names.
_DENOISING = {"mppca": "MP-PCA (Veraart et al. 2016)", "patch2self": "Patch2Self (Fadnavis et al. 2020)"}


class _DenoiseInputSpec(_DiffusionInputSpec, SkipInputSpec):
    method = traits.Enum(*_DENOISING, usedefault=True, desc="how the series is denoised")
    n_volumes = traits.List(traits.Int, mandatory=True, desc="of each file of the series")


class _DenoiseOutputSpec(NotedOutputSpec):
    noise_std = File(desc="3-D standard deviation of the noise; undefined where it could not be measured")
    is_denoised = traits.Bool(desc="whether the series was denoised")
    floor_removed = traits.Bool(desc="whether the noise floor was removed")
    errors = File(desc="4-D errors of a replicate; undefined where the series was not denoised")
    removed = File(desc="4-D noise that was removed from the replicate")


class DenoiseDiffusion(PreprocessingNode):
    """Denoising, or measurement of the noise alone."""

    input_spec = _DenoiseInputSpec
    output_spec = _DenoiseOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        import nibabel as nib

        from qmri_bidsapp.preprocess.dwi import denoise_files

        inputs = self.inputs
        image, mask = load(inputs.in_file, 4), load(inputs.in_mask, 3)
        chosen = {"skip": inputs.skip, "method": inputs.method}
        found = denoise_files(image, _protocol(inputs), n_volumes=inputs.n_volumes, mask=mask, **chosen)
        self._save(runtime, "denoised.nii", found.image)
        if found.noise_std is not None:
            self._save(runtime, "noise.nii", nib.Nifti1Image(found.noise_std, image.affine), "noise_std")
        for name in ("errors", "removed"):
            if (values := getattr(found, name)) is not None:
                self._save(runtime, f"{name}.nii", nib.Nifti1Image(values, image.affine), name)
        self._results.update(is_denoised=found.is_denoised, floor_removed=found.floor_removed)
        floor = "; noise floor corrected (Koay and Basser 2006)" if found.floor_removed else ""
        if found.floor_removed and found.n_coils > 1:
            floor = f"; noise floor of {found.n_coils:.1f} coils (sum of squares, by the noise in air) corrected"
        self._did(f"Denoised by {_DENOISING[inputs.method]}{floor}" if found.is_denoised else None)
        self._note(found.note)
        return runtime


class _UnringInputSpec(_DiffusionInputSpec):
    errors = File(exists=True, desc="4-D errors of a replicate")
    is_denoised = traits.Bool(mandatory=True, desc="whether the series was denoised")
    partial_fourier = traits.Float(1.0, usedefault=True, desc="acquired part of k-space")
    n_threads = traits.Int(1, usedefault=True, nohash=True)


class _UnringOutputSpec(NotedOutputSpec):
    errors = File(desc="those of the replicate, with what unringing leaves; undefined without an input")


class UnringDiffusion(PreprocessingNode):
    """Gibbs unringing."""

    input_spec = _UnringInputSpec
    output_spec = _UnringOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        import numpy as np
        import torch

        from qmri_bidsapp.images.volumes import make_image
        from qmri_bidsapp.preprocess.dwi import remaining_ringing, unring

        inputs = self.inputs
        torch.set_num_threads(inputs.n_threads)
        source = load(inputs.in_file, 4)
        image, note = unring(
            source,
            _protocol(inputs),
            mask=load(inputs.in_mask, 3),
            is_denoised=inputs.is_denoised,
            partial_fourier=inputs.partial_fourier,
        )
        self._save(runtime, "unringed.nii", image)
        if defined(inputs.errors):
            errors = load(inputs.errors, 4, may_be_zero=True)
            if image is not source:
                errors = make_image(np.asarray(errors.dataobj) + remaining_ringing(source, image), image)
            self._save(runtime, "errors.nii", errors, "errors")
        done = "Gibbs ringing removed by local subvoxel shifts (Kellner et al. 2016)"
        self._did(None if image is source else f"{done}. {note}")
        self._note(note)
        return runtime


class _FieldInputSpec(_ProtocolInputSpec):
    encodings = traits.List(mandatory=True, desc="(n_volumes, 3) axis, sign and readout time (s; None if not known)")
    kind = traits.Enum("pair", "phasediff", "phases", "fieldmap", mandatory=True)
    files = InputMultiObject(File(exists=True), desc="EPI of a pair beside the series, or the images of a map")
    file_encodings = traits.List(desc="of the EPI of a pair")
    magnitude = File(exists=True, desc="of a map")
    echo_times = traits.List(traits.Float, desc="of phases, s")
    unit = traits.Str(desc="Units of a map")


class _FieldOutputSpec(TraitedSpec):
    field = File(exists=True, desc="3-D field, Hz, or voxels of displacement without a readout time")
    displacement = File(exists=True, desc="3-D displacement of the first volume, voxels along its phase encoding")
    notes = traits.List(traits.Str, desc="what was assumed")


class EstimateField(PreprocessingNode):
    """Field of susceptibility on the grid of a diffusion series."""

    input_spec = _FieldInputSpec
    output_spec = _FieldOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        import numpy as np

        from qmri_bidsapp.images.volumes import make_image
        from qmri_bidsapp.preprocess.distortion import field_of_map, field_of_series
        from qmri_bidsapp.preprocess.susceptibility import piled_up

        inputs = self.inputs
        image, acquisition, encodings = load(inputs.in_file, 4), _protocol(inputs), _encodings(inputs.encodings)
        files = [_load_any(file) for file in defined(inputs.files) or ()]
        if inputs.kind == "pair":
            others = list(zip(files, _encodings(defined(inputs.file_encodings) or ()), strict=True))
            found = field_of_series(image, acquisition, encodings, others)
        else:
            magnitude, unit = defined(inputs.magnitude), defined(inputs.unit)
            found = field_of_map(
                image,
                acquisition,
                encodings[0],
                kind=inputs.kind,
                files=files,
                magnitude=load(magnitude, 3) if magnitude else None,
                echo_times=defined(inputs.echo_times) or (),
                unit=unit,
            )
        self._save(runtime, "field.nii", make_image(found.field, image), "field")
        displacement = encodings[0].displacement(found.field).astype("float32")
        self._save(runtime, "displacement.nii", make_image(displacement, image), "displacement")
        piled = float(np.mean(piled_up(displacement, np.eye(4), encodings[0].axis)[found.determined]))
        lost = f"Signal of several places is piled up in {piled:.0%} of the head; no correction separates it."
        notes = [*found.notes, *([lost] if piled > MAX_PILED else [])]
        self._results["notes"] = notes
        return runtime


def _load_any(path: str) -> Any:
    """Load an image, (x, y, z) or (x, y, z, n)."""
    import nibabel as nib

    return load(path, 4 if len(nib.load(path).shape) > 3 else 3)


def _encodings(rows: Sequence[Sequence[Any]]) -> Any:
    """Return phase encodings from their axis, sign and readout time."""
    from qmri_bidsapp.core.phase_encoding import PhaseEncoding

    return [PhaseEncoding(*row) for row in rows]


class _AlignDiffusionInputSpec(_ProtocolInputSpec, SkipInputSpec):
    field = File(exists=True, desc="3-D field, Hz: its distortion is corrected in the same interpolation")
    encodings = traits.List(desc="(n_volumes, 3) axis, sign and readout time (s; None if not known)")
    noise_std = File(exists=True, desc="3-D standard deviation of the noise")
    errors = File(exists=True, desc="4-D errors of a replicate")
    removed = File(exists=True, desc="4-D noise that was removed from the replicate")


class _AlignDiffusionOutputSpec(AlignOutputSpec):
    direction = traits.List(desc="(n_volumes, 3) rotated with the volumes")
    noise_std = File(desc="the same, moved with the volumes; undefined without an input")
    errors = File(desc="the same")
    removed = File(desc="the same")
    is_resampled = traits.Bool(desc="whether a volume was moved or undistorted")


class AlignDiffusion(PreprocessingNode):
    """Rigid alignment of diffusion volumes with their b-vectors, and correction of distortion, in one interpolation."""

    input_spec = _AlignDiffusionInputSpec
    output_spec = _AlignDiffusionOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        import numpy as np

        from qmri_bidsapp.images.volumes import make_image
        from qmri_bidsapp.preprocess.distortion import places_of_volumes
        from qmri_bidsapp.preprocess.dwi import rotate_directions
        from qmri_bidsapp.preprocess.placement import interpolation_errors, resample_noise, resample_series
        from qmri_bidsapp.preprocess.rigid import too_small

        inputs, is_aligned = self.inputs, "align" not in self.inputs.skip
        source, field = load(inputs.in_file, 4), defined(inputs.field)
        places, motion, note = places_of_volumes(
            source,
            _protocol(inputs),
            field=None if field is None else np.asarray(load(field, 3).dataobj),
            encodings=_encodings(defined(inputs.encodings) or ()),
            align=is_aligned,
        )
        image = resample_series(source, places)
        if defined(inputs.errors):
            errors = resample_series(load(inputs.errors, 4, may_be_zero=True), places)
            total = np.nan_to_num(np.asarray(errors.dataobj)) + interpolation_errors(image, places)
            self._save(runtime, "errors.nii", make_image(total, image), "errors")
            removed = resample_series(load(inputs.removed, 4, may_be_zero=True), places)
            self._save(runtime, "removed.nii", make_image(np.nan_to_num(np.asarray(removed.dataobj)), image), "removed")
        if file := defined(inputs.noise_std):
            self._save(runtime, "noise.nii", resample_noise(load(file, 3), places), "noise_std")
        direction = rotate_directions(np.asarray(inputs.direction), motion, source.affine)
        corrected, done = self._corrected(image, direction)
        self._save(runtime, "aligned.nii", corrected)
        is_resampled = not all(place.is_identity for place in places)
        self._results.update(direction=direction.tolist(), motion=motion.tolist(), is_resampled=is_resampled)
        rotated = "gradient directions rotated (Leemans and Jones 2009)"
        self._results["steps"] = [
            *([] if field is None else [UNDISTORTED]),
            *([f"{ALIGNED}; {rotated}. {note}"] if is_aligned and not too_small(source) else []),
            *done,
        ]
        self._results["notes"] = [text for text in (note, *done) if text]
        return runtime

    def _corrected(self, image: Any, direction: Any) -> tuple[Any, list[str]]:
        """Return an aligned series without drift and lost slices, and what was done."""
        from qmri_bidsapp.core.acquisition import Diffusion
        from qmri_bidsapp.preprocess.drift import correct_drift
        from qmri_bidsapp.preprocess.outliers import replace_lost_slices

        acquisition = Diffusion(tuple(self.inputs.b_value), tuple(map(tuple, direction.tolist())))
        done = []
        if "drift" not in self.inputs.skip:
            image, drift = correct_drift(image, acquisition)
            done += [drift.note] if drift.is_corrected else []
        if "lost-slices" not in self.inputs.skip:
            source = image
            image, _, note = replace_lost_slices(image, acquisition)
            done += [] if image is source else [note]
        return image, done
