"""NIfTI images to arrays and back: checked on the way in, whole on the way out, read in chunks."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError

from qmri_bidsapp.artifacts.atomic import atomic_file
from qmri_bidsapp.errors import InputError

#: Elements of affines may differ by this much (mm) within a series without a word: headers store them as float32.
AFFINE_TOLERANCE = 1e-3
#: Shift of any voxel, over the voxel size, that is taken for rounding by other programs: it is said.
MAX_SHIFT = 0.05
#: Share of an image's energy in negative values above which it is no magnitude. Interpolation leaves 1e-5 of it.
MAX_NEGATIVE_ENERGY = 0.01


def load_image(
    path: str | Path, *, ndim: int, may_be_zero: bool = False, is_magnitude: bool = False
) -> nib.Nifti1Image:
    """Read an image as float32, in memory.

    Parameters
    ----------
    path : path
        ``.nii`` or ``.nii.gz``.
    ndim : int
        Number of dimensions that it must have; trailing dimensions of length one do not count.
    may_be_zero : bool
        Whether nothing but zeros is a meaningful image, such as a phase.
    is_magnitude : bool
        Whether the image must be a magnitude.

    Raises
    ------
    InputError
        If the file is truncated or no image, holds complex or colour values, has another number of dimensions, if it
        or one of its volumes holds nothing but zeros or NaN, or if a magnitude holds negative values beyond the
        undershoot of interpolation.
    """
    try:
        image = nib.load(path)
        check_values_are_real(path, image)
        data = np.asarray(image.dataobj, dtype=np.float32)
    except FileNotFoundError as error:
        raise InputError(f"{path} cannot be read: there is no such file; check the name.") from error
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read as an image ({error}); the file may be truncated: copy it again."
        ) from error
    shape = _squeezed(data.shape, ndim)
    if len(shape) != ndim:
        raise InputError(f"{path} must have {ndim} dimensions, got shape {data.shape}; split or exclude it.")
    data = data.reshape(shape)
    for index, volume in enumerate(np.moveaxis(data, 3, 0) if ndim == 4 else [data]):
        what = f"Volume {index} of {path}" if ndim == 4 else str(path)
        finite = np.isfinite(volume)
        if not finite.any():
            raise InputError(f"{what} holds no finite value (all NaN); exclude it.")
        if not may_be_zero and not volume[finite].any():
            raise InputError(f"{what} holds nothing but zeros; exclude it.")
    if is_magnitude:
        _check_magnitude(path, data)
    header = image.header.copy()
    header.set_data_dtype(np.float32)
    header.set_slope_inter(1, 0)
    return nib.Nifti1Image(data, image.affine, header)


def check_values_are_real(path: str | Path, image: Any) -> None:
    """Raise InputError if an image holds complex numbers or colours, as its header says."""
    dtype = image.get_data_dtype()
    if dtype.kind == "c":
        raise InputError(
            f"{path} holds complex numbers ({dtype}), but one real number per voxel is needed; write the magnitude to "
            "this name. For inversion recoveries, write magnitude and phase (part-mag, part-phase) or real and "
            "imaginary part (part-real, part-imag), which restore the polarity."
        )
    if dtype.fields:
        raise InputError(f"{path} holds colours ({dtype}), but one real number per voxel is needed; exclude it.")


def _check_magnitude(path: str | Path, data: npt.NDArray[np.float32]) -> None:
    """Raise InputError if negative values hold more of the energy than interpolation leaves."""
    values = np.where(np.isfinite(data), data, 0).ravel()
    negative = np.minimum(values, 0)
    total = np.dot(values, values)
    share = float(np.dot(negative, negative) / total) if total else 0.0
    if share > MAX_NEGATIVE_ENERGY:
        raise InputError(
            f"{path} must be a magnitude, but negative values (down to {values.min():.4g}) hold {share:.0%} of its "
            "energy: its polarity was restored, or it is a real part; give the magnitude. Signed inversion recoveries "
            "need part-real and part-imag, or part-mag and part-phase, of every image."
        )


def compare_grids(
    path: str | Path, affine: npt.NDArray[Any], first: str | Path, other: npt.NDArray[Any], shape: tuple[int, ...]
) -> str | None:
    """Compare the affines of two images of one shape.

    Parameters
    ----------
    path, first : path
        The image, and the first one of its series.
    affine, other : ndarray
        (4, 4) of the image and of the first one.
    shape : tuple of int
        Of both.

    Returns
    -------
    str or None
        By how much the image is shifted, where that is more than the rounding of headers.

    Raises
    ------
    InputError
        If a voxel is shifted by more than `MAX_SHIFT` of the voxel size.
    """
    corners = np.array(np.meshgrid(*((0, n - 1) for n in shape[:3]))).reshape(3, -1)
    shift = float(np.linalg.norm((affine - other)[:3, :3] @ corners + (affine - other)[:3, 3:], axis=0).max())
    is_rounding = np.allclose(affine, other, atol=AFFINE_TOLERANCE)
    voxel = float(np.linalg.norm(other[:3, :3], axis=0).min())
    if not is_rounding and not shift <= MAX_SHIFT * voxel:
        raise InputError(
            f"The affine of {path} differs from that of {first} by up to {shift:.3g} mm within the image: a series "
            f"needs one geometry (within {MAX_SHIFT:.0%} of the voxel size of {voxel:.3g} mm); resample the images or "
            "exclude the series."
        )
    if is_rounding:
        return None
    return (
        f"The affine of {Path(path).name} differs by up to {shift:.2g} mm from that of the first image, which is used."
    )


def _squeezed(shape: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Drop trailing dimensions of length one beyond `ndim`."""
    while len(shape) > ndim and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def make_image(data: npt.NDArray[Any], like: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return an image with the geometry of another one and the dtype of `data` (bool becomes uint8)."""
    values = data.astype(np.uint8) if data.dtype == bool else data
    image = nib.Nifti1Image(values, like.affine, dtype=values.dtype)
    image.header.set_xyzt_units(*like.header.get_xyzt_units())
    image.set_sform(like.affine, int(like.header["sform_code"]) or 1)
    image.set_qform(like.affine, int(like.header["qform_code"]) or 1)
    return image


def save_image(image: nib.Nifti1Image, path: str | Path) -> str:
    """Write an image; the file appears whole or not at all.

    Returns
    -------
    str
        The path.
    """
    with atomic_file(path) as temporary:
        nib.save(image, temporary)
    return str(path)


def merge_series(
    files: Sequence[str | Path], *, ndim: int = 3, may_be_zero: bool = False, is_magnitude: bool = False
) -> nib.Nifti1Image:
    """Join 3-D or 4-D images into one (x, y, z, n) image, in the given order; for the options, see `load_image`.

    Raises
    ------
    InputError
        If one cannot be used, or if shapes or affines differ.
    """
    images = [load_image(name, ndim=ndim, may_be_zero=may_be_zero, is_magnitude=is_magnitude) for name in files]
    first = images[0]
    for name, image in zip(files, images, strict=True):
        if image.shape[:3] != first.shape[:3]:
            raise InputError(
                f"{name} has shape {image.shape}, but {files[0]} has {first.shape}: a series needs one shape."
            )
        compare_grids(name, image.affine, files[0], first.affine, first.shape)
    values = [np.asarray(image.dataobj) for image in images]
    return make_image(np.stack(values, axis=-1) if ndim == 3 else np.concatenate(values, axis=-1), first)


def grid_notes(files: Sequence[str | Path]) -> list[str]:
    """Return in what the affines of a series' images differ beyond rounding; see `compare_grids`."""
    images = [nib.load(name) for name in files]
    found = [
        compare_grids(name, image.affine, files[0], images[0].affine, image.shape)
        for name, image in zip(files, images, strict=True)
    ]
    return [note for note in found if note]


class VolumeData(Protocol):
    """A 4-D array, or nibabel's proxy of one in a file, which reads what is indexed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(x, y, z, n_measurements)."""

    def __getitem__(self, index: Any) -> Any:
        """Return the values of some voxels and measurements."""


def open_series(path: str | Path) -> tuple[VolumeData, tuple[float, ...]]:
    """Return the data of an uncompressed 4-D image, read only where it is indexed, and its voxel size (mm)."""
    image = nib.load(path, mmap=False)
    return image.dataobj, tuple(float(size) for size in image.header.get_zooms()[:3])


def iter_voxels(
    data: VolumeData, mask: npt.NDArray[np.bool_], chunk_size: int
) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]]:
    """Go through the masked voxels of a 4-D image, without reading it whole.

    It is read in slabs along the third axis, in the order of the file: any other order would touch every page of the
    file again and again.

    Parameters
    ----------
    data : array_like
        (x, y, z, n_measurements), e.g. from `open_series`.
    mask : ndarray
        (x, y, z) bool.
    chunk_size : int
        Largest number of voxels per chunk.

    Yields
    ------
    ndarray
        (n,) positions among the masked voxels, in C order of the mask.
    ndarray
        (n, n_measurements) float32.
    """
    if data.shape[:3] != mask.shape:
        raise InputError(f"The mask has shape {mask.shape}, but the series has {data.shape[:3]}.")
    position = np.cumsum(mask, dtype=np.intp).reshape(mask.shape) - 1
    thickness = max(1, chunk_size // (mask.shape[0] * mask.shape[1]))
    for first in range(0, mask.shape[2], thickness):
        slab = slice(first, first + thickness)
        # Transposed: the first axis varies fastest in the file and in memory.
        inside = mask[:, :, slab].T
        if not inside.any():
            continue
        index = position[:, :, slab].T[inside]
        signals = np.ascontiguousarray(data[:, :, slab].T[:, inside].T, dtype=np.float32)
        for start in range(0, len(index), chunk_size):
            part = slice(start, start + chunk_size)
            yield index[part], signals[part]


def fill(values: npt.NDArray[Any], mask: npt.NDArray[np.bool_], background: float) -> npt.NDArray[Any]:
    """Return an (x, y, z) array with `values` (in C order) in the mask and `background` elsewhere."""
    volume = np.full(mask.shape, background, dtype=values.dtype)
    volume[mask] = values
    return volume


def save_columns(
    values: npt.NDArray[Any],
    names: Sequence[str],
    mask_image: nib.Nifti1Image,
    folder: Path,
    background: float = np.nan,
) -> list[str]:
    """Write one 3-D image per column and return their paths.

    Parameters
    ----------
    values : ndarray
        (n_voxels, n_names) of the voxels in the mask, in C order.
    names : sequence of str
        File names without extension.
    mask_image : Nifti1Image
        (x, y, z), which gives the geometry.
    folder : Path
    background : float
        Value outside the mask.
    """
    mask = np.asarray(mask_image.dataobj) > 0
    return [
        save_image(make_image(fill(values[:, k], mask, background), mask_image), folder / f"{name}.nii")
        for k, name in enumerate(names)
    ]


def as_volume(image: Any) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Return a 3-D image as (x, y, z) float32, and its affine; that of an array is the identity.

    Parameters
    ----------
    image : array_like, nibabel image or path

    Raises
    ------
    InputError
        If it cannot be read or is not 3-D.
    """
    if isinstance(image, (str, Path)):
        image = load_image(image, ndim=3, may_be_zero=True)
    data, affine = (image.dataobj, image.affine) if hasattr(image, "dataobj") else (image, np.eye(4))
    values = _as_real(data)
    values = values.reshape(_squeezed(values.shape, 3))
    if values.ndim != 3:
        raise InputError(f"A 3-D image is needed, got shape {values.shape}.")
    return values, np.asarray(affine, dtype=np.float64)


def _as_real(data: Any) -> npt.NDArray[np.float32]:
    """Return float32 values; InputError if they are complex."""
    given = data if hasattr(data, "dtype") else np.asarray(data)
    if given.dtype.kind == "c":
        raise InputError(f"Real values are needed, got {given.dtype}; take the magnitude.")
    return np.asarray(given, dtype=np.float32)


def as_series(series: Any) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Return a series as (x, y, z, n_images) float32, and its affine; that of arrays is the identity.

    Parameters
    ----------
    series : array_like, nibabel image or path, or a list or tuple of 3-D ones
        4-D, or one 3-D image per measurement.

    Raises
    ------
    InputError
        If it cannot be read, is not 4-D, or the images differ in shape or affine.
    """
    if isinstance(series, (str, Path)):
        series = load_image(series, ndim=4)
    elif isinstance(series, (list, tuple)) and all(isinstance(item, (str, Path)) for item in series):
        series = merge_series(series)
    elif isinstance(series, (list, tuple)):
        parts = [as_volume(item) for item in series]
        if len({values.shape for values, _ in parts}) != 1:
            raise InputError(f"The images of a series need one shape, got {[values.shape for values, _ in parts]}.")
        for index, (values, affine) in enumerate(parts):
            compare_grids(f"image {index}", affine, "image 0", parts[0][1], values.shape)
        return np.stack([values for values, _ in parts], axis=-1), parts[0][1]
    data, affine = (series.dataobj, series.affine) if hasattr(series, "dataobj") else (series, np.eye(4))
    values = _as_real(data)
    if values.ndim != 4:
        raise InputError(f"A series needs four dimensions (x, y, z, images), got shape {values.shape}.")
    return values, np.asarray(affine, dtype=np.float64)
