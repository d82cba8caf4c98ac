"""NODDI: neurite orientation dispersion and density imaging, with the Watson distribution."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.models.compartments import ODI, Ball, Compartment, Stick, Values, Watson, Zeppelin, concentration
from qmri_bidsapp.models.compose import Composition
from qmri_bidsapp.models.layout import Layout
from qmri_bidsapp.models.legendre import watson_moments
from qmri_bidsapp.models.smt import FREE_DIFFUSIVITY

#: Intrinsic diffusivity along neurites, mm2/s (Zhang et al. 2012).
INTRINSIC_DIFFUSIVITY = 1.7e-3


def _second_moment(values: Values) -> torch.Tensor:
    """Return the mean of P_2 over the Watson distribution, (..., 1, 1)."""
    return watson_moments(concentration(values["odi"]), 2)[0][..., 0, 1:]


def _parallel(values: Values) -> torch.Tensor:
    """Return the diffusivity of the dispersed extra-neurite tensor along its axis (Zhang et al. 2012, eq. 8)."""
    return INTRINSIC_DIFFUSIVITY * (1 - 2 / 3 * values["ndi"] * (1 - _second_moment(values)))


def _perpendicular(values: Values) -> torch.Tensor:
    """Return the diffusivity of the dispersed extra-neurite tensor across its axis."""
    return INTRINSIC_DIFFUSIVITY * (1 - values["ndi"] * (2 + _second_moment(values)) / 3)


class Noddi(Composition):
    r"""Free water, dispersed sticks, and extra-neurite water hindered in step with their density.

    .. math::
        S = S_0 \left[ f_w e^{-b d_w} + (1 - f_w) \left( v \int e^{-b d (g \cdot n)^2} W(n) dn
        + (1 - v)\, e^{-b\, g^T \left[\int D(n) W(n) dn\right] g} \right) \right]

    W is the Watson distribution; D(n) has the diffusivities d along n and, by tortuosity, d (1 - v) across.
    """

    name: ClassVar[str] = "noddi"
    title: ClassVar[str] = "NODDI (Watson)"
    reference: ClassVar[str] = "Zhang et al. 2012, NeuroImage 61:1000"
    compartments: ClassVar[tuple[Compartment, ...]] = (
        Ball(FREE_DIFFUSIVITY),
        Watson(Stick(INTRINSIC_DIFFUSIVITY), ODI),
        Zeppelin(_parallel, _perpendicular),
    )
    shares: ClassVar[tuple[Parameter, ...]] = (
        Parameter("fwf", "1", (0.0, 1.0), 1.0, "Free water fraction", None, (0.0, 1.0), physical=(True, True)),
        Parameter("ndi", "1", (0.0, 1.0), 1.0, "Neurite density index", None, (0.0, 1.0), physical=(True, True)),
    )
    largest_diffusivity: ClassVar[float] = INTRINSIC_DIFFUSIVITY
    methods: ClassVar[str] = (
        "Where there were at least two shells, neurite density, orientation dispersion and free water fraction were "
        "estimated by NODDI with the Watson distribution [@noddi]."
    )
    bibliography: ClassVar[str] = """
    @article{noddi,
      author = {Zhang H, Schneider T, Wheeler-Kingshott CA, Alexander DC},
      year = {2012},
      title = {NODDI: practical in vivo neurite orientation dispersion and density imaging of the human brain},
      journal = {NeuroImage},
      volume = {61},
      pages = {1000-1016},
      doi = {10.1016/j.neuroimage.2012.03.072}
    }
    """

    def series_and_slopes(self, tissue: torch.Tensor, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the Legendre coefficients and their derivatives by fwf, ndi and odi, in closed form."""
        free, neurite, odi = tissue[..., None, None].unbind(-3)
        encoding, constants = layout.encoding, layout.encoding.series
        moments, by_kappa = watson_moments(concentration(odi).squeeze(-1), len(constants.nodes))
        by_odi = -0.5 * np.pi * (1 + concentration(odi).square()) * by_kappa
        second, second_by_odi = moments[..., 1:2], by_odi[..., 1:2]

        stick = torch.exp(-encoding.b_value * INTRINSIC_DIFFUSIVITY * constants.nodes.square()) @ constants.project
        weighting = encoding.b_value * INTRINSIC_DIFFUSIVITY
        # The exponent of the extra-neurite signal is -b d (1 - v u), with u = (2 + w_2) / 3 - w_2 x^2.
        square = constants.nodes.square()
        relief = (2 + second) / 3 - second * square
        profile = torch.exp(-weighting * (1 - neurite * relief))
        intra, extra = stick * moments, profile @ constants.project
        extra_by_ndi = (weighting * relief * profile) @ constants.project
        extra_by_odi = (weighting * neurite * second_by_odi * (1 / 3 - square) * profile) @ constants.project

        fibres = neurite * intra + (1 - neurite) * extra
        # A constant is its own coefficient of degree zero.
        water = torch.exp(-encoding.b_value * FREE_DIFFUSIVITY) * (constants.degree == 0)
        slopes = [
            water - fibres,
            (1 - free) * (intra - extra + (1 - neurite) * extra_by_ndi),
            (1 - free) * (neurite * stick * by_odi + (1 - neurite) * extra_by_odi),
        ]
        return free * water + (1 - free) * fibres, torch.stack(slopes, dim=-2)
