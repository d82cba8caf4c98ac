"""Maps of the transmit field, brought to the unit of the models and to the grid of a series."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.images.volumes import make_image
from qmri_bidsapp.preprocess.rigid import IDENTITY, resample

#: Range of plausible medians of a relative field.
PLAUSIBLE = (0.3, 3.0)
#: Share of a voxel's neighbourhood, by linear weights, that must hold values.
MIN_WEIGHT = 1e-3


def relative_field(image: nib.Nifti1Image, factor: float | None) -> tuple[nib.Nifti1Image, str | None]:
    """Return the field as effective over nominal flip angle; zero where the map has no value.

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z).
    factor : float or None
        From stored values to the relative field. None: percent or a fraction, whichever makes the median plausible.

    Returns
    -------
    image : Nifti1Image
        (x, y, z) float32.
    note : str or None
        How the values were interpreted, where the sidecar has no unit.

    Raises
    ------
    InputError
        If the median is no plausible relative field.
    """
    data = np.asarray(image.dataobj, dtype=np.float32)
    data = np.where(np.isfinite(data) & (data > 0), data, np.float32(0))
    median = float(np.median(data[data > 0])) if (data > 0).any() else 0.0
    factors = {"as given": factor} if factor is not None else {"as fraction": 1.0, "as percent": 0.01}
    taken = [name for name, value in factors.items() if PLAUSIBLE[0] <= median * value <= PLAUSIBLE[1]]
    if not taken:
        raise InputError(
            f"The map of the transmit field has a median of {median:.3g}, which is no relative field in percent or as "
            "a fraction; state Units (percent, 1, or degree with FlipAngle) in its sidecar."
        )
    note = None if factor is not None else f"The TB1map has no Units; its median of {median:.3g} is taken {taken[0]}."
    return make_image(data * np.float32(factors[taken[0]]), image), note


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
