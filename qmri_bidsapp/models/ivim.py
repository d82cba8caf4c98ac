"""Intravoxel incoherent motion: diffusion and perfusion."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import Acquisition, Diffusion, SphericalMean
from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.models.base import SeparableModel
from qmri_bidsapp.models.smt import shell_b_values

#: Above this b-value (s/mm2; 1000, with room for scatter) the decay of tissue alone is no longer exponential,
#: and its kurtosis would count as perfusion.
MAX_B_VALUE = 1050.0
#: b-values this close (s/mm2) are averaged: perfusion makes even small differences matter.
B_TOLERANCE = 1.0
#: Perfusion is gone from the signal above this b-value, s/mm2.
PERFUSION_B_VALUE = 200.0
#: A recorded b-value may differ from it by this part.
SCATTER = 0.05
#: Largest b-value (s/mm2) that counts as unweighted.
MAX_BASELINE = 10.0
#: Border between diffusion, slower, and pseudodiffusion, faster, mm2/s: with a common range the two compartments
#: could be exchanged. Free water at body temperature has 0.003, capillaries of brain about 0.01.
DIFFUSIVITY_LIMIT = 4e-3
#: Pseudodiffusivity (mm2/s) that separates the minima of the cost, the logarithmic middle of the range.
BASIN_BORDER = 0.02


class IntravoxelIncoherentMotion(SeparableModel):
    r"""Water in tissue and blood in capillaries of random directions, powder-averaged.

    .. math:: S(b) = S_0 \left[ f\, e^{-b D^*} + (1 - f)\, e^{-b D} \right]
    """

    name: ClassVar[str] = "ivim"
    title: ClassVar[str] = "Intravoxel incoherent motion"
    reference: ClassVar[str] = "Le Bihan et al. 1988, Radiology 168:497"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("s0", "arbitrary", (0.0, 5.0), 1.0, "Signal without diffusion weighting"),
        # In no tissue does perfusion make up more than half of the signal.
        Parameter(
            "perfusion_fraction", "1", (0.0, 0.5), 0.1, "Perfusion fraction f", None, (0.0, 0.3), physical=(True, False)
        ),
        # At 0.1 mm2/s perfusion is gone at b = 10 s/mm2: faster ones cannot be distinguished.
        Parameter(
            "pseudodiffusivity",
            "mm2/s",
            (DIFFUSIVITY_LIMIT, 0.1),
            1e-2,
            "Pseudodiffusivity D* of blood",
            None,
            (0.0, 0.05),
        ),
        Parameter(
            "diffusivity",
            "mm2/s",
            (0.0, DIFFUSIVITY_LIMIT),
            1e-3,
            "Diffusivity D of tissue",
            None,
            (0.0, 3e-3),
            physical=(True, False),
        ),
    )
    acquisition_type: ClassVar[type[Acquisition]] = SphericalMean
    bids_suffixes: ClassVar[tuple[str, ...]] = ("dwi",)
    needs: ClassVar[str] = (
        f"b = 0, at least 2 b-values up to {PERFUSION_B_VALUE:g} and 2 from there to {MAX_B_VALUE:g} s/mm2"
    )
    nonlinear: ClassVar[tuple[int, ...]] = (2, 3)
    methods: ClassVar[str] = (
        "Where there were enough low b-values, perfusion fraction, pseudodiffusivity and diffusivity were estimated "
        "from averages per b-value up to 1000 s/mm2 [@ivim]."
    )
    bibliography: ClassVar[str] = """
    @article{ivim,
      author = {Le Bihan D, Breton E, Lallemand D, Aubin ML, Vignaud J, Laval-Jeantet M},
      year = {1988},
      title = {Separation of diffusion and perfusion in intravoxel incoherent motion MR imaging},
      journal = {Radiology},
      volume = {168},
      pages = {497-505},
      doi = {10.1148/radiology.168.2.3393671}
    }
    """

    @property
    def mixing(self) -> tuple[int, ...]:
        """The perfusion fraction."""
        return (1,)

    def signal(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return (..., n_shells) powder averages for (..., 4) parameters s0, fraction, D*, D."""
        s0, fraction, fast, slow = (column.unsqueeze(-1) for column in theta.unbind(-1))
        b_value = shell_b_values(acquisition, theta)
        return s0 * (fraction * torch.exp(-b_value * fast) + (1 - fraction) * torch.exp(-b_value * slow))

    def jacobian(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return the derivative in closed form, (..., n_shells, 4)."""
        s0, fraction, fast, slow = (column.unsqueeze(-1) for column in theta.unbind(-1))
        b_value = shell_b_values(acquisition, theta)
        blood, tissue = torch.exp(-b_value * fast), torch.exp(-b_value * slow)
        columns = [
            fraction * blood + (1 - fraction) * tissue,
            s0 * (blood - tissue),
            -s0 * fraction * b_value * blood,
            -s0 * (1 - fraction) * b_value * tissue,
        ]
        return torch.stack(columns, dim=-1)

    def basis(
        self, nonlinear: torch.Tensor, acquisition: Acquisition
    ) -> tuple[list[torch.Tensor], list[tuple[int, torch.Tensor]]]:
        """Return the decays of blood and of tissue."""
        b_value = shell_b_values(acquisition, nonlinear).unsqueeze(-1)
        decays = [torch.exp(-b_value * diffusivity) for diffusivity in nonlinear]
        return decays, [(position, -b_value * decay) for position, decay in enumerate(decays)]

    def combine(self, coefficients: list[torch.Tensor], nonlinear: torch.Tensor) -> torch.Tensor:
        """Return s0, perfusion_fraction, pseudodiffusivity and diffusivity."""
        blood, tissue = coefficients
        return torch.stack([blood + tissue, blood / (blood + tissue), *nonlinear], dim=-1)

    def basins(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Separate slow from fast pseudodiffusion: with noise, either can explain a small perfusion fraction."""
        return (theta[:, 2] > BASIN_BORDER).long()

    def adapt(self, acquisition: Acquisition) -> tuple[Acquisition, npt.NDArray[np.float64] | None]:
        """Average the volumes of each b-value, up to `MAX_B_VALUE`."""
        if not isinstance(acquisition, Diffusion):
            return acquisition, None
        averaged, matrix = SphericalMean.from_diffusion(acquisition, B_TOLERANCE)
        n_kept = sum(b <= MAX_B_VALUE for b in averaged.b_value)
        kept = SphericalMean(averaged.b_value[:n_kept], averaged.n_directions[:n_kept])
        return kept, matrix[:, :n_kept]

    def check(self, acquisition: Acquisition) -> None:
        """Require b = 0 and two b-values on either side of `PERFUSION_B_VALUE`."""
        self._check_type(acquisition)
        assert isinstance(acquisition, SphericalMean)
        lowest = min(acquisition.b_value, default=np.inf)
        n_low = sum(lowest < b <= (1 + SCATTER) * PERFUSION_B_VALUE for b in acquisition.b_value)
        n_high = sum(b >= (1 - SCATTER) * PERFUSION_B_VALUE for b in acquisition.b_value)
        if lowest > MAX_BASELINE or n_low < 2 or n_high < 2:
            raise ProtocolError(
                f"Model {self.name} needs {self.needs}, got b = "
                f"{', '.join(f'{b:g}' for b in acquisition.b_value)} s/mm2; "
                "leave the model out with --models."
            )
