"""Even functions of a cosine as Legendre series, and the moments of the Watson distribution.

The signal of an axially symmetric fibre depends on the direction of measurement only through the cosine x of the
angle between the two, and is even in it: a handful of coefficients describes any number of directions.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numpy.polynomial import legendre
from scipy.special import ive

#: Largest error of a truncated series, relative to the signal without diffusion weighting.
TRUNCATION_ERROR = 1e-6
#: Quadrature nodes for the Watson distribution: errors below 1e-11 for concentrations up to 64, l up to 40.
N_WATSON_NODES = 32


class Series(NamedTuple):
    """Constants of a Legendre series with terms l = 0, 2, ..., 2 (n_terms - 1).

    Attributes
    ----------
    degree : Tensor
        (n_terms,) l.
    nodes : Tensor
        (n_terms,) cosines between 0 and 1 at which a function must be known.
    project : Tensor
        (n_terms, n_terms); ``f(nodes) @ project`` are the coefficients of f.
    differentiate : Tensor
        (n_terms, n_terms); ``coefficients @ differentiate`` are those of f'(x) / x.
    to_basis : Tensor
        (n_terms, n_terms); ``coefficients @ to_basis @ basis(x, n_terms)`` is f(x).
    """

    degree: torch.Tensor
    nodes: torch.Tensor
    project: torch.Tensor
    differentiate: torch.Tensor
    to_basis: torch.Tensor


def n_terms(exponent: float) -> int:
    """Return the number of terms that represent exp(-y x^2), 0 <= y <= exponent, within `TRUNCATION_ERROR`.

    The Chebyshev coefficients of the exponential are 2 exp(-y/2) I_k(y/2) (Abramowitz and Stegun 1964, 9.6.34); an
    interpolating series errs by at most about twice the first neglected term.
    """
    orders = np.arange(2, 400)
    return int(orders[np.argmax(4 * ive(orders, exponent / 2) < TRUNCATION_ERROR)])


def even_legendre(cosine: npt.NDArray[np.float64], terms: int) -> npt.NDArray[np.float64]:
    """Return P_l(cosine), l = 0, 2, ..., (n, terms)."""
    return np.asarray(legendre.legvander(cosine, 2 * terms - 2)[:, ::2], dtype=np.float64)


def half_gauss(n_nodes: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return nodes and weights, (n_nodes,) each, for the integral from 0 to 1 of an even function."""
    nodes, weights = (np.asarray(values, dtype=np.float64) for values in legendre.leggauss(2 * n_nodes))
    return nodes[n_nodes:], weights[n_nodes:]


def series(terms: int, like: torch.Tensor) -> Series:
    """Return the constants of a series of `terms` terms, with the dtype and device of `like`."""
    return Series(*(torch.as_tensor(value, dtype=like.dtype, device=like.device) for value in _constants(terms)))


@lru_cache(maxsize=64)
def _constants(terms: int) -> tuple[npt.NDArray[np.float64], ...]:
    """Return what `Series` holds, in double precision; tensors are not kept, as they may belong to a transform."""
    degree = 2.0 * np.arange(terms)
    nodes, weights = half_gauss(terms)
    polynomials = even_legendre(nodes, terms)
    project = weights[:, None] * polynomials * (2 * degree + 1)
    # (1 - x^2) P_l' = l (P_{l-1} - x P_l), with P_{l-1} of odd degree.
    odd = np.asarray(legendre.legvander(nodes, 2 * terms - 1)[:, 1::2], dtype=np.float64)
    odd = np.column_stack([np.zeros(terms), odd[:, :-1]])
    slope = degree * (odd / nodes[:, None] - polynomials) / (1 - nodes**2)[:, None]
    sign = np.where(np.arange(terms) % 4 < 2, 1, -1)
    chebyshev = sign * np.cos(degree * np.arccos(nodes)[:, None])
    constants = (degree, nodes, project, slope.T @ project, np.linalg.solve(chebyshev, polynomials).T)
    return tuple(np.asarray(value, dtype=np.float64) for value in constants)


def basis(cosine: torch.Tensor, terms: int) -> torch.Tensor:
    """Return (n, terms, m) polynomials of cosines (n, m), which `Series.to_basis` refers to.

    They are Chebyshev's T_k(2 x^2 - 1), with signs + + - - + + ... for which their recurrence,
    T_k = 2 u T_(k-1) - T_(k-2), is a single multiplication and addition; most of the time is spent here.
    """
    argument = 2 * cosine.square() - 1
    values = [torch.ones_like(argument), argument]
    for k in range(2, terms):
        values.append(torch.addcmul(values[k - 2], argument, values[k - 1], value=2.0 if k % 2 else -2.0))
    return torch.stack(values[:terms], dim=-2)


@lru_cache(maxsize=64)
def _watson_tables(terms: int) -> tuple[npt.NDArray[np.float64], ...]:
    """Return 1 - x^2 and weights (n_nodes,), and the polynomials (n_nodes, terms)."""
    nodes, weights = half_gauss(N_WATSON_NODES)
    return 1 - nodes**2, weights, even_legendre(nodes, terms)


def watson_moments(kappa: torch.Tensor, terms: int) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return the Legendre moments of the Watson distribution and their derivatives.

    .. math::
        w_l(\kappa) = \langle P_l \rangle = \frac{\int_0^1 P_l(x) e^{\kappa x^2} dx}{\int_0^1 e^{\kappa x^2} dx},
        \quad \frac{d w_l}{d \kappa} = \langle x^2 P_l \rangle - \langle x^2 \rangle \langle P_l \rangle

    Parameters
    ----------
    kappa : Tensor
        (...) concentration, 0 to 64.
    terms : int
        Number of even degrees l = 0, 2, ...

    Returns
    -------
    moments, slopes : Tensor
        (..., terms).
    """
    complement, weights, polynomials = (
        torch.as_tensor(value, dtype=kappa.dtype, device=kappa.device) for value in _watson_tables(terms)
    )
    density = weights * torch.exp(-kappa.unsqueeze(-1) * complement)
    density = density / density.sum(-1, keepdim=True)
    # About the mean of 1 - x^2, which is small where kappa is large, so that little is lost to rounding.
    excess = (density * complement).sum(-1, keepdim=True) - complement
    return density @ polynomials, (density * excess) @ polynomials
