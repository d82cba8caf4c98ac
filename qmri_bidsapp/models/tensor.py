"""The diffusion tensor."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import SHELL_TOLERANCE, Acquisition, Diffusion
from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.models.base import SignalModel

#: Above this b-value (s/mm2) diffusion in tissue is visibly not Gaussian: where lower shells suffice, the
#: tensor is fitted to them alone (Jensen et al. 2005, Magn Reson Med 53:1432).
MAX_B_VALUE = 1500.0
#: Unknown elements of the tensor.
N_ELEMENTS = 6
_ELEMENT_BOUNDS = (-3e-3, 1e-2)


def design_matrix(acquisition: Diffusion) -> npt.NDArray[np.float64]:
    """Return the (n_measurements, 7) matrix with log signal = matrix @ unknowns.

    The unknowns are ln S0, Dxx, Dxy, Dyy, Dxz, Dyz, Dzz.
    """
    b_value = np.asarray(acquisition.b_value)
    x, y, z = np.asarray(acquisition.direction).reshape(-1, 3).T
    columns = (x * x, 2 * x * y, y * y, 2 * x * z, 2 * y * z, z * z)
    return np.column_stack([np.ones_like(b_value), *(-b_value * column for column in columns)])


def _element(name: str, description: str) -> Parameter:
    return Parameter(name, "mm2/s", _ELEMENT_BOUNDS, 1e-3, description, None, (-1e-3, 3e-3))


def _diffusivity(name: str, description: str) -> Parameter:
    return Parameter(name, "mm2/s", _ELEMENT_BOUNDS, 1e-3, description, None, (0.0, 3e-3))


class DiffusionTensor(SignalModel):
    r"""Gaussian diffusion.

    .. math:: S(b, g) = S_0 \exp(-b\, g^T D g)
    """

    name: ClassVar[str] = "tensor"
    title: ClassVar[str] = "Diffusion tensor"
    reference: ClassVar[str] = "Basser et al. 1994, J Magn Reson B 103:247"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("s0", "arbitrary", (0.0, 5.0), 1.0, "Signal without diffusion weighting"),
        _element("dxx", "Tensor element xx, voxel axes"),
        _element("dxy", "Tensor element xy, voxel axes"),
        _element("dyy", "Tensor element yy, voxel axes"),
        _element("dxz", "Tensor element xz, voxel axes"),
        _element("dyz", "Tensor element yz, voxel axes"),
        _element("dzz", "Tensor element zz, voxel axes"),
    )
    derived: ClassVar[tuple[Parameter, ...]] = (
        Parameter("fa", "1", (0.0, 1.0), 1.0, "Fractional anisotropy", None, (0.0, 1.0)),
        _diffusivity("md", "Mean diffusivity"),
        _diffusivity("ad", "Axial diffusivity"),
        _diffusivity("rd", "Radial diffusivity"),
    )
    acquisition_type: ClassVar[type[Acquisition]] = Diffusion
    bids_suffixes: ClassVar[tuple[str, ...]] = ("dwi",)

    def signal(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return (..., n_measurements) signals for (..., 7) parameters: s0, then the six elements."""
        if not isinstance(acquisition, Diffusion):
            raise ProtocolError(f"The tensor needs a diffusion protocol, got {type(acquisition).__name__}.")
        matrix = torch.as_tensor(design_matrix(acquisition)[:, 1:], dtype=theta.dtype, device=theta.device)
        return theta[..., :1] * torch.exp(theta[..., 1:] @ matrix.T)

    def derive(self, theta: torch.Tensor) -> torch.Tensor:
        """Return fractional anisotropy, mean, axial and radial diffusivity, (..., 4)."""
        xx, xy, yy, xz, yz, zz = theta[..., 1:].unbind(-1)
        rows = [torch.stack(row, dim=-1) for row in ((xx, xy, xz), (xy, yy, yz), (xz, yz, zz))]
        smallest, middle, largest = torch.linalg.eigvalsh(torch.stack(rows, dim=-2)).unbind(-1)
        mean = (xx + yy + zz) / 3
        off_diagonal = 2 * (xy.square() + xz.square() + yz.square())
        norm = xx.square() + yy.square() + zz.square() + off_diagonal
        deviation = (xx - mean).square() + (yy - mean).square() + (zz - mean).square() + off_diagonal
        tiny = torch.finfo(theta.dtype).tiny
        anisotropy = (1.5 * deviation / norm.clamp(min=tiny)).clamp(min=tiny).sqrt().clamp(max=1.0)
        return torch.stack([anisotropy, mean, largest, (smallest + middle) / 2], dim=-1)

    def adapt(self, acquisition: Acquisition) -> tuple[Acquisition, npt.NDArray[np.float64] | None]:
        """Leave out volumes above `MAX_B_VALUE` where the others determine the tensor.

        Scanners write b-values that vary a little within a shell: a shell of 1500 s/mm2 is not torn apart.
        """
        if not isinstance(acquisition, Diffusion):
            return acquisition, None
        keep = np.flatnonzero(np.asarray(acquisition.b_value) <= MAX_B_VALUE + SHELL_TOLERANCE)
        if len(keep) == acquisition.n_measurements or not len(keep):
            return acquisition, None
        reduced = acquisition.select(keep)
        if not _determines_tensor(reduced):
            return acquisition, None
        return reduced, np.eye(acquisition.n_measurements)[:, keep]

    def check(self, acquisition: Acquisition) -> None:
        """Ask for two b-values and six directions that do not lie on a common cone."""
        super().check(acquisition)
        if not isinstance(acquisition, Diffusion) or not _determines_tensor(acquisition):
            raise ProtocolError(
                f"Model {self.name} needs at least two b-values and 6 directions in general position; the "
                "gradient table does not determine the tensor; leave the model out with --models."
            )


def _determines_tensor(acquisition: Diffusion) -> bool:
    """Tell whether all elements and S0 can be found."""
    matrix = design_matrix(acquisition)
    scale = np.abs(matrix).max(axis=0)
    if np.any(scale == 0):
        return False
    return bool(np.linalg.cond(matrix / scale) < 1e3)
