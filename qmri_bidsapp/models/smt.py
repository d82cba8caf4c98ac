"""Spherical mean technique: neurite fraction and diffusivity, independent of fibre orientations."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import Acquisition, Diffusion, SphericalMean, reference_limit
from qmri_bidsapp.core.parameters import NamedTissue, Parameter
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.models.base import SeparableModel

#: Below this argument the series is more accurate than the closed form, in float32 as well.
SERIES_LIMIT = 0.05
#: Diffusivity of free water at body temperature, mm2/s (Gyori et al. 2021, section 2.3.1).
FREE_DIFFUSIVITY = 3.0e-3
#: b-value, s/mm2, below which the signals of the compartments hardly differ.
HIGH_B_VALUE = 1400.0
#: Fewest directions of a shell.
MIN_DIRECTIONS = 6


def stick_mean(x: torch.Tensor) -> torch.Tensor:
    """Return the powder average of a stick, sqrt(pi) erf(sqrt(x)) / (2 sqrt(x)), x = b diffusivity >= 0."""
    safe = x.clamp(min=SERIES_LIMIT)
    root = safe.sqrt()
    closed = 0.5 * np.sqrt(np.pi) * torch.erf(root) / root
    series = 1 - x / 3 + x**2 / 10 - x**3 / 42
    return torch.where(x < SERIES_LIMIT, series, closed)


def stick_mean_derivative(x: torch.Tensor) -> torch.Tensor:
    """Return the derivative of `stick_mean` with respect to its argument."""
    safe = x.clamp(min=SERIES_LIMIT)
    closed = (torch.exp(-safe) - stick_mean(safe)) / (2 * safe)
    series = -1 / 3 + x / 5 - x**2 / 14 + x**3 / 54
    return torch.where(x < SERIES_LIMIT, series, closed)


def _tissue(name: str, intra_fraction: float, diffusivity: float) -> NamedTissue:
    values = {"intra_fraction": intra_fraction, "diffusivity": diffusivity}
    return NamedTissue(name, values, "Gyori et al. 2021, Table 2")


class SphericalMeanTechnique(SeparableModel):
    r"""Two compartments, intra-neurite sticks and a tortuous extra-neurite space, powder-averaged.

    .. math::
        \bar S(b) = S_0 \left[ v\, h(b\lambda) + (1 - v)\, h(b v \lambda)\, e^{-b (1 - v) \lambda} \right],
        \quad h(x) = \frac{\sqrt\pi\, \mathrm{erf}\sqrt x}{2 \sqrt x}
    """

    name: ClassVar[str] = "smt"
    title: ClassVar[str] = "Spherical mean technique, two compartments"
    reference: ClassVar[str] = "Kaden et al. 2016, NeuroImage 139:346; Gyori et al. 2021, eq. 1"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("s0", "arbitrary", (0.0, 5.0), 1.0, "Signal without diffusion weighting"),
        Parameter(
            "intra_fraction",
            "1",
            (0.0, 1.0),
            1.0,
            "Intra-neurite volume fraction",
            None,
            (0.0, 1.0),
            physical=(True, True),
        ),
        Parameter(
            "diffusivity",
            "mm2/s",
            (0.0, FREE_DIFFUSIVITY),
            1e-3,
            "Intrinsic diffusivity",
            None,
            (0.0, FREE_DIFFUSIVITY),
            physical=(True, False),
        ),
    )
    acquisition_type: ClassVar[type[Acquisition]] = SphericalMean
    bids_suffixes: ClassVar[tuple[str, ...]] = ("dwi",)
    needs: ClassVar[str] = f"b = 0 and 2 shells of {MIN_DIRECTIONS} directions, one of {HIGH_B_VALUE:.0f} s/mm2 or more"
    nonlinear: ClassVar[tuple[int, ...]] = (1, 2)
    tissues: ClassVar[tuple[NamedTissue, ...]] = (
        _tissue("White matter", 0.67, 2.20e-3),
        _tissue("Grey matter", 0.16, 1.14e-3),
        _tissue("Abnormality 1", 0.67, 0.50e-3),
        _tissue("Abnormality 2", 0.05, 2.20e-3),
        _tissue("Abnormality 3", 0.60, 1.80e-3),
    )
    methods: ClassVar[str] = (
        "Intra-neurite volume fraction and diffusivity were estimated from powder averages per shell, by the "
        "two-compartment spherical mean technique with the tortuosity approximation [@smt] [@gyori]."
    )
    bibliography: ClassVar[str] = """
    @article{smt,
      author = {Kaden E, Kelm ND, Carson RP, Does MD, Alexander DC},
      year = {2016},
      title = {Multi-compartment microscopic diffusion imaging},
      journal = {NeuroImage},
      volume = {139},
      pages = {346-359},
      doi = {10.1016/j.neuroimage.2016.06.002}
    }
    """

    def signal(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return (..., n_shells) powder averages for (..., 3) parameters s0, intra_fraction, diffusivity."""
        s0, fraction, diffusivity = (column.unsqueeze(-1) for column in theta.unbind(-1))
        x = shell_b_values(acquisition, theta) * diffusivity
        extra = stick_mean(fraction * x) * torch.exp(-(1 - fraction) * x)
        return s0 * (fraction * stick_mean(x) + (1 - fraction) * extra)

    def signal_of_fibres(self, theta: torch.Tensor, axes: torch.Tensor, acquisition: Diffusion) -> torch.Tensor:
        """Return the series of which `signal` is the powder average, for any fibres (Kaden et al. 2016).

        Parameters
        ----------
        theta : Tensor
            (n, 3), as in `signal`.
        axes : Tensor
            (n, n_fibres, 3) unit vectors along fibres of equal shares.
        acquisition : Diffusion

        Returns
        -------
        Tensor
            (n, n_volumes).
        """
        s0, fraction, diffusivity = (column[:, None, None] for column in theta.unbind(-1))
        direction, b_value = (
            torch.tensor(values, dtype=theta.dtype, device=theta.device)
            for values in (acquisition.direction, acquisition.b_value)
        )
        along = diffusivity * (axes @ direction.T).square()
        across = (1 - fraction) * diffusivity
        intra = torch.exp(-b_value * along)
        # Tortuosity: the diffusivity of the space between fibres is `across` at right angles to them.
        extra = torch.exp(-b_value * (across + fraction * along))
        return (s0 * (fraction * intra + (1 - fraction) * extra)).mean(1)

    def jacobian(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return the derivative in closed form, (..., n_shells, 3)."""
        s0, fraction, diffusivity = (column.unsqueeze(-1) for column in theta.unbind(-1))
        signal, by_fraction, by_diffusivity = _relative_signal(
            fraction, diffusivity, shell_b_values(acquisition, theta)
        )
        return torch.stack([signal, s0 * by_fraction, s0 * by_diffusivity], dim=-1)

    def basis(
        self, nonlinear: torch.Tensor, acquisition: Acquisition
    ) -> tuple[list[torch.Tensor], list[tuple[int, torch.Tensor]]]:
        """Return the signal relative to S0."""
        b_value = shell_b_values(acquisition, nonlinear).unsqueeze(-1)
        signal, by_fraction, by_diffusivity = _relative_signal(nonlinear[0], nonlinear[1], b_value)
        return [signal], [(0, by_fraction), (0, by_diffusivity)]

    def combine(self, coefficients: list[torch.Tensor], nonlinear: torch.Tensor) -> torch.Tensor:
        """Return s0, intra_fraction and diffusivity."""
        return torch.stack([coefficients[0], *nonlinear], dim=-1)

    def adapt(self, acquisition: Acquisition) -> tuple[Acquisition, npt.NDArray[np.float64] | None]:
        """Average a diffusion series over the directions of each shell.

        Shells of too few directions for an average are left out where the others determine the parameters.
        """
        if not isinstance(acquisition, Diffusion):
            return acquisition, None
        whole, matrix = SphericalMean.from_diffusion(acquisition)
        used = [index for index in range(whole.n_measurements) if not _is_sparse(whole, index)]
        reduced = SphericalMean(tuple(whole.b_value[i] for i in used), tuple(whole.n_directions[i] for i in used))
        try:
            self.check(reduced)
        except ProtocolError:
            return whole, matrix
        return reduced, matrix[:, used]

    def caution(self, acquisition: Acquisition) -> str | None:
        """Say which shells have too few directions and are left out."""
        used, _ = self.adapt(acquisition)
        if not isinstance(acquisition, Diffusion):
            return None
        whole, _ = SphericalMean.from_diffusion(acquisition)
        assert isinstance(used, SphericalMean)
        shells = zip(whole.b_value, whole.n_directions, strict=True)
        sparse = [f"b = {b:g} s/mm2 ({count})" for b, count in shells if b not in used.b_value]
        if not sparse:
            return None
        return (
            f"{self.name}: shells of fewer than {MIN_DIRECTIONS} directions are left out, since they allow no powder "
            f"average: {', '.join(sparse)}."
        )

    def check(self, acquisition: Acquisition) -> None:
        """Require b = 0 and two shells of at least six directions each, one of them of a high b-value."""
        self._check_type(acquisition)
        assert isinstance(acquisition, SphericalMean)
        limit = reference_limit(acquisition.b_value)
        shells = [b for b in acquisition.b_value if b > limit]
        if min(acquisition.b_value, default=np.inf) > limit or len(shells) < 2:
            raise ProtocolError(
                f"Model {self.name} needs b = 0 and at least 2 shells, got b = "
                f"{', '.join(f'{b:g}' for b in acquisition.b_value)} s/mm2; "
                "leave the model out with --models."
            )
        if max(shells) < HIGH_B_VALUE:
            raise ProtocolError(
                f"Model {self.name} needs a shell of at least {HIGH_B_VALUE:.0f} s/mm2, where water inside and outside "
                f"neurites differs, got {max(shells):g} s/mm2 at most; leave the model out with --models."
            )
        for index, (b_value, count) in enumerate(zip(acquisition.b_value, acquisition.n_directions, strict=True)):
            if _is_sparse(acquisition, index):
                raise ProtocolError(
                    f"Model {self.name} needs at least {MIN_DIRECTIONS} directions per shell for a powder average, got "
                    f"{count} at b = {b_value:g} s/mm2; leave the model out with --models."
                )


def _is_sparse(acquisition: SphericalMean, index: int) -> bool:
    """Return whether a shell has too few directions for a powder average; one without weighting needs one volume."""
    weighted = acquisition.b_value[index] > reference_limit(acquisition.b_value)
    return weighted and acquisition.n_directions[index] < MIN_DIRECTIONS


def _relative_signal(
    fraction: torch.Tensor, diffusivity: torch.Tensor, b_value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the signal relative to S0 and its derivatives by fraction and diffusivity."""
    x = b_value * diffusivity
    intra, hindered = stick_mean(x), torch.exp(-(1 - fraction) * x)
    mean, slope = stick_mean(fraction * x), stick_mean_derivative(fraction * x)
    extra = mean * hindered
    by_fraction = intra - extra + (1 - fraction) * x * hindered * (slope + mean)
    by_x = fraction * stick_mean_derivative(x) + (1 - fraction) * hindered * (fraction * slope - (1 - fraction) * mean)
    return fraction * intra + (1 - fraction) * extra, by_fraction, b_value * by_x


def shell_b_values(acquisition: Acquisition, like: torch.Tensor) -> torch.Tensor:
    """Return (n_shells,) s/mm2, with the dtype and device of `like`."""
    if not isinstance(acquisition, SphericalMean):
        raise ProtocolError(f"The spherical mean needs powder averages, got {type(acquisition).__name__}.")
    return torch.as_tensor(acquisition.b_value, dtype=like.dtype, device=like.device)
