"""Maps of the transmit field, brought to the unit of the models and to the grid of a series."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.images.volumes import make_image
from qmri_bidsapp.preprocess.rigid import IDENTITY, resample

#: Range of plausible medians of a relative field whose unit is stated, or that is a fraction.
PLAUSIBLE = (0.3, 3.0)
#: The same of percent that nothing but the values speaks for: a flip angle in degrees may have the same values.
PLAUSIBLE_PERCENT = (70.0, 140.0)
#: Median over ``FlipAngle`` that speaks for an effective flip angle in degrees.
PLAUSIBLE_OVER_NOMINAL = (0.7, 1.4)
#: Share of a voxel's neighbourhood, by linear weights, that must hold values.
MIN_WEIGHT = 1e-3


def relative_field(
    image: nib.Nifti1Image, factor: float | None, nominal_angle: float | None = None
) -> tuple[nib.Nifti1Image, str | None]:
    """Return the field as effective over nominal flip angle; zero where the map has no value.

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z).
    factor : float or None
        From stored values to the relative field. None: percent or a fraction, whichever makes the median plausible;
        refused where the values may be flip angles.
    nominal_angle : float or None
        Nominal flip angle of the map, degree, where it is known.

    Returns
    -------
    image : Nifti1Image
        (x, y, z) float32.
    note : str or None
        How the values were interpreted, where the sidecar has no unit.

    Raises
    ------
    InputError
        If the median is no plausible relative field, or, without a stated unit, may be a flip angle.
    """
    data = np.asarray(image.dataobj, dtype=np.float32)
    data = np.where(np.isfinite(data) & (data > 0), data, np.float32(0))
    median = float(np.median(data[data > 0])) if (data > 0).any() else 0.0
    if factor is not None:
        if not PLAUSIBLE[0] <= median * factor <= PLAUSIBLE[1]:
            raise _implausible(median, f" and Units that make it {median * factor:.3g}")
        return make_image(data * np.float32(factor), image), None
    ratio = median / nominal_angle if nominal_angle else 0.0
    if PLAUSIBLE_OVER_NOMINAL[0] <= ratio <= PLAUSIBLE_OVER_NOMINAL[1]:
        raise InputError(
            f"The map of the transmit field has no Units, and its median of {median:.3g} is near its FlipAngle of "
            f"{nominal_angle:g} degrees: is it the effective flip angle? State Units in its sidecar "
            '("degree", or "percent" or "1" if the values are relative).'
        )
    if PLAUSIBLE[0] <= median <= PLAUSIBLE[1]:
        return make_image(data, image), f"The TB1map has no Units; its median of {median:.3g} is taken as fraction."
    if not PLAUSIBLE_PERCENT[0] <= median <= PLAUSIBLE_PERCENT[1]:
        raise _implausible(median, " and no Units")
    note = (
        f"The TB1map has no Units; its median of {median:.3g} is taken as percent. If it holds flip angles, state "
        "Units degree and FlipAngle."
    )
    return make_image(data * np.float32(0.01), image), note


def _implausible(median: float, given: str) -> InputError:
    """Return an error that names the unit in which a median is plausible."""
    likely = "an offset of the scanner's frequency or an image, no field"
    for low, high, unit in (
        (0.3, 3.0, "a fraction"),
        (3.0, 140.0, "degrees or percent"),
        (140.0, 1500.0, "10 x degrees"),
    ):
        if low <= median < high:
            likely = unit
    return InputError(
        f"The map of the transmit field has a median of {median:.3g}{given}, which is no relative field; it may be in "
        f"{likely}. State Units (percent, 1, or degree with FlipAngle) in its sidecar."
    )


def onto_grid(image: nib.Nifti1Image, reference: nib.Nifti1Image) -> nib.Nifti1Image:
    """Interpolate a field linearly on the grid of a series, by the headers.

    Voxels of zero have no value and are left out of the interpolation, so that a masked map keeps its values at its
    edge.

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z).
    reference : Nifti1Image
        (x, y, z) or (x, y, z, n).

    Returns
    -------
    Nifti1Image
        (x, y, z) float32; NaN where the map has no value.

    Raises
    ------
    InputError
        If the map and the series do not overlap.
    """
    data = np.asarray(image.dataobj, dtype=np.float32)
    held = make_image((data > 0).astype(np.float32), image)
    weight = resample(held, reference, IDENTITY, order=1)
    known = weight > MIN_WEIGHT
    if not known.any():
        raise InputError("The map of the transmit field does not overlap the series; check the headers.")
    total = resample(image, reference, IDENTITY, order=1)
    return make_image(np.divide(total, weight, where=known, out=np.full_like(total, np.nan)), reference)
