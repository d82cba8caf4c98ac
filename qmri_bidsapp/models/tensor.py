"""The diffusion tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.parameters import Directional, Parameter
from qmri_bidsapp.core.prior import Prior
from qmri_bidsapp.models.cumulants import CumulantExpansion, gradient_table
from qmri_bidsapp.models.random_tensors import GaussianCompartments, mean_tensor

_ELEMENT_BOUNDS = (-3e-3, 1e-2)


def _element(axes: str) -> Parameter:
    description = f"Tensor element {axes}, axes of the gradient table"
    return Parameter(f"d{axes}", "mm2/s", _ELEMENT_BOUNDS, 1e-3, description, None, (-1e-3, 3e-3))


def _diffusivity(name: str, description: str) -> Parameter:
    return Parameter(name, "mm2/s", _ELEMENT_BOUNDS, 1e-3, description, None, (0.0, 3e-3))


S0 = Parameter("s0", "arbitrary", (0.0, 5.0), 1.0, "Signal without diffusion weighting")
ELEMENTS = tuple(_element(axes) for axes in ("xx", "xy", "yy", "xz", "yz", "zz"))
INVARIANTS = (
    Parameter("fa", "1", (0.0, 1.0), 1.0, "Fractional anisotropy", None, (0.0, 1.0), physical=(True, True)),
    _diffusivity("md", "Mean diffusivity"),
    _diffusivity("ad", "Axial diffusivity"),
    _diffusivity("rd", "Radial diffusivity"),
)


def quadratic_form(direction: torch.Tensor) -> torch.Tensor:
    """Return (..., 6) factors of the tensor's elements in g^T D g, for directions g (..., 3)."""
    x, y, z = direction.unbind(-1)
    return torch.stack([x * x, 2 * x * y, y * y, 2 * x * z, 2 * y * z, z * z], dim=-1)


def full_tensor(elements: torch.Tensor) -> torch.Tensor:
    """Return (..., 3, 3) symmetric tensors from (..., 6) elements xx, xy, yy, xz, yz, zz."""
    xx, xy, yy, xz, yz, zz = elements.unbind(-1)
    rows = [torch.stack(row, dim=-1) for row in ((xx, xy, xz), (xy, yy, yz), (xz, yz, zz))]
    return torch.stack(rows, dim=-2)


def invariants(elements: torch.Tensor) -> torch.Tensor:
    """Return fractional anisotropy, mean, axial and radial diffusivity, (..., 4), from (..., 6) elements."""
    xx, xy, yy, xz, yz, zz = elements.unbind(-1)
    smallest, middle, largest = torch.linalg.eigvalsh(full_tensor(elements)).unbind(-1)
    mean = (xx + yy + zz) / 3
    off_diagonal = 2 * (xy.square() + xz.square() + yz.square())
    norm = xx.square() + yy.square() + zz.square() + off_diagonal
    deviation = (xx - mean).square() + (yy - mean).square() + (zz - mean).square() + off_diagonal
    tiny = torch.finfo(elements.dtype).tiny
    anisotropy = (1.5 * deviation / norm.clamp(min=tiny)).clamp(min=tiny).sqrt().clamp(max=1.0)
    return torch.stack([anisotropy, mean, largest, (smallest + middle) / 2], dim=-1)


class DiffusionTensor(CumulantExpansion):
    r"""Gaussian diffusion.

    .. math:: S(b, g) = S_0 \exp(-b\, g^T D g)
    """

    name: ClassVar[str] = "tensor"
    title: ClassVar[str] = "Diffusion tensor"
    reference: ClassVar[str] = "Basser et al. 1994, J Magn Reson B 103:247"
    parameters: ClassVar[tuple[Parameter, ...]] = (S0, *ELEMENTS)
    derived: ClassVar[tuple[Parameter, ...]] = INVARIANTS
    directional: ClassVar[tuple[Directional, ...]] = (Directional(1, "rank-2"),)
    #: Above, diffusion in tissue is visibly not Gaussian (Jensen et al. 2005, Magn Reson Med 53:1432).
    max_b_value: ClassVar[float] = 1500.0
    needs: ClassVar[str] = "at least two b-values and 6 directions in general position"
    methods: ClassVar[str] = (
        "The diffusion tensor [@basser] was estimated by iterated weighted linear least squares on the log signal "
        "[@salvador], from volumes of b up to 1500 s/mm2 where these suffice."
    )
    bibliography: ClassVar[str] = """
    @article{basser,
      author = {Basser PJ, Mattiello J, Le Bihan D},
      year = {1994},
      title = {Estimation of the effective self-diffusion tensor from the NMR spin echo},
      journal = {Journal of Magnetic Resonance, Series B},
      volume = {103},
      pages = {247-254},
      doi = {10.1006/jmrb.1994.1037}
    }
    """

    def design_matrix(self, acquisition: Acquisition) -> torch.Tensor:
        """Return the (n_measurements, 7) matrix of ln S0, Dxx, Dxy, Dyy, Dxz, Dyz, Dzz."""
        b_value, direction = gradient_table(acquisition)
        return torch.cat([torch.ones_like(b_value), -b_value * quadratic_form(direction)], dim=-1)

    def derive(self, theta: torch.Tensor) -> torch.Tensor:
        """Return fractional anisotropy, mean, axial and radial diffusivity, (..., 4)."""
        return invariants(theta[..., 1:])

    def default_prior(self, ranges: Mapping[str, tuple[float, float]] | None = None) -> Prior:
        """Return tensors with positive eigenvalues; see `SignalModel.default_prior`."""
        return GaussianCompartments(self.parameters[1:], mean_tensor, ranges=ranges)
