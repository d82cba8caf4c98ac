"""Zeppelin, cylinder and dot."""

from __future__ import annotations

from typing import ClassVar

import torch

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.models.compartments import Compartment, Cylinder, Dot, Zeppelin
from qmri_bidsapp.models.compose import Composition

#: Diameter, mm, that separates the minima of the cost.
BASIN_BORDER = 1e-2


class ZeppelinCylinderDot(Composition):
    r"""Trapped water, parallel cylinders of one diameter, and Gaussian diffusion around them.

    .. math::
        S = S_0 \left[ f_t + (1 - f_t) \left( v A_{cyl}(d, a)
        + (1 - v)\, e^{-b \left(d x^2 + d_\perp (1 - x^2)\right)} \right) \right],
        \quad x = g \cdot \mu
    """

    name: ClassVar[str] = "zcd"
    title: ClassVar[str] = "Zeppelin, cylinder and dot"
    reference: ClassVar[str] = "Panagiotaki et al. 2012, NeuroImage 59:2241"
    compartments: ClassVar[tuple[Compartment, ...]] = (Dot(), Cylinder(name="intra"), Zeppelin(name="extra"))
    opt_in: ClassVar[bool] = True
    methods: ClassVar[str] = (
        "Cylinder diameter, diffusivities and volume fractions were estimated by the model of a zeppelin, cylinders "
        "and a dot [@taxonomy], with the signal inside cylinders in the Gaussian phase approximation "
        "[@vangelderen]."
    )
    bibliography: ClassVar[str] = """
    @article{taxonomy,
      author = {Panagiotaki E, Schneider T, Siow B, Hall MG, Lythgoe MF, Alexander DC},
      year = {2012},
      title = {Compartment models of the diffusion MR signal in brain white matter: a taxonomy and comparison},
      journal = {NeuroImage},
      volume = {59},
      pages = {2241-2254},
      doi = {10.1016/j.neuroimage.2011.09.081}
    }
    """

    def basins(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Separate thin from thick cylinders: thick ones in slow surroundings look like thin ones in fast ones."""
        diameter = [parameter.name for parameter in self.parameters].index("diameter")
        return (theta[:, diameter] > BASIN_BORDER).long()
