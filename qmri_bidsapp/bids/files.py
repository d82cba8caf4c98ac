"""Labels in file names, and checks of image headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qmri_bidsapp.errors import InputError


def labels_of(path: str | Path) -> dict[str, str]:
    """Return BIDS key -> label of a file name, as written; pybids would turn ``run-01`` into the number 1."""
    return dict(part.split("-", 1) for part in Path(path).name.split("_") if "-" in part)


def open_image(path: str) -> Any:
    """Open an image and read its header only; InputError if it is no image."""
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    try:
        return nib.load(path)
    except (ImageFileError, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be opened as an image ({error}); copy it again.") from error


def check_headers(paths: list[str], *, ndim: int) -> tuple[int, ...]:
    """Check that images can be opened, are real, have the right number of dimensions, and share shape and affine.

    Returns
    -------
    tuple of int
        Their common shape.

    Raises
    ------
    InputError
        Naming the file.
    """
    import numpy as np

    from qmri_bidsapp.images.volumes import AFFINE_TOLERANCE, check_values_are_real

    first = None
    for path in paths:
        image = open_image(path)
        check_values_are_real(path, image)
        shape = image.shape
        while len(shape) > ndim and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != ndim:
            raise InputError(f"{path} must have {ndim} dimensions, got shape {image.shape}; split or exclude it.")
        if first is None:
            first = (path, shape, image.affine)
        elif shape != first[1]:
            raise InputError(f"{path} has shape {shape}, but {first[0]} has {first[1]}: a series needs one shape.")
        elif not np.allclose(image.affine, first[2], atol=AFFINE_TOLERANCE):
            raise InputError(
                f"The affine of {path} differs from that of {first[0]}: a series needs one geometry; "
                "resample the images or exclude the series."
            )
    if first is None:
        raise InputError("A series needs at least one image.")
    return first[1]
