"""Labels in file names, and checks of image headers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from qmri_bidsapp.errors import InputError

#: BIDS keys whose labels are numbers.
NUMBERED = ("run", "echo", "flip", "inv", "chunk")


def labels_of(path: str | Path) -> dict[str, str]:
    """Return BIDS key -> label of a file name, as written; pybids would turn ``run-01`` into the number 1."""
    return dict(part.split("-", 1) for part in Path(path).name.split("_") if "-" in part)


def same_labels_of(path: str | Path) -> dict[str, str]:
    """Return BIDS key -> label of a file name, numbers without leading zeros: ``run-1`` and ``run-01`` are one run."""
    labels = labels_of(path)
    return labels | {key: labels[key].lstrip("0") or "0" for key in NUMBERED if labels.get(key, "").isdigit()}


def is_label(text: str) -> bool:
    """Return whether a text may be a label of BIDS: letters and digits."""
    return re.fullmatch("[0-9A-Za-z+]+", text) is not None


def check_is_here(path: str | Path) -> None:
    """Raise InputError if a path is a link to nowhere, or the text of one, as datalad leaves it until it is fetched."""
    file = Path(path)
    is_text = file.is_file() and file.stat().st_size < 1000 and b"annex/objects" in file.read_bytes()
    if is_text or (file.is_symlink() and not file.exists()):
        raise InputError(
            f"{path} is a link to a file that is not here: fetch it (datalad get, git annex get) or exclude its series."
        )


def open_image(path: str) -> Any:
    """Open an image and read its header only; InputError if it is absent or no image."""
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    check_is_here(path)
    try:
        return nib.load(path)
    except (ImageFileError, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be opened as an image ({error}); copy it again.") from error


def slice_axis(image: Any) -> int:
    """Return the axis along which slices lie: as the header says, or the one whose voxel size alone differs, or 2."""
    from nibabel.affines import voxel_sizes

    stated = image.header.get_dim_info()[2]
    if stated is not None:
        return int(stated)
    sizes = voxel_sizes(image.affine)
    for axis, others in ((0, sizes[1:]), (1, sizes[::2])):
        if abs(others[0] / others[1] - 1) < 0.02 and abs(sizes[axis] / others[0] - 1) > 0.1:
            return axis
    return 2


def shape_of(path: str, image: Any, *, ndim: int) -> tuple[int, ...]:
    """Return the shape of an image without trailing axes of length one.

    Raises
    ------
    InputError
        If it has another number of dimensions.
    """
    shape: tuple[int, ...] = image.shape
    while len(shape) > ndim and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == ndim:
        return shape
    needed = {3: "one volume, (x, y, z)", 4: "a series of volumes, (x, y, z, volume)"}[ndim]
    remedies = {
        2: "write a single slice with a third axis of length 1",
        3: "write all volumes into one file",
        4: "write each volume to a file of its own, with the entity that numbers it, such as echo-1",
    }
    remedy = remedies.get(len(shape), "split it")
    raise InputError(f"{path} must hold {needed}, but its shape is {image.shape}: {remedy}, or exclude it.")


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
    from qmri_bidsapp.images.volumes import check_values_are_real, compare_grids

    first = None
    for path in paths:
        image = open_image(path)
        check_values_are_real(path, image)
        shape = shape_of(path, image, ndim=ndim)
        if first is None:
            first = (path, shape, image.affine)
        elif shape != first[1]:
            raise InputError(f"{path} has shape {shape}, but {first[0]} has {first[1]}: a series needs one shape.")
        else:
            compare_grids(path, image.affine, first[0], first[2], shape)
    if first is None:
        raise InputError("A series needs at least one image.")
    return first[1]
