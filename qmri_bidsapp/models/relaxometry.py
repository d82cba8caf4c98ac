"""Relaxometry: T1 by inversion recovery, T2 by spin echoes or T2 preparation, T2* by gradient echoes."""

from __future__ import annotations

from typing import ClassVar

import torch

from qmri_bidsapp.core.acquisition import Acquisition, InversionRecovery, MultiEcho, T2Preparation
from qmri_bidsapp.core.parameters import NamedTissue, Parameter
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.models.base import SeparableModel

#: Amplitudes are relative to the largest signal of the voxel; 20 leaves room for short inversion times at
#: long T1.
AMPLITUDE_BOUNDS = (0.0, 20.0)
#: A (1 - B) is the signal at TI = 0, an extrapolation from the inversion times: a bound at the physical limit
#: of 2 would turn noise of the extrapolation into bias of T1.
INVERSION_BOUNDS = (0.5, 3.0)

#: The null of an inversion recovery is within this number of images of the smallest magnitude.
NULL_REACH = 2
TISSUE_SOURCE = "Sabidussi et al. 2021, Table 1"


def _distinct(times: tuple[float, ...], n_needed: int, model: str, field: str) -> None:
    """Raise unless there are enough distinct times."""
    n_distinct = len(set(times))
    if n_distinct < n_needed:
        raise ProtocolError(
            f"Model {model} needs at least {n_needed} distinct values of {field}, got {n_distinct} "
            f"({', '.join(f'{time:g}' for time in times)} s); add the missing images or leave the model out "
            "with --models."
        )


class InversionRecoveryT1(SeparableModel):
    r"""T1 from an inversion recovery.

    .. math:: S(TI) = \left| A \left(1 - B e^{-TI / T_1}\right) \right|

    Where the polarity was restored (`InversionRecovery.signed`), the signal is the same without the magnitude. ``A`` is
    proportional to the equilibrium magnetisation; ``B`` is 2 for a complete inversion and full recovery.
    """

    name: ClassVar[str] = "t1"
    title: ClassVar[str] = "T1 by inversion recovery"
    reference: ClassVar[str] = "Barral et al. 2010, Magn Reson Med 64:1057, eq. 4; Sabidussi et al. 2021"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("m0", "arbitrary", AMPLITUDE_BOUNDS, 1.0, "Signal at full recovery, A", "M0map"),
        Parameter(
            "inversion_factor",
            "1",
            INVERSION_BOUNDS,
            1.0,
            "Inversion factor B; 2 for a complete inversion",
            "IEmap",
            (1.5, 2.1),
        ),
        Parameter("t1", "s", (0.02, 8.0), 1.0, "Longitudinal relaxation time T1", "T1map", (0.0, 4.0)),
    )
    derived: ClassVar[tuple[Parameter, ...]] = (
        Parameter("r1", "1/s", (1 / 8.0, 50.0), 1.0, "Longitudinal relaxation rate R1", "R1map", (0.0, 2.0)),
    )
    smooth: ClassVar[str | None] = "inversion_factor"
    acquisition_type: ClassVar[type[Acquisition]] = InversionRecovery
    bids_suffixes: ClassVar[tuple[str, ...]] = ("IRT1",)
    needs: ClassVar[str] = "3 distinct inversion times"
    nonlinear: ClassVar[tuple[int, ...]] = (2,)
    #: After a complete inversion.
    tissues: ClassVar[tuple[NamedTissue, ...]] = (
        NamedTissue("White matter", {"inversion_factor": 2.0, "t1": 0.78}, TISSUE_SOURCE),
        NamedTissue("Grey matter", {"inversion_factor": 2.0, "t1": 1.4}, TISSUE_SOURCE),
        NamedTissue("Cerebrospinal fluid", {"inversion_factor": 2.0, "t1": 3.5}, TISSUE_SOURCE),
    )
    methods: ClassVar[str] = (
        "T1 was estimated from the magnitude of inversion-recovery images or, where phase or real and imaginary "
        "parts came with them, from images of restored polarity [@barral]."
    )
    bibliography: ClassVar[str] = """
    @article{barral,
      author = {Barral JK, Gudmundson E, Stikov N, Etezadi-Amoli M, Stoica P, Nishimura DG},
      year = {2010},
      title = {A robust methodology for in vivo T1 mapping},
      journal = {Magnetic Resonance in Medicine},
      volume = {64},
      pages = {1057-1067},
      doi = {10.1002/mrm.22497}
    }
    """

    def signal(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return (..., n_measurements) signals for (..., 3) parameters m0, inversion_factor, t1."""
        m0, factor, t1 = (column.unsqueeze(-1) for column in theta.unbind(-1))
        signal = m0 * (1 - factor * torch.exp(-_times(acquisition, theta) / t1))
        return signal if acquisition.has_sign else signal.abs()

    def jacobian(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return the derivative in closed form, (..., n_measurements, 3)."""
        m0, factor, t1 = (column.unsqueeze(-1) for column in theta.unbind(-1))
        times = _times(acquisition, theta)
        decay = torch.exp(-times / t1)
        recovery = 1 - factor * decay
        columns = (recovery, -m0 * decay, -m0 * factor * decay * times / t1.square())
        if acquisition.has_sign:
            return torch.stack(columns, dim=-1)
        # At m0 = 0, the lower bound, use the derivative from above: with a sign of zero the fit would not move.
        sign = torch.sign(recovery) * torch.where(m0 < 0, -1.0, 1.0)
        return torch.stack([sign * column for column in columns], dim=-1)

    def basins(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return the number of images before the null.

        The magnitude hides their sign, and each number has a minimum of its own.
        """
        if acquisition.has_sign:
            return super().basins(theta, acquisition)
        before_null = theta[:, 1:2] * torch.exp(-_times(acquisition, theta) / theta[:, 2:3]) > 1
        return before_null.sum(-1)

    def basis(
        self, nonlinear: torch.Tensor, acquisition: Acquisition
    ) -> tuple[list[torch.Tensor], list[tuple[int, torch.Tensor]]]:
        """Return the equilibrium signal, 1, and the recovery's decay, -exp(-TI / T1)."""
        times = _times(acquisition, nonlinear).unsqueeze(-1)
        decay = -torch.exp(-times / nonlinear)
        return [torch.ones_like(times), decay], [(1, decay * times / nonlinear.square())]

    def combine(self, coefficients: list[torch.Tensor], nonlinear: torch.Tensor) -> torch.Tensor:
        """Return m0 = A, inversion_factor = AB / A and t1."""
        m0, product = coefficients
        return torch.stack([m0, product / m0, nonlinear[0]], dim=-1)

    def signs(self, signals: torch.Tensor, acquisition: Acquisition) -> torch.Tensor | None:
        """Return the signs for a null at either side of the smallest magnitudes.

        Images before the null are negative. Noise can move the smallest magnitude away from the null, so that nulls
        near it are tried as well.
        """
        if acquisition.has_sign:
            return None
        times = _times(acquisition, signals)
        order = times.argsort()
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        smallest = signals[:, order].argmin(-1, keepdim=True)
        return torch.stack(
            [torch.where(rank < smallest + shift, -1.0, 1.0) for shift in range(-NULL_REACH + 1, NULL_REACH + 1)]
        ).to(signals.dtype)

    def derive(self, theta: torch.Tensor) -> torch.Tensor:
        """Return R1 = 1 / T1, (..., 1)."""
        return 1 / theta[..., 2:3]

    def check(self, acquisition: Acquisition) -> None:
        """Require three distinct inversion times."""
        super().check(acquisition)
        _distinct(_plain_times(acquisition), 3, self.name, "InversionTime")


class _MonoExponential(SeparableModel):
    """A exp(-TE / T), the decay of T2 and T2*."""

    acquisition_type: ClassVar[type[Acquisition]] = MultiEcho
    needs: ClassVar[str] = "2 distinct echo times"
    nonlinear: ClassVar[tuple[int, ...]] = (1,)

    def signal(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return (..., n_measurements) magnitudes for (..., 2) parameters: amplitude, relaxation time."""
        amplitude, time = (column.unsqueeze(-1) for column in theta.unbind(-1))
        return amplitude * torch.exp(-_times(acquisition, theta) / time)

    def jacobian(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return the derivative in closed form, (..., n_measurements, 2)."""
        amplitude, time = (column.unsqueeze(-1) for column in theta.unbind(-1))
        echo_time = _times(acquisition, theta)
        decay = torch.exp(-echo_time / time)
        return torch.stack([decay, amplitude * decay * echo_time / time.square()], dim=-1)

    def basis(
        self, nonlinear: torch.Tensor, acquisition: Acquisition
    ) -> tuple[list[torch.Tensor], list[tuple[int, torch.Tensor]]]:
        """Return the decay, exp(-TE / T)."""
        echo_time = _times(acquisition, nonlinear).unsqueeze(-1)
        decay = torch.exp(-echo_time / nonlinear)
        return [decay], [(0, decay * echo_time / nonlinear.square())]

    def combine(self, coefficients: list[torch.Tensor], nonlinear: torch.Tensor) -> torch.Tensor:
        """Return amplitude and relaxation time."""
        return torch.stack([coefficients[0], nonlinear[0]], dim=-1)

    def derive(self, theta: torch.Tensor) -> torch.Tensor:
        """Return the relaxation rate, (..., 1)."""
        return 1 / theta[..., 1:2]

    def check(self, acquisition: Acquisition) -> None:
        """Require two distinct echo times."""
        super().check(acquisition)
        _distinct(_plain_times(acquisition), 2, self.name, "EchoTime")


class SpinEchoT2(_MonoExponential):
    r"""T2 from a multi-echo spin echo.

    .. math:: S(TE) = S_0 e^{-TE / T_2}
    """

    name: ClassVar[str] = "t2"
    title: ClassVar[str] = "T2 by multi-echo spin echo"
    reference: ClassVar[str] = "Carr and Purcell 1954, Phys Rev 94:630; Meiboom and Gill 1958, Rev Sci Instrum 29:688"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("s0", "arbitrary", AMPLITUDE_BOUNDS, 1.0, "Signal at TE = 0", "S0map"),
        Parameter("t2", "s", (0.001, 4.0), 0.1, "Transverse relaxation time T2", "T2map", (0.0, 0.2)),
    )
    derived: ClassVar[tuple[Parameter, ...]] = (
        Parameter("r2", "1/s", (0.25, 1000.0), 10.0, "Transverse relaxation rate R2", "R2map", (0.0, 25.0)),
    )
    bids_suffixes: ClassVar[tuple[str, ...]] = ("MESE",)
    tissues: ClassVar[tuple[NamedTissue, ...]] = (
        NamedTissue("White matter", {"t2": 0.08}, TISSUE_SOURCE),
        NamedTissue("Grey matter", {"t2": 0.11}, TISSUE_SOURCE),
        NamedTissue("Cerebrospinal fluid", {"t2": 2.0}, TISSUE_SOURCE),
    )
    methods: ClassVar[str] = "T2 was estimated from multi-echo spin-echo images by a mono-exponential decay."


class GradientEchoT2star(_MonoExponential):
    r"""T2* from the magnitude of a multi-echo gradient echo.

    .. math:: S(TE) = S_0 e^{-TE / T_2^*}
    """

    name: ClassVar[str] = "t2star"
    title: ClassVar[str] = "T2* by multi-echo gradient echo"
    reference: ClassVar[str] = "Chavhan et al. 2009, RadioGraphics 29:1433"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("s0", "arbitrary", AMPLITUDE_BOUNDS, 1.0, "Signal at TE = 0", "S0map"),
        Parameter(
            "t2star",
            "s",
            (0.0005, 2.0),
            0.05,
            "Effective transverse relaxation time T2*",
            "T2starmap",
            (0.0, 0.1),
        ),
    )
    derived: ClassVar[tuple[Parameter, ...]] = (
        Parameter(
            "r2star",
            "1/s",
            (0.5, 2000.0),
            20.0,
            "Effective transverse relaxation rate R2*",
            "R2starmap",
            (0.0, 60.0),
        ),
    )
    bids_suffixes: ClassVar[tuple[str, ...]] = ("MEGRE",)
    methods: ClassVar[str] = "T2* was estimated from multi-echo gradient-echo images by a mono-exponential decay."


class PreparedT2(SeparableModel):
    r"""T2 from images after T2 preparations of several durations.

    .. math:: S(T) = S_0 \left( e^{-T / T_2} + C \right)

    The offset ``C`` is what recovers between preparation and readout, the same for all preparations; neglected, it
    lengthens T2. BIDS has neither a suffix nor a field for such series, so that the model is for use from Python.
    """

    name: ClassVar[str] = "t2prep"
    title: ClassVar[str] = "T2 by T2 preparation"
    reference: ClassVar[str] = (
        "Brittain et al. 1995, Magn Reson Med 33:689; Giri et al. 2009, J Cardiovasc Magn Reson 11:56"
    )
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("s0", "arbitrary", AMPLITUDE_BOUNDS, 1.0, "Signal without T2 decay, less the offset", "S0map"),
        Parameter("t2", "s", (0.001, 4.0), 0.1, "Transverse relaxation time T2", "T2map", (0.0, 0.2)),
        Parameter("offset", "1", (-0.5, 1.0), 0.1, "Offset C, as a fraction of S0", None, (0.0, 0.3)),
    )
    derived: ClassVar[tuple[Parameter, ...]] = (
        Parameter("r2", "1/s", (0.25, 1000.0), 10.0, "Transverse relaxation rate R2", "R2map", (0.0, 25.0)),
    )
    acquisition_type: ClassVar[type[Acquisition]] = T2Preparation
    bids_suffixes: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[str] = "3 distinct preparation times"
    nonlinear: ClassVar[tuple[int, ...]] = (1,)
    methods: ClassVar[str] = (
        "T2 was estimated from images after T2 preparations of several durations by a mono-exponential decay with "
        "an offset [@brittain]."
    )
    bibliography: ClassVar[str] = """
    @article{brittain,
      author = {Brittain JH, Hu BS, Wright GA, Meyer CH, Macovski A, Nishimura DG},
      year = {1995},
      title = {Coronary angiography with magnetization-prepared T2 contrast},
      journal = {Magnetic Resonance in Medicine},
      volume = {33},
      pages = {689-696},
      doi = {10.1002/mrm.1910330515}
    }
    """

    def signal(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return (..., n_measurements) magnitudes for (..., 3) parameters s0, t2, offset."""
        s0, t2, offset = (column.unsqueeze(-1) for column in theta.unbind(-1))
        return s0 * (torch.exp(-_times(acquisition, theta) / t2) + offset)

    def jacobian(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return the derivative in closed form, (..., n_measurements, 3)."""
        s0, t2, offset = (column.unsqueeze(-1) for column in theta.unbind(-1))
        times = _times(acquisition, theta)
        decay = torch.exp(-times / t2)
        return torch.stack([decay + offset, s0 * decay * times / t2.square(), s0.expand_as(decay)], dim=-1)

    def basis(
        self, nonlinear: torch.Tensor, acquisition: Acquisition
    ) -> tuple[list[torch.Tensor], list[tuple[int, torch.Tensor]]]:
        """Return the decay, exp(-T / T2), and the offset, 1."""
        times = _times(acquisition, nonlinear).unsqueeze(-1)
        decay = torch.exp(-times / nonlinear)
        return [decay, torch.ones_like(times)], [(0, decay * times / nonlinear.square())]

    def combine(self, coefficients: list[torch.Tensor], nonlinear: torch.Tensor) -> torch.Tensor:
        """Return s0, t2 and offset."""
        s0, product = coefficients
        return torch.stack([s0, nonlinear[0], product / s0], dim=-1)

    def derive(self, theta: torch.Tensor) -> torch.Tensor:
        """Return the relaxation rate, (..., 1)."""
        return 1 / theta[..., 1:2]

    def check(self, acquisition: Acquisition) -> None:
        """Require three distinct preparation times."""
        super().check(acquisition)
        _distinct(_plain_times(acquisition), 3, self.name, "the preparation time")


def _plain_times(acquisition: Acquisition) -> tuple[float, ...]:
    if isinstance(acquisition, InversionRecovery):
        return acquisition.inversion_time
    if isinstance(acquisition, MultiEcho):
        return acquisition.echo_time
    if isinstance(acquisition, T2Preparation):
        return acquisition.preparation_time
    raise ProtocolError(f"Relaxometry needs inversion, echo or preparation times, got {type(acquisition).__name__}.")


def _times(acquisition: Acquisition, like: torch.Tensor) -> torch.Tensor:
    """Return (n_measurements,) s, with the dtype and device of `like`."""
    return torch.as_tensor(_plain_times(acquisition), dtype=like.dtype, device=like.device)
