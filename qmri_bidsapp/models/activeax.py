"""ActiveAx: the minimal model of white-matter diameter."""

from __future__ import annotations

from typing import ClassVar

import torch

from qmri_bidsapp.models.compartments import Ball, Compartment, Cylinder, Dot, Values, Zeppelin
from qmri_bidsapp.models.compose import Composition
from qmri_bidsapp.models.smt import FREE_DIFFUSIVITY

#: Intrinsic diffusivity of white matter in vivo, mm2/s (Alexander et al. 2010).
INTRINSIC_DIFFUSIVITY = 1.7e-3


def _tortuous(values: Values) -> torch.Tensor:
    """Return the extra-axonal diffusivity across fibres (Szafer et al. 1995, Magn Reson Med 33:697)."""
    return INTRINSIC_DIFFUSIVITY * (1 - values["intra_share"])


class ActiveAx(Composition):
    r"""Free water, trapped water, parallel cylinders of one diameter, and tortuous space around them.

    .. math::
        S = S_0 \left[ f_w e^{-b d_w} + (1 - f_w) \left( f_t + (1 - f_t) \left( v A_{cyl}(a)
        + (1 - v)\, e^{-b d \left(x^2 + (1 - v)(1 - x^2)\right)} \right) \right) \right],
        \quad x = g \cdot \mu
    """

    name: ClassVar[str] = "activeax"
    title: ClassVar[str] = "ActiveAx, minimal model of white-matter diameter"
    reference: ClassVar[str] = "Alexander et al. 2010, NeuroImage 52:1374"
    compartments: ClassVar[tuple[Compartment, ...]] = (
        Ball(FREE_DIFFUSIVITY, name="csf"),
        Dot(),
        Cylinder(INTRINSIC_DIFFUSIVITY, name="intra"),
        Zeppelin(INTRINSIC_DIFFUSIVITY, _tortuous, name="extra"),
    )
    largest_diffusivity: ClassVar[float] = INTRINSIC_DIFFUSIVITY
    opt_in: ClassVar[bool] = True
    methods: ClassVar[str] = (
        "Axon diameter index and volume fractions of axons, of the space around them, of trapped and of free water "
        "were estimated by ActiveAx [@activeax], with the signal inside cylinders in the Gaussian phase "
        "approximation [@vangelderen]."
    )
    bibliography: ClassVar[str] = """
    @article{activeax,
      author = {Alexander DC, Hubbard PL, Hall MG, Moore EA, Ptito M, Parker GJM, Dyrby TB},
      year = {2010},
      title = {Orientationally invariant indices of axon diameter and density from diffusion MRI},
      journal = {NeuroImage},
      volume = {52},
      pages = {1374-1389},
      doi = {10.1016/j.neuroimage.2010.05.043}
    }
    """
