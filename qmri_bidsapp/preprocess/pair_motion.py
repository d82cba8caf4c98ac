"""Rigid motion between two EPIs of opposite phase encoding, estimated beside the displacement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import expm, logm
from scipy.ndimage import affine_transform
from scipy.stats import f

from qmri_bidsapp.preprocess.bending import difference
from qmri_bidsapp.preprocess.pair_fit import MISFIT, Misfit, PairFit
from qmri_bidsapp.preprocess.rigid import Rigid
from qmri_bidsapp.preprocess.stillness import BLOCK, LEVEL, MIN_BLOCKS

#: Motions that are possible without a look at the images: standard deviation of translations, mm, and rotations.
TRANSLATION, ROTATION = 5.0, np.deg2rad(5.0)
#: Planes of rotation and axes of translation, in the order of `PairMotion`; none along the last, the phase-encoding
#: axis, where it would be a constant field.
TRANSLATIONS, PLANES = (0, 1), ((0, 1), (0, 2), (1, 2))
N_MOTION = len(TRANSLATIONS) + len(PLANES)


@dataclass(frozen=True)
class PairMotion:
    """A rigid motion on a grid.

    Attributes
    ----------
    matrix : ndarray
        (4, 4), mm along the axes of the grid, from its centre.
    order : tuple of int
        Axes of the grid, the phase-encoding axis last.
    zooms : ndarray
        (3,) mm.
    shape : tuple of int
        (3,) of the grid.
    """

    matrix: npt.NDArray[np.float64]
    order: tuple[int, ...]
    zooms: npt.NDArray[np.float64]
    shape: tuple[int, ...]

    @classmethod
    def none(cls, order: tuple[int, ...], zooms: npt.NDArray[np.float64], shape: tuple[int, ...]) -> PairMotion:
        """Return the motion of a head that lies still."""
        return cls(np.eye(4), order, zooms, shape)

    @property
    def is_none(self) -> bool:
        """Whether the head lies still."""
        return bool(np.array_equal(self.matrix, np.eye(4)))

    @property
    def parameters(self) -> npt.NDArray[np.float64]:
        """(5,) translations, mm, and rotations, radian."""
        generator = np.real(logm(self.matrix))
        order = self.order
        return np.array(
            [generator[order[axis], 3] for axis in TRANSLATIONS]
            + [generator[order[first], order[second]] for first, second in PLANES]
        )

    def moved(self, parameters: npt.NDArray[np.floating]) -> PairMotion:
        """Return the motion after a further one, by parameters as above."""
        generator = np.zeros((4, 4))
        for axis, value in zip(TRANSLATIONS, parameters, strict=False):
            generator[self.order[axis], 3] = value
        for (first, second), value in zip(PLANES, parameters[len(TRANSLATIONS) :], strict=True):
            generator[self.order[first], self.order[second]] = value
            generator[self.order[second], self.order[first]] = -value
        return replace(self, matrix=self.matrix @ expm(generator))

    @property
    def _voxels(self) -> npt.NDArray[np.float64]:
        """(4, 4) the motion, from voxels to voxels of the grid."""
        to_mm = np.diag([*self.zooms, 1.0])
        to_mm[:3, 3] = -self.zooms * (np.array(self.shape) - 1) / 2
        return np.linalg.inv(to_mm) @ self.matrix @ to_mm

    def rigid(self, affine: npt.NDArray[np.float64]) -> Rigid:
        """Return the motion in RAS mm, for a grid with an affine."""
        return Rigid(affine @ self._voxels @ np.linalg.inv(affine))

    def resample(self, moving: nib.Nifti1Image, reference: nib.Nifti1Image) -> npt.NDArray[np.float32]:
        """Return the moving image on the grid, (x, y, z) float32, by cubic splines; its edge beyond it."""
        matrix = np.linalg.inv(moving.affine) @ reference.affine @ self._voxels
        data = np.asarray(moving.dataobj, dtype=np.float32)
        if np.allclose(matrix, np.eye(4), atol=1e-4):
            return data
        return np.asarray(affine_transform(data, matrix[:3, :3], matrix[:3, 3], order=3, mode="nearest"))


def motion_step(fit: PairFit, displacement: torch.Tensor, motion: PairMotion) -> tuple[PairMotion, torch.Tensor]:
    """Take a Gauss-Newton step for motion and displacement together.

    Changed alone, either would hold the other back: a rotation looks much like a field.
    """
    misfit = fit.misfit(displacement)
    columns, responses, normal = _columns(fit, displacement, misfit)
    slope = (columns.T @ misfit.residual.reshape(-1)).cpu().numpy() / MISFIT**2
    slope -= _products(responses, [fit.gradient(displacement, misfit)])[:, 0]
    change = np.asarray(-np.linalg.solve(normal, slope), dtype=np.float64)
    followed = displacement - sum(value * field for value, field in zip(change.tolist(), responses, strict=True))
    return motion.moved(change), followed if fit.is_allowed(followed) else displacement


def has_moved(fit: PairFit, displacement: torch.Tensor, motion: PairMotion) -> bool:
    """Return whether a motion exceeds its own uncertainty, as estimated from blocks (see `stillness`)."""
    misfit = fit.misfit(displacement)
    columns, responses, normal = _columns(fit, displacement, misfit)
    blocks = _blocks(fit, misfit)
    n = int(blocks.max()) + 1
    if n < MIN_BLOCKS:
        return False
    followed = torch.stack([difference(misfit.slope * field, 2).reshape(-1) for field in responses], dim=1)
    products = (columns - followed) * (misfit.residual.reshape(-1, 1) / MISFIT**2)
    scores = torch.zeros((n, N_MOTION), dtype=torch.float64, device=fit.device)
    scores.index_add_(0, blocks, products.double())
    inverse = np.linalg.inv(normal)
    covariance = inverse @ (n * np.cov(scores.cpu().numpy().T)) @ inverse
    parameters = motion.parameters
    statistic = parameters @ np.linalg.pinv(covariance, hermitian=True) @ parameters
    return bool(f.sf(statistic * (n - N_MOTION) / (N_MOTION * (n - 1)), N_MOTION, n - N_MOTION) < LEVEL)


def _columns(
    fit: PairFit, displacement: torch.Tensor, misfit: Misfit
) -> tuple[torch.Tensor, list[torch.Tensor], npt.NDArray[np.float64]]:
    """Return what a change of motion does.

    Returns
    -------
    columns : Tensor
        (voxel, parameter) derivatives of the residual.
    responses : list of Tensor
        Of each parameter: minus the change of the displacement that follows.
    normal : ndarray
        (parameter, parameter) curvature of the cost once the displacement has followed.
    """
    gradient = torch.gradient(fit.down, spacing=[float(value) for value in fit.spacing])
    place = _places(fit)
    derivatives = [gradient[axis] for axis in TRANSLATIONS]
    derivatives += [gradient[first] * place[second] - gradient[second] * place[first] for first, second in PLANES]
    columns = [-fit.pushed(derivative, displacement) * misfit.inside for derivative in derivatives]
    pulled = [fit.pulled(column, misfit) for column in columns]
    responses = [fit.solve(field, displacement, misfit) for field in pulled]
    normal = _products(columns, columns) / MISFIT**2 - _products(pulled, responses)
    variance = float(misfit.residual[misfit.head].square().mean()) / MISFIT**2
    spread = [TRANSLATION] * len(TRANSLATIONS) + [ROTATION] * len(PLANES)
    normal = (normal + normal.T) / 2 + np.diag(variance / np.square(spread))
    return torch.stack([column.reshape(-1) for column in columns], dim=1), responses, normal


def _products(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> npt.NDArray[np.float64]:
    """Return the inner products of all of the first with all of the second."""
    return np.array([[float((one * other).sum(dtype=torch.float64)) for other in second] for one in first])


def _places(fit: PairFit) -> list[torch.Tensor]:
    """Return coordinates of voxels, mm, about the centre of the image along each axis, for broadcasting."""
    return [
        ((torch.arange(size, device=fit.device) - (size - 1) / 2) * fit.spacing[axis]).reshape(
            [-1 if i == axis else 1 for i in range(3)]
        )
        for axis, size in enumerate(fit.down.shape)
    ]


def _blocks(fit: PairFit, misfit: Misfit) -> torch.Tensor:
    """Return the number of the block of each voxel, (voxel,)."""
    number = torch.zeros(misfit.up.shape, dtype=torch.long, device=fit.device)
    for axis, size in enumerate(misfit.up.shape):
        index = (torch.arange(size, device=fit.device) * fit.spacing[axis] / BLOCK).floor().long()
        number = number * (int(index.max()) + 1) + index.reshape([-1 if i == axis else 1 for i in range(3)])
    return torch.unique(number.reshape(-1), return_inverse=True)[1]
