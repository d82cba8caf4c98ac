"""Brain masks of quantitative series: from the series, or from the T1w."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import nibabel as nib
import numpy as np
import numpy.typing as npt

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.images.volumes import make_image
from qmri_bidsapp.preprocess.rigid import IDENTITY, MIN_SLICES, register, resample

#: If a larger fraction of the in-plane border is bright, the field of view lies within the head.
INSIDE_HEAD = 0.25
#: Radius of the opening that separates scalp from brain, mm.
OPENING_RADIUS = 6.0
#: No brain is larger, litres; a mask that is holds more than the brain.
MAX_BRAIN = 2.2


def series_reference(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return the median magnitude of a 4-D series over its volumes, (x, y, z)."""
    return make_image(np.median(np.abs(np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32))), axis=3), image)


def series_mask(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Find the brain on a series itself: threshold (Otsu 1979), opening, largest part, holes filled.

    It also works on one or a few slices. Where the field of view lies within the head, all voxels with signal count.

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z, n).

    Returns
    -------
    Nifti1Image
        uint8 mask.

    Raises
    ------
    InputError
        If nothing remains.
    """
    from dipy.segment.threshold import otsu
    from scipy import ndimage

    data = np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32))
    strength = np.sqrt(np.mean(np.square(data), axis=3))
    smooth = ndimage.median_filter(strength, size=(3, 3, 1))
    # The logarithm keeps a few very bright voxels (fat, vessels) from setting the threshold.
    positive = smooth > 0
    if not positive.any():
        raise InputError("The series has no signal: no mask can be found.")
    logarithm = np.log(smooth, where=positive, out=np.full(smooth.shape, np.log(smooth[positive].min()), np.float32))
    bright = logarithm > otsu(logarithm[positive]) if np.ptp(logarithm) > 0 else positive
    if _border_fraction(bright) > INSIDE_HEAD:
        mask = strength > 0.02 * np.percentile(strength, 99)
    else:
        mask = _largest_after_opening(bright, np.linalg.norm(image.affine[:3, :3], axis=0))
    if not mask.any():
        raise InputError("No brain was found on the series: is it a head?")
    return make_image(mask, image)


def doubt_of_mask(mask: nib.Nifti1Image) -> str | None:
    """Return why a mask is not that of a brain, if so."""
    volume = float(np.asarray(mask.dataobj).astype(bool).sum() * abs(np.linalg.det(mask.affine[:3, :3]))) / 1e6
    if volume <= MAX_BRAIN:
        return None
    return (
        f"The brain mask found on the series has {volume:.1f} L, more than a brain (at most {MAX_BRAIN:g} L): it holds "
        "scalp or background as well. Add a T1w, from which the brain is extracted."
    )


def _border_fraction(bright: npt.NDArray[np.bool_]) -> float:
    """Return the bright fraction of the in-plane border of the field of view."""
    edges = (bright[0].ravel(), bright[-1].ravel(), bright[:, 0].ravel(), bright[:, -1].ravel())
    return float(np.concatenate(edges).mean())


def _largest_after_opening(bright: npt.NDArray[np.bool_], zooms: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Separate the brain from scalp and skull slice by slice, and keep the largest component."""
    from scipy import ndimage

    pixel = float(zooms[:2].mean())
    for radius in (OPENING_RADIUS, OPENING_RADIUS / 2, 0.0):
        steps = max(0, round(radius / pixel))
        core = _by_distance(bright, steps)
        labels, n_parts = ndimage.label(core)
        if not n_parts:
            continue
        sizes = ndimage.sum_labels(core, labels, range(1, n_parts + 1))
        core = labels == int(np.argmax(sizes)) + 1
        # Grow back by what the erosion took, within what was bright.
        grown = ndimage.distance_transform_edt(~core, sampling=[1, 1, 1e6]) <= steps + 0.5 if steps else core
        mask = grown & bright
        return np.stack([ndimage.binary_fill_holes(mask[..., k]) for k in range(mask.shape[2])], axis=2)
    return np.zeros_like(bright)


def _by_distance(bright: npt.NDArray[np.bool_], steps: int) -> npt.NDArray[np.bool_]:
    """Erode in plane by `steps` pixels."""
    from scipy import ndimage

    filled = np.stack([ndimage.binary_closing(bright[..., k]) | bright[..., k] for k in range(bright.shape[2])], axis=2)
    return ndimage.distance_transform_edt(filled, sampling=[1, 1, 1e6]) > steps


def transfer(
    t1w: nib.Nifti1Image,
    labels: Sequence[nib.Nifti1Image],
    reference: nib.Nifti1Image,
    *,
    skip: Collection[str] = (),
) -> tuple[list[nib.Nifti1Image], str | None]:
    """Bring label images from the T1w grid to the grid of a series.

    Parameters
    ----------
    t1w : Nifti1Image
        (x, y, z).
    labels : sequence of Nifti1Image
        On the same grid; the first is the brain mask.
    reference : Nifti1Image
        (x, y, z), an image of the series.
    skip : collection of str
        Steps left out, see `config.STEPS`: without ``"register"`` the headers must agree.

    Returns
    -------
    labels : list of Nifti1Image
        uint8, on the grid of the series.
    note : str or None
        Why the T1w was not registered.

    Raises
    ------
    InputError
        If the brain lies outside the series.
    """
    motion, note = IDENTITY, None
    if "register" in skip:
        pass
    elif reference.shape[2] < MIN_SLICES:
        note = (
            f"T1w to series registration left out: {reference.shape[2]} slices are too few (at least {MIN_SLICES}); "
            "the header geometry is used."
        )
    else:
        motion = register(reference, t1w, effort="far")
        if not motion.is_plausible:
            motion = IDENTITY
            note = "T1w to series registration failed (implausible rotation); the header geometry is used."
    moved = [make_image(resample(item, reference, motion, order=0).astype(np.uint8), reference) for item in labels]
    if not np.asarray(moved[0].dataobj).any():
        raise InputError("The brain of the T1w lies outside the series: check the affines of both.")
    return moved, note
