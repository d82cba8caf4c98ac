"""Fields from gradient-echo field maps, in Hz, smooth and on the grid of an EPI."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from qmri_bidsapp.core.phase_encoding import PhaseEncoding
from qmri_bidsapp.errors import InputError
from qmri_bidsapp.images.volumes import make_image
from qmri_bidsapp.preprocess.bending import Bending, solve
from qmri_bidsapp.preprocess.polarity import phase_factors
from qmri_bidsapp.preprocess.resampling import distort_volume
from qmri_bidsapp.preprocess.rigid import IDENTITY, Rigid, head_points, register, resample, too_small
from qmri_bidsapp.preprocess.susceptibility import FieldEstimate

Mask = npt.NDArray[np.bool_]

#: Hz per stored unit of a ``fieldmap``.
HERTZ = {"hz": 1.0, "rad/s": 1 / (2 * np.pi), "t": 42.577478e6}
#: Plausible differences of two echo times, s.
PLAUSIBLE_DELAY = (2e-4, 5e-2)
#: No head has a median field beyond, Hz: the values are in another unit.
MAX_MEDIAN = 1000.0
#: Weights of the bending energy that are tried, mm^4, relative to the inverse variance of a voxel.
WEIGHTS = (1e5, 1e4, 1e3, 1e2, 1e1)
#: Share of voxels that choose the weight, held out; and the seed that draws them.
HELD_OUT, SEED = 0.1, 1
N_SOLVE, SOLVE_TOLERANCE = 60, 0.01
#: Motion from the field map to the EPI below this, voxels of the EPI, is not corrected: registration across contrasts
#: is hardly more precise.
MIN_MOTION = 0.5


@dataclass(frozen=True)
class FieldMap:
    """A measured field.

    Attributes
    ----------
    field : Nifti1Image
        (x, y, z) float32 Hz, in undistorted space, as measured.
    magnitude : Nifti1Image
        (x, y, z) on the same grid.
    mask : ndarray
        (x, y, z) bool, where there is signal.
    notes : tuple of str
    """

    field: nib.Nifti1Image
    magnitude: nib.Nifti1Image
    mask: Mask
    notes: tuple[str, ...] = ()


def from_phase_difference(
    phase: nib.Nifti1Image, magnitude: nib.Nifti1Image, echo_times: tuple[float, float], unit: str | None = None
) -> FieldMap:
    """Return the field of a ``phasediff``.

    Parameters
    ----------
    phase : Nifti1Image
        (x, y, z), radian or integers that cover the circle (-4096 to 4095, 0 to 4095 and the like).
    magnitude : Nifti1Image
        (x, y, z) of the first echo, or the mean of both.
    echo_times : tuple of float
        Of both echoes, s.
    unit : str or None
        ``Units`` of the sidecar.

    Raises
    ------
    InputError
        If shapes or units do not fit, or the echo times are no difference of milliseconds.
    """
    radian, notes = _radian(phase, unit)
    return _from_wrapped(radian, phase, magnitude, echo_times, notes)


def from_phases(
    first: nib.Nifti1Image,
    second: nib.Nifti1Image,
    magnitude: nib.Nifti1Image,
    echo_times: tuple[float, float],
    unit: str | None = None,
) -> FieldMap:
    """Return the field of ``phase1`` and ``phase2``; see `from_phase_difference`."""
    if first.shape != second.shape:
        raise InputError(f"phase1 and phase2 must have the same shape, got {first.shape} and {second.shape}.")
    (early, notes), (late, _) = _radian(first, unit), _radian(second, unit)
    return _from_wrapped(late - early, first, magnitude, echo_times, notes)


def from_field(image: nib.Nifti1Image, magnitude: nib.Nifti1Image | None, unit: str) -> FieldMap:
    """Return the field of a ``fieldmap``, whose sidecar must state ``Units``: Hz, rad/s or T."""
    factor = HERTZ.get(unit.strip().lower())
    if factor is None:
        raise InputError(f"The Units of a fieldmap must be Hz, rad/s or T, got {unit!r}.")
    values = np.asarray(image.dataobj, dtype=np.float32) * np.float32(factor)
    known = np.isfinite(values) & (values != 0)
    if magnitude is not None:
        _same_grid(image, magnitude)
        known &= _signal(np.asarray(magnitude.dataobj, dtype=np.float32))
    if not known.any() or abs(np.median(values[known])) > MAX_MEDIAN:
        raise InputError(f"The fieldmap holds no plausible field in {unit}: check its Units.")
    strength = make_image(known.astype(np.float32), image) if magnitude is None else magnitude
    return FieldMap(make_image(np.nan_to_num(values), image), strength, known)


def on_epi(field_map: FieldMap, epi: nib.Nifti1Image, encoding: PhaseEncoding, *, device: str = "cpu") -> FieldEstimate:
    """Return a field map on the grid of an EPI.

    The field is smoothed, and continued beyond the head, by the smallest bending energy; held-out voxels choose its
    weight. It lies in undistorted space, as the field of a pair does. To find motion between both, the magnitude is
    distorted as the EPI is and registered to it.

    Parameters
    ----------
    field_map : FieldMap
    epi : Nifti1Image
        (x, y, z), b = 0.
    encoding : PhaseEncoding
        Of the EPI, with a readout time.
    device : str
        Torch device.

    Raises
    ------
    InputError
        If the readout time of the EPI is not known, or the field map does not overlap it.
    """
    if encoding.readout is None:
        raise InputError(
            "A field map in Hz needs the readout time of the EPI, which its sidecar does not give: add "
            "TotalReadoutTime or EffectiveEchoSpacing."
        )
    smooth, weight, error = _smoothed(field_map, device)
    field, known = _placed(smooth, field_map, epi, IDENTITY)
    if not known.any():
        raise InputError("The field map does not overlap the EPI; check the headers.")
    motion, notes = _motion(field_map, field, epi, encoding)
    if motion is not IDENTITY:
        field, known = _placed(smooth, field_map, epi, motion)
    return FieldEstimate(
        field=field,
        std=np.where(known, error, np.nan).astype(np.float32),
        determined=known,
        in_hertz=True,
        weight=weight,
        notes=(*field_map.notes, *notes),
    )


def _radian(image: nib.Nifti1Image, unit: str | None) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Return phases in radian, and notes. Where several units fit, the values cover one full circle."""
    values = np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32))
    factors, note = phase_factors(values, unit)
    return values * np.float32(max(factors)), [note] if note else []


def _from_wrapped(
    radian: npt.NDArray[np.float32],
    image: nib.Nifti1Image,
    magnitude: nib.Nifti1Image,
    echo_times: tuple[float, float],
    notes: list[str],
) -> FieldMap:
    """Unwrap a phase difference (Herraez et al. 2002, Appl Opt 41:7437) and divide by the time that it took."""
    from skimage.restoration import unwrap_phase

    _same_grid(image, magnitude)
    delay = echo_times[1] - echo_times[0]
    if not PLAUSIBLE_DELAY[0] <= delay <= PLAUSIBLE_DELAY[1]:
        raise InputError(
            f"EchoTime2 - EchoTime1 is {delay:g} s; a field map has {PLAUSIBLE_DELAY[0]:g} to {PLAUSIBLE_DELAY[1]:g} s."
        )
    mask = _signal(np.asarray(magnitude.dataobj, dtype=np.float32))
    wrapped = np.angle(np.exp(1j * radian))
    flat = min(radian.shape) < 2
    masked = np.ma.array(np.squeeze(wrapped) if flat else wrapped, mask=np.squeeze(~mask) if flat else ~mask)
    phase = np.reshape(np.ma.filled(unwrap_phase(masked, rng=SEED), 0), radian.shape)
    # Unwrapping leaves a multiple of the circle open; the scanner's frequency is set to the head's.
    phase = phase - 2 * np.pi * np.round(np.median(phase[mask]) / (2 * np.pi))
    return FieldMap(make_image((phase / (2 * np.pi * delay)).astype(np.float32), image), magnitude, mask, tuple(notes))


def _same_grid(image: nib.Nifti1Image, magnitude: nib.Nifti1Image) -> None:
    if image.shape[:3] != magnitude.shape[:3]:
        raise InputError(f"Field map and magnitude must have the same shape, got {image.shape} and {magnitude.shape}.")


def _signal(magnitude: npt.NDArray[np.float32]) -> Mask:
    """Return where a magnitude image has signal: the largest region above Otsu's threshold of its logarithm."""
    from dipy.segment.threshold import otsu

    smooth = ndimage.median_filter(np.nan_to_num(magnitude), size=3)
    if not (smooth > 0).any():
        raise InputError("The magnitude of the field map has no signal.")
    logarithm = np.log(np.clip(smooth, smooth[smooth > 0].min(), None))
    labels, n_parts = ndimage.label(logarithm > otsu(logarithm))
    if not n_parts:
        raise InputError("The magnitude of the field map is uniform: it shows no head.")
    return np.asarray(labels == 1 + np.argmax(ndimage.sum_labels(labels > 0, labels, range(1, n_parts + 1))))


def _smoothed(field_map: FieldMap, device: str) -> tuple[nib.Nifti1Image, float, float]:
    """Return the smooth field everywhere, the weight of the bending energy, and the rms error at held-out voxels, Hz.

    A voxel counts by its squared magnitude, as the variance of its phase asks; twice, those far off what their
    neighbours say (phase noise at edges, errors of unwrapping) are given less weight.
    """
    values = torch.from_numpy(np.ascontiguousarray(field_map.field.dataobj, dtype=np.float32)).to(device)
    strength = np.where(field_map.mask, np.nan_to_num(np.asarray(field_map.magnitude.dataobj, dtype=np.float32)), 0)
    strength = strength / np.median(strength[field_map.mask])
    precision = torch.from_numpy((np.clip(strength, 0, 2) ** 2).astype(np.float32)).to(device)
    bending = Bending(values.shape, np.linalg.norm(field_map.field.affine[:3, :3], axis=0).tolist(), values.device)
    centre = float(values[precision > 0].median())
    held = (torch.rand(values.shape, generator=torch.Generator().manual_seed(SEED)) < HELD_OUT).to(device)

    def fit(precision: torch.Tensor, weight: float) -> torch.Tensor:
        average = float(precision.mean())
        return centre + solve(
            lambda field: precision * field + weight * bending.gradient(field),
            precision * (values - centre),
            bending.preconditioner(weight, 0.0, average),
            n_steps=N_SOLVE,
            tolerance=SOLVE_TOLERANCE,
        )

    def error(field: torch.Tensor, where: torch.Tensor) -> float:
        deviation = (precision.sqrt() * (field - values)).abs()[where & (precision > 0)]
        return 1.4826 * float(deviation.median())

    errors = [error(fit(precision * ~held, weight), held) for weight in WEIGHTS]
    weight = WEIGHTS[int(np.argmin(errors))]
    everywhere = torch.ones_like(held)
    robust = precision
    for _ in range(2):
        field = fit(robust, weight)
        deviation = precision.sqrt() * (field - values) / max(error(field, everywhere), 1e-6)
        robust = precision / (1 + (deviation / 3) ** 2)
    field = fit(robust, weight)
    known = values[precision > 0]
    # Linear continuation far from the head would leave every plausible range.
    field = field.clamp(float(known.min()), float(known.max()))
    return make_image(field.cpu().numpy(), field_map.field), weight, min(errors)


def _placed(
    smooth: nib.Nifti1Image, field_map: FieldMap, epi: nib.Nifti1Image, motion: Rigid
) -> tuple[npt.NDArray[np.float32], Mask]:
    """Return the field on the grid of the EPI, zero beyond the map, and where it was measured."""
    field = np.nan_to_num(resample(smooth, epi, motion, order=3))
    near = make_image(field_map.mask.astype(np.uint8), field_map.field)
    return field.astype(np.float32), resample(near, epi, motion, order=0) > 0


def _motion(
    field_map: FieldMap, field: npt.NDArray[np.float32], epi: nib.Nifti1Image, encoding: PhaseEncoding
) -> tuple[Rigid, list[str]]:
    """Return the motion from the EPI to the field map, and notes."""
    if too_small(epi) or np.ptp(np.asarray(field_map.magnitude.dataobj)) == 0:
        return IDENTITY, []
    magnitude = np.nan_to_num(resample(field_map.magnitude, epi, IDENTITY, order=3))
    distorted = distort_volume(magnitude, encoding.displacement(field), encoding.axis)
    motion = register(epi, make_image(distorted.astype(np.float32), epi), effort="near")
    distance = motion.displacement(head_points(epi))
    if not motion.is_plausible or distance < MIN_MOTION * float(np.linalg.norm(epi.affine[:3, :3], axis=0).mean()):
        return IDENTITY, []
    return motion, [f"The head moved by {distance:.1f} mm between field map and EPI; the field map was moved with it."]
