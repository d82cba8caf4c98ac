"""Rotations of tissue: fibre directions and symmetric tensors.

A symmetric tensor of even rank is equivalent to a homogeneous polynomial of a direction, which is a series of
spherical harmonics of even degree up to the rank (Descoteaux et al. 2006, Magn Reson Med 56:395). Its values along
enough directions determine its elements.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import sph_harm_y

from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.directions import angles_of, unit_vector
from qmri_bidsapp.models.kurtosis import quartic_form
from qmri_bidsapp.models.tensor import quadratic_form

#: Directions, spread evenly, along which polynomials of degree four are compared.
N_POINTS = 24
#: Factors of a tensor's elements in its value along a direction, by rank.
FORMS = {2: quadratic_form, 4: quartic_form}


def real_harmonics(
    polar: npt.NDArray[np.float64], azimuth: npt.NDArray[np.float64], highest: int
) -> npt.NDArray[np.float64]:
    """Return real orthonormal spherical harmonics of even degree, (n_directions, n_harmonics).

    Parameters
    ----------
    polar, azimuth : ndarray
        (n_directions,) angles, radian.
    highest : int
        Highest degree. Columns ascend by degree, and within a degree by order, from the lowest negative one.
    """
    harmonics = []
    for degree in range(0, highest + 1, 2):
        for order in range(-degree, degree + 1):
            value = sph_harm_y(degree, abs(order), polar, azimuth)
            harmonics.append(value.real if order == 0 else np.sqrt(2) * (value.real if order > 0 else value.imag))
    return np.stack(harmonics, axis=1)


@lru_cache(maxsize=8)
def _tables(rank: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return directions (n_points, 3) and matrices from values along them to elements and to harmonics."""
    x = (np.arange(N_POINTS) + 0.5) / N_POINTS
    azimuth = np.pi * (3 - np.sqrt(5)) * np.arange(N_POINTS)
    radius = np.sqrt(1 - x**2)
    direction = np.stack([x, radius * np.cos(azimuth), radius * np.sin(azimuth)], axis=1)
    form = FORMS[rank](torch.tensor(direction)).numpy()
    harmonics = real_harmonics(np.arccos(x), azimuth, rank)
    return direction, np.linalg.pinv(form), np.asarray(np.linalg.pinv(harmonics), dtype=np.float64)


def rotation_of_elements(rotation: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the matrix that rotates the elements of a tensor.

    Parameters
    ----------
    rotation : Tensor
        (n, 3, 3), with the new axes as rows.
    rank : {2, 4}

    Returns
    -------
    Tensor
        (n, n_elements, n_elements); its product with the elements in the old axes are the elements in the new ones.
    """
    direction, to_elements, _ = (torch.as_tensor(table).to(rotation) for table in _tables(rank))
    return to_elements @ FORMS[rank](direction @ rotation)


def harmonics_of_elements(rotation: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the matrix from elements in the old axes to spherical harmonics about the first new axis.

    Parameters
    ----------
    rotation, rank
        As for `rotation_of_elements`.

    Returns
    -------
    Tensor
        (n, n_elements, n_elements); coefficients of real orthonormal harmonics by ascending degree, orders from the
        lowest negative one.
    """
    direction, _, to_harmonics = (torch.as_tensor(table).to(rotation) for table in _tables(rank))
    return to_harmonics @ FORMS[rank](direction @ rotation)


def turn(model: SignalModel, theta: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Return rotated tissue.

    Parameters
    ----------
    model : SignalModel
    theta : Tensor
        (n, n_columns), as in `SignalModel.signal`.
    rotation : Tensor
        (n, 3, 3), of the same dtype: a direction g of the tissue becomes ``rotation @ g``.
    """
    turned = theta.clone()
    for part in model.directional:
        columns = slice(part.first, part.columns.stop)
        if part.kind == "axis":
            axis = rotation @ unit_vector(theta[:, columns]).unsqueeze(-1)
            turned[:, columns] = angles_of(axis.squeeze(-1))
        else:
            rank = 2 if part.kind == "rank-2" else 4
            matrix = rotation_of_elements(rotation, rank)
            turned[:, columns] = (matrix @ theta[:, columns].unsqueeze(-1)).squeeze(-1)
    return turned
