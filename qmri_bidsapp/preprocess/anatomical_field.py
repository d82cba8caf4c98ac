"""Displacement of an EPI without any field map: by registration to the T1w."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from qmri_bidsapp.core.phase_encoding import PhaseEncoding
from qmri_bidsapp.errors import InputError
from qmri_bidsapp.images.volumes import make_image
from qmri_bidsapp.preprocess.resampling import stretching_of
from qmri_bidsapp.preprocess.rigid import load_ants, register, resample, too_small
from qmri_bidsapp.preprocess.susceptibility import FieldEstimate

#: Iterations of SyN, coarse to fine, and its smoothing.
ITERATIONS = (40, 20, 10)
FLOW_SIGMA, TOTAL_SIGMA = 3.0, 0.5
#: Intensity, relative to the 98th percentile, above which a voxel shows the head.
SIGNAL = 0.1


def field_of_anatomy(epi: nib.Nifti1Image, t1w: nib.Nifti1Image, encoding: PhaseEncoding) -> FieldEstimate:
    """Estimate the displacement of an EPI by SyN (Avants et al. 2008), along the phase-encoding axis only.

    Less precise than a measured field: the contrasts differ (mutual information does not mind that one is the
    inverse of the other), and where the EPI has no edges the displacement is not determined. Its error is not known.

    Parameters
    ----------
    epi : Nifti1Image
        (x, y, z), b = 0.
    t1w : Nifti1Image
        (x, y, z) of the same head, whole or brain only as the EPI.
    encoding : PhaseEncoding
        Of the EPI.

    Returns
    -------
    FieldEstimate
        On the grid of the EPI; `std` is NaN.

    Raises
    ------
    InputError
        If the EPI is too small for a registration.
    """
    reason = too_small(epi)
    if reason:
        raise InputError(f"The EPI cannot be registered to the T1w: {reason}.")
    motion = register(epi, t1w, effort="far")
    if not motion.is_plausible:
        raise InputError("The EPI cannot be registered to the T1w (implausible rotation): leave the correction out.")
    anatomy = np.nan_to_num(resample(t1w, epi, motion, order=3)).clip(0)
    displacement = _along_axis(make_image(anatomy, epi), epi, encoding.axis)
    strength = np.nan_to_num(np.asarray(epi.dataobj, dtype=np.float32))
    field = displacement * encoding.sign / (1.0 if encoding.readout is None else encoding.readout)
    determined = (anatomy > SIGNAL * np.percentile(anatomy, 98)) & (strength > SIGNAL * np.percentile(strength, 98))
    determined &= stretching_of(displacement, np.eye(4), encoding.axis) > 0
    note = (
        "The distortion was estimated by registration to the T1w, without a field map: its error is not known, and "
        "larger than that of a measured field."
    )
    return FieldEstimate(
        field=field.astype(np.float32),
        std=np.full(field.shape, np.nan, dtype=np.float32),
        determined=determined,
        in_hertz=encoding.readout is not None,
        notes=(*((encoding.note,) if encoding.note else ()), note),
    )


def _along_axis(anatomy: nib.Nifti1Image, epi: nib.Nifti1Image, axis: int) -> np.ndarray:
    """Return the displacement, (x, y, z) voxels, that takes the anatomy to the EPI on one grid."""
    ants = load_ants()
    spacing = np.linalg.norm(epi.affine[:3, :3], axis=0)
    # SyN restricts axes of the scanner: without orientation, they are those of the grid.
    fixed, moving = (
        ants.from_numpy(np.ascontiguousarray(image.dataobj, dtype=np.float32), spacing=spacing.tolist())
        for image in (anatomy, epi)
    )
    with tempfile.TemporaryDirectory() as folder:
        found = ants.registration(
            fixed,
            moving,
            type_of_transform="SyNOnly",
            initial_transform="Identity",
            syn_metric="mattes",
            reg_iterations=ITERATIONS,
            flow_sigma=FLOW_SIGMA,
            total_sigma=TOTAL_SIGMA,
            restrict_transformation=tuple(int(number == axis) for number in range(3)),
            outprefix=str(Path(folder) / "along_"),
        )
        warp = nib.load(found["fwdtransforms"][0])
        # ITK's displacements count along left and posterior; without orientation they are those of the grid.
        moved = np.asarray(warp.dataobj, dtype=np.float32).reshape(*anatomy.shape, 3)[..., axis]
    return moved / spacing[axis]
