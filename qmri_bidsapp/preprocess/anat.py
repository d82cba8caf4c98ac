"""T1-weighted images: bias field, brain mask, tissues."""

from __future__ import annotations

import platform
import sys

import nibabel as nib
import numpy as np

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.images.volumes import make_image
from qmri_bidsapp.preprocess.rigid import load_ants, to_ants
from qmri_bidsapp.preprocess.robex import robex_mask

#: N4 works on an image reduced by this factor; the field is smooth.
SHRINK_FACTOR = 4
#: A human brain, and what a head coil can hold, in litres.
BRAIN_VOLUME = (0.4, 2.5)
#: Labels of the tissues in every segmentation.
GM, WM, CSF = 1, 2, 3


def correct_bias(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Divide a T1w image by its bias field, found by N4 (Tustison et al. 2010).

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z).

    Returns
    -------
    Nifti1Image
        float32, not negative.
    """
    data = np.clip(np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32)), 0, None)
    source = to_ants(nib.Nifti1Image(data, image.affine))
    corrected = load_ants().n4_bias_field_correction(
        source, shrink_factor=SHRINK_FACTOR, convergence={"iters": [50, 50, 30], "tol": 1e-6}
    )
    return make_image(np.clip(corrected.numpy().astype(np.float32), 0, None), image)


def extract_brain(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Find the brain on a T1w image with ROBEX (Iglesias et al. 2011).

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z), bias corrected, whole head.

    Returns
    -------
    Nifti1Image
        uint8 mask.

    Raises
    ------
    InputError
        If ROBEX does not run on this machine or finds no plausible brain.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise InputError(
            f"Brain extraction (ROBEX) runs on Linux on x86-64 only, this is {sys.platform} on {platform.machine()}: "
            "use the container image."
        )
    try:
        mask = robex_mask(image)
    except RuntimeError as error:
        raise InputError(f"ROBEX found no brain on the T1w ({error}); is it a whole head?") from error
    litres = mask.sum() * np.abs(np.linalg.det(image.affine[:3, :3])) * 1e-6
    if not BRAIN_VOLUME[0] <= litres <= BRAIN_VOLUME[1]:
        raise InputError(
            f"The brain mask holds {litres:.2f} litres, a brain {BRAIN_VOLUME[0]} to {BRAIN_VOLUME[1]}: "
            "is the T1w a whole human head with a correct voxel size? Exclude it otherwise."
        )
    return make_image(mask, image)


def segment_tissues(image: nib.Nifti1Image, mask: nib.Nifti1Image) -> nib.Nifti1Image:
    """Label grey matter, white matter and cerebrospinal fluid with Atropos (Avants et al. 2011).

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z) T1w, bias corrected.
    mask : Nifti1Image
        Brain, on the same grid.

    Returns
    -------
    Nifti1Image
        uint8: 1 grey matter, 2 white matter, 3 cerebrospinal fluid.
    """
    ants = load_ants()
    brain = np.asarray(mask.dataobj) > 0
    box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in np.nonzero(brain))
    # Only the box around the brain: Atropos visits every voxel.
    data = np.ascontiguousarray(np.asarray(image.dataobj, dtype=np.float32)[box])
    inside = ants.from_numpy(brain[box].astype(np.float32))
    found = ants.atropos(a=ants.from_numpy(data), x=inside, i="kmeans[3]", m="[0.1,1x1x1]", c="[5,0]", r=0)
    # By default, Atropos seeds its random numbers from the clock; r=0 fixes the seed.
    # K-means orders its classes by intensity: on T1w, CSF is darkest and white matter brightest.
    lookup = np.array([0, CSF, GM, WM], dtype=np.uint8)
    labels = np.zeros(brain.shape, dtype=np.uint8)
    labels[box] = lookup[found["segmentation"].numpy().astype(int)]
    return make_image(labels * brain, image)
