"""Sign of inversion-recovery signals, which magnitudes lack, from their phase."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np
import numpy.typing as npt

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.images.volumes import make_image

#: Stored value of the phase pi, where ``Units`` is "arbitrary": numbers of 12 bits cover one circle or two.
HALF_CIRCLES = (4096.0, 2048.0)
#: Share of the signal's energy that may contradict an inversion recovery before a note says so.
MAX_CONTRADICTION = 0.1


def signed_series(
    first: nib.Nifti1Image, second: nib.Nifti1Image, part: str, unit: str | None
) -> tuple[nib.Nifti1Image, str | None]:
    """Return an inversion-recovery series with its sign.

    Parameters
    ----------
    first : Nifti1Image
        (x, y, z, n) magnitudes or real parts, by ascending inversion time.
    second : Nifti1Image
        (x, y, z, n) phases or imaginary parts.
    part : str
        ``"phase"`` or ``"imag"``: what `second` is.
    unit : str or None
        ``Units`` of the phase: ``"rad"`` or ``"degree"``. For ``"arbitrary"`` or None the range of the values
        decides; if it fits one circle and two, the unit under which the signal rises with the inversion time.

    Returns
    -------
    image : Nifti1Image
        (x, y, z, n) float32.
    note : str or None
        What the user should know.

    Raises
    ------
    InputError
        If the phase is in no known unit.
    """
    values, other = (np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32)) for image in (first, second))
    if part == "imag":
        readings = [values + 1j * other]
    else:
        readings = [np.abs(values) * np.exp(1j * factor * other) for factor in phase_factors(other, unit)]
    signed, contradiction = min((restore_sign(reading) for reading in readings), key=lambda found: found[1])
    note = None
    if contradiction > MAX_CONTRADICTION:
        note = (
            f"Polarity: {contradiction:.0%} of the signal's energy contradicts an inversion recovery of one phase per "
            "voxel; compare with a fit of the magnitude (part mag in --bids-filter-file)."
        )
    return make_image(signed, first), note


def phase_factors(phase: npt.NDArray[np.float32], unit: str | None) -> Sequence[float]:
    """Return the factors that may turn stored phases into radian.

    Raises
    ------
    InputError
        If the unit is not known, or the range fits none.
    """
    name = (unit or "arbitrary").strip().lower()
    if name in ("rad", "radian", "radians"):
        return (1.0,)
    if name in ("deg", "degree", "degrees"):
        return (np.pi / 180,)
    low, high = float(phase.min()), float(phase.max())
    if high - low <= 2 * np.pi + 0.01:
        return (1.0,)
    fitting = [np.pi / half for half in HALF_CIRCLES if max(-low, high) <= half or (low >= 0 and high < 2 * half)]
    if name != "arbitrary" or not fitting:
        raise InputError(
            f"The phase has Units {unit!r} and values from {low:g} to {high:g}: neither radian nor -4096 to 4095; "
            "convert it to radian and state Units rad."
        )
    return fitting


def restore_sign(signal: npt.NDArray[np.complexfloating]) -> tuple[npt.NDArray[np.float32], float]:
    """Return the real signal of an inversion recovery, and the share of its energy that contradicts one.

    In one voxel all images have one phase or its opposite; doubled, the phases agree, and the sum of the squares is
    their common one, weighted as maximum likelihood asks. (The phase of the longest inversion time alone is noise where
    that image is near its null.) An offset per image, from drift between them, is removed in the same way. Which end of
    the axis is positive follows from the signal rising with the inversion time.

    Parameters
    ----------
    signal : ndarray
        (x, y, z, n) complex, by ascending inversion time.

    Returns
    -------
    signed : ndarray
        (x, y, z, n) float32.
    contradiction : float
        Energy off the common axis or in a fall of the signal, over all of it.
    """
    square = np.square(signal)
    axis = np.angle(square.sum(-1, keepdims=True)) / 2
    drift = np.angle((square * np.exp(-2j * axis)).sum((0, 1, 2))) / 2
    square = square * np.exp(-2j * drift)
    axis = np.angle(square.sum(-1, keepdims=True)) / 2
    aligned = signal * np.exp(-1j * (axis + drift))
    rise = (aligned.real * np.linspace(-1, 1, signal.shape[-1])).sum(-1, keepdims=True)
    signed = np.where(rise < 0, -aligned.real, aligned.real).astype(np.float32)
    fall = np.minimum(np.diff(signed, axis=-1), 0)
    energy = float(np.square(np.abs(signal)).sum())
    contradiction = float(np.square(aligned.imag).sum() + np.square(fall).sum()) / energy if energy else 0.0
    return signed, contradiction
