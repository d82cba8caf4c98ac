"""Errors of simulated voxels over bins of their truths."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.uncertainty.space import unit_box

Array = npt.NDArray[np.float64]

#: Bins of the truth along one parameter.
N_BINS = 20
#: Bins with fewer voxels are left out.
MIN_PER_BIN = 20


def bins_of(places: Array, n_bins: int) -> npt.NDArray[np.intp]:
    """Return the bin, 0 to n_bins - 1, of each place along each axis, (n, d)."""
    offset, size = unit_box(places)
    return np.asarray(((places - offset) / size * n_bins).astype(np.intp).clip(0, n_bins - 1))


def moments(truth: npt.NDArray[np.float32], error: Array) -> dict[str, Any]:
    """Return mean truth, bias, standard deviation and RMSE of the errors, and their number."""
    if len(error) < MIN_PER_BIN:
        return {"truth": None, "bias": None, "std": None, "rmse": None, "n": len(error)}
    return {
        "truth": float(truth.mean(dtype=np.float64)),
        "bias": float(error.mean()),
        "std": float(error.std()),
        "rmse": float(np.sqrt(np.square(error).mean())),
        "n": len(error),
    }
