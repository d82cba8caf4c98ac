"""Sign of inversion-recovery signals, which magnitudes lack, from their phase."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np
import numpy.typing as npt

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.images.volumes import make_image
from qmri_bidsapp.preprocess.recovery_signs import opposite_signs

#: Unit -> stored value of the phase pi, where ``Units`` is "arbitrary": numbers of 12 bits cover one circle or two.
HALF_CIRCLES = {"13 bits": 4096.0, "12 bits": 2048.0, "milliradian": 1000 * np.pi, "degrees": 180.0}
#: Of the largest value of its unit, a phase reaches at least this share: noise alone covers the circle.
MIN_REACH = 0.9
#: Largest phase, radian, that unwrapping may leave; more is another unit.
MAX_UNWRAPPED = 100.0
#: ``Units`` that say nothing.
ARBITRARY_UNITS = ("arbitrary", "a.u.", "au", "")
#: Share of the signal's energy that may contradict an inversion recovery before a note says so.
MAX_CONTRADICTION = 0.1
#: An image is refused if more than this share of its energy is in voxels whose magnitude asks for the opposite sign:
#: with phases that mean nothing it is half.
MAX_OPPOSITE = 0.6


def signed_series(
    first: nib.Nifti1Image, second: nib.Nifti1Image, part: str, unit: str | None, inversion_time: Sequence[float]
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
        ``Units`` of the phase: ``"rad"`` or ``"degree"``. For ``"arbitrary"`` or None the values must end where the
        circle does in radian, 12 or 13 bits, milliradian or degrees; if they fit several of these, the unit decides
        under which the signal rises with the inversion time.
    inversion_time : sequence of float
        (n,) s.

    Returns
    -------
    image : Nifti1Image
        (x, y, z, n) float32.
    note : str or None
        What the user should know.

    Raises
    ------
    InputError
        If the phase is in no known unit, or its values contradict the stated one; or if the magnitudes ask for the
        opposite sign of an image.
    """
    note = None
    values, other = (np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32)) for image in (first, second))
    if part == "imag":
        readings = [values + 1j * other]
    else:
        factors, note = phase_factors(other, unit)
        readings = [np.abs(values) * np.exp(1j * factor * other) for factor in factors]
    signed, contradiction = min((restore_sign(reading) for reading in readings), key=lambda found: found[1])
    opposite = opposite_signs(signed, np.asarray(inversion_time))
    if opposite.max() > MAX_OPPOSITE:
        worst = int(opposite.argmax())
        raise InputError(
            f"The image at inversion time {inversion_time[worst]:g} s has the wrong sign: by its magnitude "
            f"{opposite[worst]:.0%} of its signal has the other one. Correct its phase (or real and imaginary part), "
            'or fit the magnitudes ({"irt1": {"part": "mag"}} as --bids-filter-file).'
        )
    if contradiction > MAX_CONTRADICTION:
        note = (f"{note} " if note else "") + (
            f"Polarity: {contradiction:.0%} of the signal's energy contradicts an inversion recovery of one phase per "
            "voxel; compare with a fit of the magnitude (part mag in --bids-filter-file)."
        )
    return make_image(signed, first), note


def phase_factors(phase: npt.NDArray[np.float32], unit: str | None) -> tuple[Sequence[float], str | None]:
    """Return the factors that may turn stored phases into radian, and a note where the unit is a guess.

    Raises
    ------
    InputError
        If the unit is not known or contradicts the values, or the range fits none.
    """
    low, high = float(phase.min()), float(phase.max())
    name = (unit or "arbitrary").strip().lower()
    fitting = {what: np.pi / half for what, half in HALF_CIRCLES.items() if _ends_at(low, high, half)}
    stated = {"rad": 1.0, "deg": np.pi / 180}.get(name.removesuffix("s").removesuffix("ian").removesuffix("ree"))
    if stated is not None:
        if stated != 1.0:
            fitting.pop("degrees", None)
            fitting |= {"radian": 1.0} if _ends_at(low, high, np.pi) else {}
        if stated * max(-low, high) <= MAX_UNWRAPPED and not fitting:
            return (stated,), None
    elif name in ARBITRARY_UNITS:
        if high - low <= 2 * np.pi + 0.01 and not _ends_at(low, high, 1.0):
            return (1.0,), None
        if fitting:
            guesses = [what for what in fitting if what in ("milliradian", "degrees")]
            note = (
                f"The phase has no Units; values from {low:g} to {high:g} are taken as {guesses[0]}."
                if guesses
                else None
            )
            return tuple(fitting.values()), note
    likely = f" (are they in {' or '.join(fitting)}?)" if fitting else ""
    if not fitting and _ends_at(low, high, 1.0):
        likely = " (are they fractions of pi?)"
    raise InputError(
        f"The phase has Units {unit!r} and values from {low:g} to {high:g}{likely}: neither radian nor integers of 12 "
        "bits that cover the circle (-2048 to 2047, 0 to 4095 or -4096 to 4095); convert it to radian and state "
        "Units rad."
    )


def _ends_at(low: float, high: float, half: float) -> bool:
    """Return whether a range ends where a circle of ``2 * half`` does: -half to half, 0 to half, or 0 to 2 half."""
    tops = (half,) if low < 0 else (half, 2 * half)
    return any(MIN_REACH * top <= max(-low, high) <= 1.002 * top for top in tops)


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
