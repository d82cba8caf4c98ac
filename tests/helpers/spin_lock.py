"""What a package would register for a suffix of its own: a row, an acquisition and a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from qmri_bidsapp.bids.kinds import Field, Kind
from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.models.base import SignalModel


@dataclass(frozen=True)
class SpinLock(Acquisition):
    """Images after spin locks of several durations, s."""

    spin_lock_time: tuple[float, ...]

    @property
    def n_measurements(self) -> int:
        return len(self.spin_lock_time)

    def rows(self) -> list[tuple[str, str]]:
        return [("Spin-lock times", ", ".join(f"{1e3 * time:g}" for time in self.spin_lock_time) + " ms")]


class T1rho(SignalModel):
    """S(TSL) = S0 exp(-TSL / T1rho)."""

    name: ClassVar[str] = "t1rho"
    title: ClassVar[str] = "T1rho by spin lock"
    reference: ClassVar[str] = "Sepponen et al. 1985, J Comput Assist Tomogr 9:1007"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("s0", "arbitrary", (0.0, 1000.0), 1.0, "Signal at TSL = 0", "S0map"),
        Parameter("t1rho", "s", (0.001, 4.0), 0.1, "Relaxation time T1rho", "T1rhomap", (0.0, 0.2)),
    )
    acquisition_type: ClassVar[type[Acquisition]] = SpinLock
    bids_suffixes: ClassVar[tuple[str, ...]] = ("TSLw",)

    def signal(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        assert isinstance(acquisition, SpinLock)
        s0, t1rho = (column.unsqueeze(-1) for column in theta.unbind(-1))
        return s0 * torch.exp(-torch.as_tensor(acquisition.spin_lock_time, dtype=theta.dtype) / t1rho)


KIND = Kind("TSLw", SpinLock, (Field("spin_lock_time", ("SpinLockTime",), "seconds"),), axis=("echo",))
