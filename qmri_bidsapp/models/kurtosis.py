"""Diffusional kurtosis."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import combinations_with_replacement
from math import factorial, prod
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.parameters import Directional, Parameter
from qmri_bidsapp.core.prior import Prior
from qmri_bidsapp.models.cumulants import CumulantExpansion, gradient_table
from qmri_bidsapp.models.random_tensors import GaussianCompartments, mean_tensor
from qmri_bidsapp.models.tensor import ELEMENTS, INVARIANTS, S0, full_tensor, invariants, quadratic_form

#: Axes of the distinct elements of a fully symmetric tensor of order four: (0, 0, 0, 1) is xxxy, which stands
#: for four equal elements.
AXES = tuple(combinations_with_replacement(range(3), 4))
_REPEATS = [factorial(4) // prod(factorial(axes.count(axis)) for axis in range(3)) for axes in AXES]
#: The lowest kurtosis is that of water in small spheres (Jensen et al. 2005, Magn Reson Med 53:1432).
MIN_KURTOSIS = -3 / 7
#: Least diffusivity along a direction, mm2/s: noise can make it negative, and kurtosis divides by it.
MIN_DIFFUSIVITY = 1e-6
#: Quadrature nodes from pole to pole for the mean over all directions: its error is 2e-4 of the mean kurtosis
#: at a ratio of axial to radial diffusivity of 5, and 2e-3 at 10.
N_POLAR = 12
#: Nodes over half a turn for the mean over the directions around the principal one.
N_AROUND = 8


def _element(axes: tuple[int, ...]) -> Parameter:
    name = "".join("xyz"[axis] for axis in axes)
    description = (
        f"Element {name} of the kurtosis tensor times the squared mean diffusivity, axes of the gradient table"
    )
    return Parameter(f"v{name}", "mm4/s2", (-5e-5, 5e-5), 1e-6, description, saved=False)


def _kurtosis(name: str, highest: float, description: str) -> Parameter:
    return Parameter(name, "1", (MIN_KURTOSIS, highest), 1.0, description, None, (0.0, 2.0))


def quartic_form(direction: torch.Tensor) -> torch.Tensor:
    """Return (..., 15) factors of the elements `AXES` in sum_ijkl V_ijkl g_i g_j g_k g_l, for g (..., 3)."""
    g = direction.unbind(-1)
    pairs = {(i, j): g[i] * g[j] for i, j in combinations_with_replacement(range(3), 2)}
    columns = [n * pairs[axes[:2]] * pairs[axes[2:]] for n, axes in zip(_REPEATS, AXES, strict=True)]
    return torch.stack(columns, dim=-1)


class DiffusionKurtosis(CumulantExpansion):
    r"""Gaussian diffusion and the first departure from it.

    .. math::
        \ln S(b, g) = \ln S_0 - b\, g^T D g + \frac{b^2}{6} \sum_{ijkl} V_{ijkl}\, g_i g_j g_k g_l,
        \quad V = \bar D^2 W

    ``W`` is the kurtosis tensor, and kurtosis along g is :math:`K(g) = V(g) / D(g)^2`. Mean kurtosis is its
    mean over all directions, axial kurtosis its value along the principal eigenvector of ``D``, radial
    kurtosis its mean over the directions perpendicular to that one; the means are taken by quadrature.
    """

    name: ClassVar[str] = "kurtosis"
    title: ClassVar[str] = "Diffusional kurtosis"
    reference: ClassVar[str] = "Jensen et al. 2005, Magn Reson Med 53:1432; Tabesh et al. 2011, Magn Reson Med 65:823"
    parameters: ClassVar[tuple[Parameter, ...]] = (S0, *ELEMENTS, *(_element(axes) for axes in AXES))
    derived: ClassVar[tuple[Parameter, ...]] = (
        *INVARIANTS,
        _kurtosis("mk", 3.0, "Mean kurtosis"),
        _kurtosis("ak", 10.0, "Axial kurtosis"),
        _kurtosis("rk", 10.0, "Radial kurtosis"),
    )
    directional: ClassVar[tuple[Directional, ...]] = (Directional(1, "rank-2"), Directional(7, "rank-4"))
    #: The expansion holds up to about 3 / (D K), 3000 s/mm2 in brain (Jensen and Helpern 2010, NMR Biomed
    #: 23:698); with room for the scatter of a shell.
    max_b_value: ClassVar[float] = 3000.0
    #: Usual protocols have 35 to 70, down to 15 well-spread directions; shells of 1000 and 1050 s/mm2, 250.
    max_condition: ClassVar[float] = 200.0
    needs: ClassVar[str] = "at least two shells beside b = 0 and 15 directions in general position"
    methods: ClassVar[str] = (
        "Where there were at least two shells, mean, axial and radial kurtosis [@jensen] [@tabesh] were estimated "
        "from volumes of b up to 3000 s/mm2 where these suffice, by iterated weighted linear least squares on the "
        "log signal [@salvador]."
    )
    bibliography: ClassVar[str] = """
    @article{jensen,
      author = {Jensen JH, Helpern JA, Ramani A, Lu H, Kaczynski K},
      year = {2005},
      title = {Diffusional kurtosis imaging: the quantification of non-Gaussian water diffusion by means of magnetic
        resonance imaging},
      journal = {Magnetic Resonance in Medicine},
      volume = {53},
      pages = {1432-1440},
      doi = {10.1002/mrm.20508}
    }
    @article{tabesh,
      author = {Tabesh A, Jensen JH, Ardekani BA, Helpern JA},
      year = {2011},
      title = {Estimation of tensors and tensor-derived measures in diffusional kurtosis imaging},
      journal = {Magnetic Resonance in Medicine},
      volume = {65},
      pages = {823-836},
      doi = {10.1002/mrm.22655}
    }
    """

    def design_matrix(self, acquisition: Acquisition) -> torch.Tensor:
        """Return the (n_measurements, 22) matrix of ln S0, the elements of D and those of V."""
        b_value, direction = gradient_table(acquisition)
        first, second = -b_value * quadratic_form(direction), b_value.square() / 6 * quartic_form(direction)
        return torch.cat([torch.ones_like(b_value), first, second], dim=-1)

    def derive(self, theta: torch.Tensor) -> torch.Tensor:
        """Return FA, mean, axial and radial diffusivity, mean, axial and radial kurtosis, (..., 7)."""
        diffusion, kurtosis = theta[..., 1:7], theta[..., 7:]
        direction, weight = (torch.as_tensor(table).to(theta) for table in _quadrature())
        along = (diffusion @ quadratic_form(direction).T).clamp(min=MIN_DIFFUSIVITY)
        mean = (kurtosis @ quartic_form(direction).T / along.square()) @ weight
        principal, first, second = _frame(full_tensor(diffusion))
        angle = (torch.arange(N_AROUND).to(theta) * (torch.pi / N_AROUND)).unsqueeze(-1)
        around = angle.cos() * first.unsqueeze(-2) + angle.sin() * second.unsqueeze(-2)
        axial = _kurtosis_along(principal.unsqueeze(-2), diffusion, kurtosis).squeeze(-1)
        radial = _kurtosis_along(around, diffusion, kurtosis).mean(-1)
        return torch.cat([invariants(diffusion), torch.stack([mean, axial, radial], dim=-1)], dim=-1)

    def default_prior(self, ranges: Mapping[str, tuple[float, float]] | None = None) -> Prior:
        """Return the tensors of three Gaussian compartments; see `SignalModel.default_prior`.

        Only draws for which the expansion holds are kept: the signal falls along every direction up to `max_b_value`,
        so that K is at most 3 / (b D) (Tabesh et al. 2011, equation 6).
        """
        return GaussianCompartments(self.parameters[1:], _cumulants, 3, ranges=ranges, is_plausible=_is_falling)


def _cumulants(fractions: npt.NDArray[np.float64], tensors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the elements of D and V, (n, 21): V(g) is three times the variance of the diffusivities along g."""
    deviation = tensors - np.einsum("nk,nkij->nij", fractions, tensors)[:, None]

    def covariance(i: int, j: int, k: int, m: int) -> npt.NDArray[np.float64]:
        return np.asarray((fractions * deviation[:, :, i, j] * deviation[:, :, k, m]).sum(axis=1))

    fourth = [covariance(i, j, k, m) + covariance(i, k, j, m) + covariance(i, m, j, k) for i, j, k, m in AXES]
    return np.column_stack([mean_tensor(fractions, tensors), *fourth])


def _is_falling(elements: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return whose signals fall along every direction up to the largest b-value, (n,) bool."""
    direction = torch.as_tensor(_quadrature()[0])
    diffusion, kurtosis = elements[:, :6], elements[:, 6:]
    slope = DiffusionKurtosis.max_b_value * kurtosis @ quartic_form(direction).T.numpy()
    return np.asarray((slope <= 3 * diffusion @ quadratic_form(direction).T.numpy()).all(axis=1))


@cache
def _quadrature() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the directions (n, 3) and the weights (n,) of a mean over all directions.

    Gauss-Legendre nodes in the cosine to the pole, equal steps around it: exact for polynomials in g of
    degree below 2 `N_POLAR`. Opposite directions are equivalent, so that half a turn is enough. The cache holds arrays,
    not tensors, as a tensor may belong to a transform.
    """
    cosine, polar_weight = np.polynomial.legendre.leggauss(N_POLAR)
    azimuth = np.arange(N_POLAR) * np.pi / N_POLAR
    sine = np.sqrt(1 - cosine**2)
    x, y = np.outer(sine, np.cos(azimuth)), np.outer(sine, np.sin(azimuth))
    direction = np.stack([x, y, np.broadcast_to(cosine[:, None], x.shape)], axis=-1).reshape(-1, 3)
    return direction, np.repeat(polar_weight / (2 * N_POLAR), N_POLAR)


def _kurtosis_along(direction: torch.Tensor, diffusion: torch.Tensor, kurtosis: torch.Tensor) -> torch.Tensor:
    """Return K (..., n) along directions (..., n, 3), from the elements of D (..., 6) and of V (..., 15)."""
    along = (quadratic_form(direction) * diffusion.unsqueeze(-2)).sum(-1).clamp(min=MIN_DIFFUSIVITY)
    return (quartic_form(direction) * kurtosis.unsqueeze(-2)).sum(-1) / along.square()


def _frame(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return three perpendicular unit vectors (..., 3), the first the principal eigenvector.

    Torch's derivative of eigenvectors is infinite as soon as two eigenvalues meet. Perturbation theory gives
    that of the principal one: it turns towards another eigenvector by their element of the change over the
    gap of their eigenvalues. The other two need only stay perpendicular to it.
    """
    fixed = tensor.detach()
    values, vectors = torch.linalg.eigh(fixed)
    principal, others = vectors[..., 2], vectors[..., :2].unbind(-1)
    change = ((tensor - fixed) @ principal.unsqueeze(-1)).squeeze(-1)
    turned = principal
    for index, other in enumerate(others):
        gap = values[..., 2] - values[..., index]
        slope = torch.where(gap > 0, 1 / gap.clamp(min=torch.finfo(gap.dtype).tiny), 0.0)
        turned = turned + (slope * (other * change).sum(-1)).unsqueeze(-1) * other
    first, second = (other - (turned * other).sum(-1, keepdim=True) * turned for other in others)
    return turned, first, second
