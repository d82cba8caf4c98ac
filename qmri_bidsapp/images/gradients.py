"""Gradient tables in FSL's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.acquisition import B0_THRESHOLD
from qmri_bidsapp.errors import InputError

#: Vectors within this distance of unit length are normalised; others are an error.
NORM_TOLERANCE = 0.05


def read_gradients(
    bval_file: str | Path, bvec_file: str | Path, n_volumes: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Read b-values and directions.

    Parameters
    ----------
    bval_file, bvec_file : path
        One row of b-values, s/mm2; three rows of direction components (three columns are understood as well).
    n_volumes : int
        Number of volumes of the image.

    Returns
    -------
    b_value : ndarray
        (n_volumes,) s/mm2.
    direction : ndarray
        (n_volumes, 3) unit vectors in FSL's convention; zeros where the b-value is zero, or is at most `B0_THRESHOLD`
        and the file gives no unit vector.

    Raises
    ------
    InputError
        If a file cannot be read, counts disagree, or a diffusion-weighted volume has no unit vector.
    """
    b_value = _read_numbers(bval_file).ravel()
    if len(b_value) != n_volumes:
        raise InputError(f"{bval_file} holds {len(b_value)} b-values, but the image has {n_volumes} volumes.")
    return _checked(b_value, np.atleast_2d(_read_numbers(bvec_file)), str(bval_file), str(bvec_file))


def as_gradients(bvals: Any, bvecs: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return b-values (n_volumes,) and directions (n_volumes, 3) of arrays or files; see `read_gradients`."""
    b_value, direction = (
        _read_numbers(given) if isinstance(given, (str, Path)) else np.asarray(given, dtype=np.float64)
        for given in (bvals, bvecs)
    )
    files = [str(given) if isinstance(given, (str, Path)) else None for given in (bvals, bvecs)]
    return _checked(b_value.ravel(), np.atleast_2d(direction), files[0] or "bvals", files[1] or "bvecs")


def _checked(
    b_value: npt.NDArray[np.float64], direction: npt.NDArray[np.float64], bval_name: str, bvec_name: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return b-values and unit vectors, or raise InputError with the name of what is wrong."""
    n_volumes = len(b_value)
    if direction.shape == (3, n_volumes):
        direction = direction.T
    if direction.shape != (n_volumes, 3):
        raise InputError(
            f"{bvec_name} must hold 3 x {n_volumes} numbers, got {direction.shape[0]} x {direction.shape[1]}."
        )
    if np.any(b_value < 0) or not np.all(np.isfinite(b_value)):
        raise InputError(f"{bval_name} holds negative or undefined b-values.")
    norm = np.linalg.norm(direction, axis=1)
    is_unit = np.abs(norm - 1) <= NORM_TOLERANCE
    bad = (b_value > B0_THRESHOLD) & ~is_unit
    if np.any(bad):
        first = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"{bvec_name}: the direction of volume {first} (b = {b_value[first]:g} s/mm2) must be a unit vector, "
            f"got length {norm[first]:.3g}."
        )
    unit = np.zeros_like(direction)
    # Low b-values attenuate too: their volumes keep their directions.
    weighted = is_unit & (b_value > 0)
    unit[weighted] = direction[weighted] / norm[weighted, None]
    return b_value, unit


def _read_numbers(path: str | Path) -> npt.NDArray[np.float64]:
    try:
        rows = [[float(word) for word in line.split()] for line in Path(path).read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a table of numbers ({error}).") from error
    if not rows or len({len(row) for row in rows}) != 1:
        raise InputError(f"{path} is empty or has rows of different lengths.")
    return np.array(rows)


def format_gradients(b_value: npt.NDArray[np.float64], direction: npt.NDArray[np.float64]) -> tuple[str, str]:
    """Return the texts of a ``.bval`` and of a ``.bvec`` file.

    Parameters
    ----------
    b_value : ndarray
        (n_volumes,) s/mm2.
    direction : ndarray
        (n_volumes, 3).
    """
    bval = " ".join(f"{value:g}" for value in b_value)
    bvec = "\n".join(" ".join(f"{value:.6f}" for value in row) for row in direction.T)
    return f"{bval}\n", f"{bvec}\n"
