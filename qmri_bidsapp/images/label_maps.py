"""Label maps of heads, from which virtual heads are made."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.estimators.spatial.recipe import N_HELD_OUT
from qmri_bidsapp.estimators.spatial.virtual_heads import crop, structures_of
from qmri_bidsapp.images.volumes import load_image


def load_heads(folder: Path) -> list[npt.NDArray[np.uint8]]:
    """Return the structures of all label maps in a folder, in the order of their names, cropped to the brain.

    Parameters
    ----------
    folder : Path
        With SynthSeg label maps, ``*.nii.gz``, more of them than training holds out.

    Returns
    -------
    list of ndarray
        (x, y, z) in canonical orientation, from `virtual_heads.structures_of`.

    Raises
    ------
    InputError
        If there are too few of them, or one holds other labels.
    """
    paths = sorted(folder.glob("*.nii.gz"))
    if len(paths) <= N_HELD_OUT:
        raise InputError(f"{folder} must hold more than {N_HELD_OUT} label maps (*.nii.gz), got {len(paths)}.")
    heads = []
    for path in paths:
        image = nib.as_closest_canonical(load_image(path, ndim=3))
        try:
            heads.append(crop(structures_of(np.asarray(image.dataobj).round())))
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
    return heads
