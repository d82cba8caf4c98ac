"""Distortion of a diffusion series by the field of susceptibility: the field, and the series without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import nibabel as nib
import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.core.phase_encoding import PhaseEncoding
from qmri_bidsapp.errors import InputError
from qmri_bidsapp.images.volumes import make_image
from qmri_bidsapp.preprocess.dwi import motions_of
from qmri_bidsapp.preprocess.field_maps import from_field, from_phase_difference, from_phases, on_epi
from qmri_bidsapp.preprocess.placement import Placement, resample_series
from qmri_bidsapp.preprocess.rigid import IDENTITY
from qmri_bidsapp.preprocess.susceptibility import FieldEstimate, field_of_pair


def reference_volumes(image: nib.Nifti1Image, acquisition: Diffusion, chosen: npt.NDArray[np.bool_]) -> nib.Nifti1Image:
    """Return the volumes of the lowest shell among chosen ones, (n,) bool, of a series (x, y, z, n)."""
    lowest = np.zeros(acquisition.n_measurements, dtype=bool)
    lowest[acquisition.shells()[0]] = True
    return make_image(np.asarray(image.dataobj, dtype=np.float32)[..., lowest & chosen], image)


def field_of_series(
    image: nib.Nifti1Image,
    acquisition: Diffusion,
    encodings: Sequence[PhaseEncoding],
    others: Sequence[tuple[nib.Nifti1Image, PhaseEncoding]] = (),
) -> FieldEstimate:
    """Find the field from volumes without weighting of opposite phase encoding.

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z, n).
    acquisition : Diffusion
    encodings : sequence of PhaseEncoding
        (n,) of each volume.
    others : sequence of (Nifti1Image, PhaseEncoding)
        EPI without weighting, (x, y, z) or (x, y, z, n), on the grid of the series.

    Returns
    -------
    FieldEstimate
        Where the head was in the volumes of the series that were used.

    Raises
    ------
    InputError
        If no volume without weighting has the opposite phase encoding of another.
    """
    own: dict[PhaseEncoding, nib.Nifti1Image] = {}
    for encoding in dict.fromkeys(encodings):
        found = reference_volumes(image, acquisition, np.array([other == encoding for other in encodings]))
        if found.shape[3]:
            own[encoding] = found
    for up, volumes in own.items():
        for down, opposite in (*own.items(), *((encoding, epi) for epi, encoding in others)):
            if up.is_opposite(down):
                return field_of_pair(volumes, opposite, up, down)
    raise InputError(
        "No volume without weighting has the opposite phase encoding of another: add one, or leave the correction out "
        "with --skip distortion."
    )


def field_of_map(
    image: nib.Nifti1Image,
    acquisition: Diffusion,
    encoding: PhaseEncoding,
    *,
    kind: str,
    files: Sequence[nib.Nifti1Image],
    magnitude: nib.Nifti1Image | None,
    echo_times: Sequence[float] = (),
    unit: str | None = None,
) -> FieldEstimate:
    """Return the field of a map by gradient echoes on the grid of a series.

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z, n).
    acquisition : Diffusion
    encoding : PhaseEncoding
        Of the first volume.
    kind : str
        ``"phasediff"``, ``"phases"`` or ``"fieldmap"``.
    files : sequence of Nifti1Image
        (x, y, z): the phase difference, both phases, or the field.
    magnitude : Nifti1Image or None
    echo_times : sequence of float
        Of both phases, s.
    unit : str or None
        ``Units`` of the files.

    Raises
    ------
    InputError
        If the map cannot be used, see `field_maps`.
    """
    if kind == "fieldmap":
        found = from_field(files[0], magnitude, unit or "")
    elif magnitude is None:
        raise InputError(f"A {kind} needs its magnitude image (magnitude1) beside it: add it.")
    else:
        times = (echo_times[0], echo_times[1])
        if kind == "phasediff":
            found = from_phase_difference(files[0], magnitude, times, unit)
        else:
            found = from_phases(files[0], files[1], magnitude, times, unit)
    volumes = np.asarray(image.dataobj, dtype=np.float32)[..., acquisition.shells()[0]]
    return on_epi(found, make_image(volumes.mean(axis=3), image), encoding)


def places_of_volumes(
    image: nib.Nifti1Image,
    acquisition: Diffusion,
    *,
    field: npt.NDArray[np.floating] | None = None,
    encodings: Sequence[PhaseEncoding] = (),
    align: bool = True,
) -> tuple[list[Placement], npt.NDArray[np.float64], str]:
    """Find where the volumes of a series lie: distorted by a field, and moved.

    Motion is found between volumes whose distortion was corrected, see `dwi.motions_of`.

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z, n).
    acquisition : Diffusion
    field : ndarray, optional
        (x, y, z) Hz, in undistorted space.
    encodings : sequence of PhaseEncoding
        (n,) of each volume, with a field.
    align : bool
        Whether motion is corrected.

    Returns
    -------
    places : list of Placement
        (n,) of each volume.
    motion : ndarray
        (n, 6) rotation, radian, and translation, mm.
    note : str
        How many volumes moved, or why none was registered; empty without alignment.
    """
    still = [Placement()] * image.shape[3]
    if field is not None:
        moved = {encoding: encoding.displacement(field) for encoding in set(encodings)}
        still = [Placement(np.eye(4), moved[encoding], encoding.axis) for encoding in encodings]
    if not align:
        return still, np.zeros((len(still), 6)), ""
    motions, note = motions_of(resample_series(image, still), acquisition)
    to_voxels = np.linalg.inv(image.affine)
    places = [
        place if motion is IDENTITY else replace(place, matrix=to_voxels @ motion.matrix @ image.affine)
        for place, motion in zip(still, motions, strict=True)
    ]
    return places, np.array([motion.parameters for motion in motions]), note
