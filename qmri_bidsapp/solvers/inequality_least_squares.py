"""Least squares under linear inequalities, for many right-hand sides at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]

#: Steps, and over-relaxation of each (Eckstein and Bertsekas 1992, Math Program 55:293).
N_STEPS = 200
RELAXATION = 1.6
#: Weight of the constraints against the data.
PENALTY = 1.0


def non_negative_least_squares(design: Array, signals: Array, constraint: Array) -> Array:
    r"""Minimise :math:`\|X c - s\|^2` subject to :math:`A c \geq 0`, for many s at once.

    The alternating direction method of multipliers: all signals share X and A, so that one factorisation serves every
    step of every voxel, and the steps are products with small matrices (Boyd et al. 2011, Found Trends
    Mach Learn 3:1, section 5.2).

    Parameters
    ----------
    design : ndarray
        (n_measurements, n_coefficients) X.
    signals : ndarray
        (n_voxels, n_measurements).
    constraint : ndarray
        (n_constraints, n_coefficients) A.

    Returns
    -------
    ndarray
        (n_voxels, n_coefficients).
    """
    information, penalty = design.T @ design, constraint.T @ constraint
    # Both terms weigh alike on the average coefficient.
    weight = PENALTY * np.trace(information) / np.trace(penalty)
    inverse = np.linalg.inv(information + weight * penalty)
    start, gain, rows = (
        torch.as_tensor(value, dtype=torch.float32)
        for value in (signals @ design @ inverse, weight * constraint @ inverse, constraint)
    )
    split = (start @ rows.T).clamp(min=0)
    dual = torch.zeros_like(split)
    coefficients = start
    for _ in range(N_STEPS):
        coefficients = torch.addmm(start, split - dual, gain)
        value = torch.lerp(split, coefficients @ rows.T, RELAXATION)
        dual += value
        split = dual.clamp(min=0)
        dual -= split
    return np.asarray(coefficients, dtype=np.float64)
