"""Steady state of spoiled gradient echoes: T1 by variable flip angles, magnetization transfer saturation."""

from __future__ import annotations

import math
from typing import ClassVar

import torch

from qmri_bidsapp.core.acquisition import Acquisition, SpoiledGradientEcho
from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.models.base import SignalModel

#: Amplitudes are relative to the largest signal of the voxel, which at short repetition times is a small part.
AMPLITUDE_BOUNDS = (0.0, 1000.0)
T1_BOUNDS = (0.02, 8.0)
#: Below zero, so that noise where there is no saturation (fluid) is not cut off; percent.
SATURATION_BOUNDS = (-0.2, 20.0)
#: Share of the saturation that depends on the transmit field beyond its square (Weiskopf et al. 2013).
FIELD_DEPENDENCE = 0.4

M0 = Parameter("m0", "arbitrary", AMPLITUDE_BOUNDS, 10.0, "Equilibrium signal M0", "M0map")
T1 = Parameter("t1", "s", T1_BOUNDS, 1.0, "Longitudinal relaxation time T1", "T1map", (0.0, 4.0))
R1 = Parameter("r1", "1/s", (1 / 8.0, 50.0), 1.0, "Longitudinal relaxation rate R1", "R1map", (0.0, 2.0))
B1 = Parameter("b1", "1", (0.2, 2.0), 1.0, "Transmit field, effective over nominal flip angle", "TB1map")


class VariableFlipAngleT1(SignalModel):
    r"""T1 from spoiled gradient echoes of several flip angles; the transmit field B1 scales the angles.

    .. math::
        S(\alpha) = M_0 \sin(B_1 \alpha) \frac{1 - E_1}{1 - E_1 \cos(B_1 \alpha)}, \quad E_1 = e^{-TR / T_1}

    Without a map of B1 it is taken as 1; an error of x in it is an error of about 2x in T1.
    """

    name: ClassVar[str] = "vfa"
    title: ClassVar[str] = "T1 by variable flip angles"
    reference: ClassVar[str] = (
        "Ernst and Anderson 1966, Rev Sci Instrum 37:93; Fram et al. 1987, Magn Reson Imaging 5:201; "
        "Deoni et al. 2003, Magn Reson Med 49:515"
    )
    parameters: ClassVar[tuple[Parameter, ...]] = (M0, T1)
    derived: ClassVar[tuple[Parameter, ...]] = (R1,)
    covariates: ClassVar[tuple[Parameter, ...]] = (B1,)
    acquisition_type: ClassVar[type[Acquisition]] = SpoiledGradientEcho
    bids_suffixes: ClassVar[tuple[str, ...]] = ("VFA",)
    needs: ClassVar[str] = "2 distinct flip angles, without a magnetization transfer pulse"
    methods: ClassVar[str] = (
        "T1 was estimated from spoiled gradient echoes of several flip angles by the Ernst equation [@ernst] "
        "[@despot], with the effective flip angles where there was a map of the transmit field."
    )
    bibliography: ClassVar[str] = """
    @article{ernst,
      author = {Ernst RR, Anderson WA},
      year = {1966},
      title = {Application of Fourier transform spectroscopy to magnetic resonance},
      journal = {Review of Scientific Instruments},
      volume = {37},
      pages = {93-102},
      doi = {10.1063/1.1719961}
    }
    @article{despot,
      author = {Deoni SCL, Rutt BK, Peters TM},
      year = {2003},
      title = {Rapid combined T1 and T2 mapping using gradient recalled acquisition in the steady state},
      journal = {Magnetic Resonance in Medicine},
      volume = {49},
      pages = {515-526},
      doi = {10.1002/mrm.10407}
    }
    """

    def signal(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return (..., n_measurements) signals for the columns m0, t1, b1 of `theta`."""
        m0, t1, b1 = (column.unsqueeze(-1) for column in theta.unbind(-1))
        tangent, recovery = _tangent(acquisition, b1), _recovery(acquisition, t1)
        return m0 * 2 * tangent * recovery / (recovery + tangent.square())

    def jacobian(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return the derivatives by m0 and t1 in closed form, (..., n_measurements, 2)."""
        m0, t1, b1 = (column.unsqueeze(-1) for column in theta.unbind(-1))
        tangent, recovery = _tangent(acquisition, b1), _recovery(acquisition, t1)
        total = recovery + tangent.square()
        by_recovery = 2 * tangent * (tangent / total).square()
        by_t1 = m0 * by_recovery * _recovery_derivative(acquisition, t1, recovery)
        return torch.stack([2 * tangent * recovery / total, by_t1], dim=-1)

    def derive(self, theta: torch.Tensor) -> torch.Tensor:
        """Return R1 = 1 / T1, (..., 1)."""
        return 1 / theta[..., 1:2]

    def check(self, acquisition: Acquisition) -> None:
        """Require two distinct flip angles and no magnetization transfer pulse."""
        super().check(acquisition)
        protocol = _protocol(acquisition)
        if any(protocol.mt_pulse):
            raise ProtocolError(
                f"Model {self.name} needs images without a magnetization transfer pulse, but MTState is true; "
                "use model mtsat (BIDS suffix MTS) or leave the model out with --models."
            )
        _check_flip_angles(protocol.flip_angle, self.name, "FlipAngle")


class MagnetizationTransferSaturation(SignalModel):
    r"""Saturation by a magnetization transfer pulse, and T1, from spoiled gradient echoes with and without it.

    .. math::
        S = M_0 \frac{\tau \rho}{\rho + \tau^2 / 2 + \delta}, \quad \tau = 2 \tan \frac{B_1 \alpha}{2}, \quad
        \rho = 2 \tanh \frac{TR}{2 T_1}, \quad \delta = \frac{MT_{sat}}{100} B_1^2 \frac{1 - 0.4 B_1}{1 - 0.4}

    for images with the pulse; without it, delta is zero and this is the Ernst equation. For small angles and short
    repetition times tau is the flip angle and rho is TR / T1, as in the paper; this form is exact for larger ones as
    well (Dathe and Helms 2010). MTsat is the saturation per repetition at the nominal transmit field, in percent. It
    grows with the square of B1, which cancels where flip angles are taken as nominal, times the empirical factor with
    0.4: without a map of B1, MTsat is nearly right, but T1 is not.
    """

    name: ClassVar[str] = "mtsat"
    title: ClassVar[str] = "Magnetization transfer saturation"
    reference: ClassVar[str] = (
        "Helms et al. 2008, Magn Reson Med 60:1396, and erratum 2010, 64:1856; angles: Dathe and Helms 2010, "
        "Phys Med Biol 55:4231; transmit field: Weiskopf et al. 2013, Front Neurosci 7:95"
    )
    parameters: ClassVar[tuple[Parameter, ...]] = (
        M0,
        T1,
        Parameter(
            "mtsat",
            "arbitrary",
            SATURATION_BOUNDS,
            1.0,
            "Magnetization transfer saturation, percent of the longitudinal magnetization per repetition",
            "MTsat",
            (0.0, 6.0),
        ),
    )
    derived: ClassVar[tuple[Parameter, ...]] = (R1,)
    covariates: ClassVar[tuple[Parameter, ...]] = (B1,)
    acquisition_type: ClassVar[type[Acquisition]] = SpoiledGradientEcho
    bids_suffixes: ClassVar[tuple[str, ...]] = ("MTS",)
    needs: ClassVar[str] = "2 distinct flip angles without a magnetization transfer pulse, and an image with it"
    methods: ClassVar[str] = (
        "Magnetization transfer saturation and T1 were estimated from spoiled gradient echoes with and without a "
        "magnetization transfer pulse [@mtsat] [@dathe], with the empirical correction for the transmit field "
        "[@weiskopf] where there was a map of it."
    )
    bibliography: ClassVar[str] = """
    @article{mtsat,
      author = {Helms G, Dathe H, Kallenberg K, Dechent P},
      year = {2008},
      title = {High-resolution maps of magnetization transfer with inherent correction for RF inhomogeneity and T1
        relaxation obtained from 3D FLASH MRI},
      journal = {Magnetic Resonance in Medicine},
      volume = {60},
      pages = {1396-1407},
      doi = {10.1002/mrm.21732}
    }
    @article{dathe,
      author = {Dathe H, Helms G},
      year = {2010},
      title = {Exact algebraization of the signal equation of spoiled gradient echo MRI},
      journal = {Physics in Medicine and Biology},
      volume = {55},
      pages = {4231-4245},
      doi = {10.1088/0031-9155/55/15/003}
    }
    @article{weiskopf,
      author = {Weiskopf N, Suckling J, Williams G, et al.},
      year = {2013},
      title = {Quantitative multi-parameter mapping of R1, PD*, MT, and R2* at 3T: a multi-center validation},
      journal = {Frontiers in Neuroscience},
      volume = {7},
      pages = {95},
      doi = {10.3389/fnins.2013.00095}
    }
    """

    def signal(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return (..., n_measurements) signals for the columns m0, t1, mtsat, b1 of `theta`."""
        m0, t1, mtsat, b1 = (column.unsqueeze(-1) for column in theta.unbind(-1))
        tangent, recovery = _tangent(acquisition, b1), _recovery(acquisition, t1)
        saturation = mtsat * _saturation_per_percent(acquisition, b1)
        return m0 * 2 * tangent * recovery / (recovery + tangent.square() + saturation / 2)

    def jacobian(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return the derivatives by m0, t1 and mtsat in closed form, (..., n_measurements, 3)."""
        m0, t1, mtsat, b1 = (column.unsqueeze(-1) for column in theta.unbind(-1))
        tangent, recovery = _tangent(acquisition, b1), _recovery(acquisition, t1)
        per_percent = _saturation_per_percent(acquisition, b1)
        lost = tangent.square() + mtsat * per_percent / 2
        total = recovery + lost
        by_recovery = 2 * tangent * lost / total.square()
        by_t1 = m0 * by_recovery * _recovery_derivative(acquisition, t1, recovery)
        by_mtsat = -m0 * tangent * recovery * per_percent / total.square()
        return torch.stack([2 * tangent * recovery / total, by_t1, by_mtsat], dim=-1)

    def derive(self, theta: torch.Tensor) -> torch.Tensor:
        """Return R1 = 1 / T1, (..., 1)."""
        return 1 / theta[..., 1:2]

    def check(self, acquisition: Acquisition) -> None:
        """Require an image with the pulse and two flip angles without it."""
        super().check(acquisition)
        protocol = _protocol(acquisition)
        if not any(protocol.mt_pulse):
            raise ProtocolError(
                f"Model {self.name} needs an image with a magnetization transfer pulse (MTState true), got none; "
                "add it or leave the model out with --models."
            )
        without = [angle for angle, pulse in zip(protocol.flip_angle, protocol.mt_pulse, strict=True) if not pulse]
        _check_flip_angles(without, self.name, "FlipAngle without a magnetization transfer pulse")
        # The steady state must exist down to the lowest saturation, also where T1 is longest.
        for angle, time in zip(protocol.flip_angle, protocol.repetition_time, strict=True):
            losses = math.tanh(time / (2 * T1_BOUNDS[1])) + math.tan(math.radians(angle) / 2) ** 2
            if losses <= -SATURATION_BOUNDS[0] / 100:
                raise ProtocolError(
                    f"Model {self.name} needs longer repetition times or larger flip angles than {time:g} s and "
                    f"{angle:g} degree: the signal would hardly depend on relaxation."
                )


def _check_flip_angles(angles: tuple[float, ...] | list[float], model: str, field: str) -> None:
    """Raise unless there are two distinct flip angles."""
    if len(set(angles)) < 2:
        raise ProtocolError(
            f"Model {model} needs at least 2 distinct values of {field}, got {len(set(angles))} "
            f"({', '.join(f'{angle:g}' for angle in angles) or 'none'} degree); add the missing images or leave the "
            "model out with --models."
        )


def _protocol(acquisition: Acquisition) -> SpoiledGradientEcho:
    if not isinstance(acquisition, SpoiledGradientEcho):
        raise ProtocolError(f"The steady state needs spoiled gradient echoes, got {type(acquisition).__name__}.")
    return acquisition


def _tangent(acquisition: Acquisition, b1: torch.Tensor) -> torch.Tensor:
    """Return the tangent of half the effective flip angle, (..., n_measurements)."""
    half = [math.radians(angle) / 2 for angle in _protocol(acquisition).flip_angle]
    return torch.tan(b1 * b1.new_tensor(half))


def _recovery(acquisition: Acquisition, t1: torch.Tensor) -> torch.Tensor:
    """Return tanh(TR / 2 T1), (..., n_measurements)."""
    return torch.tanh(t1.new_tensor(_protocol(acquisition).repetition_time) / (2 * t1))


def _recovery_derivative(acquisition: Acquisition, t1: torch.Tensor, recovery: torch.Tensor) -> torch.Tensor:
    """Return the derivative of `_recovery` by T1."""
    time = t1.new_tensor(_protocol(acquisition).repetition_time)
    return -time / (2 * t1.square()) * (1 - recovery.square())


def _saturation_per_percent(acquisition: Acquisition, b1: torch.Tensor) -> torch.Tensor:
    """Return the saturation in each measurement for an MTsat of one percent, (..., n_measurements)."""
    pulse = b1.new_tensor(_protocol(acquisition).mt_pulse)
    return pulse / 100 * b1.square() * (1 - FIELD_DEPENDENCE * b1) / (1 - FIELD_DEPENDENCE)
