"""Models whose logarithm is linear in their parameters; cumulant expansions of the diffusion signal."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import B0_THRESHOLD, Acquisition, Diffusion
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.models.base import SignalModel


class LogLinearModel(SignalModel):
    r"""A signal whose logarithm is linear in ln S0 and in the other parameters.

    .. math:: \ln S = X\, (\ln S_0, \theta_1, \dots, \theta_k)^T

    Subclasses define the matrix; signal, Jacobian and the check of the protocol follow from it.

    Attributes
    ----------
    max_condition : float
        Largest condition number of the matrix, with columns scaled to one, at which a protocol determines the
        parameters.
    """

    max_condition: ClassVar[float] = 1e3

    @abstractmethod
    def design_matrix(self, acquisition: Acquisition) -> torch.Tensor:
        """Return X, (n_measurements, n_parameters) float64; its first column is one."""

    def signal(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return the signal, (..., n_measurements); see `SignalModel.signal`."""
        matrix = self.design_matrix(acquisition)[:, 1:].to(theta)
        return theta[..., :1] * torch.exp(theta[..., 1:] @ matrix.T)

    def jacobian(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return the derivative in closed form, (..., n_measurements, n_parameters)."""
        matrix = self.design_matrix(acquisition)[:, 1:].to(theta)
        attenuation = torch.exp(theta[..., 1:] @ matrix.T).unsqueeze(-1)
        return torch.cat([attenuation, theta[..., :1, None] * attenuation * matrix], dim=-1)

    def is_determined_by(self, acquisition: Acquisition) -> bool:
        """Return whether a protocol determines all parameters."""
        matrix = self.design_matrix(acquisition)
        if len(matrix) < matrix.shape[1]:
            return False
        scale = matrix.abs().amax(0)
        return bool((scale > 0).all()) and bool(torch.linalg.cond(matrix / scale) < self.max_condition)


class CumulantExpansion(LogLinearModel):
    """The logarithm of the diffusion signal as a polynomial in the b-value.

    Attributes
    ----------
    max_b_value : float
        s/mm2 up to which the polynomial holds in tissue. Volumes above it are used only as far as those below do not
        determine the parameters.
    """

    max_b_value: ClassVar[float]
    acquisition_type: ClassVar[type[Acquisition]] = Diffusion
    bids_suffixes: ClassVar[tuple[str, ...]] = ("dwi",)

    def adapt(self, acquisition: Acquisition) -> tuple[Acquisition, npt.NDArray[np.float64] | None]:
        """Leave out the volumes of high b-values: of all shells, as few above `max_b_value` as possible are used."""
        if isinstance(acquisition, Diffusion):
            # Recorded b-values vary a little within a shell, which stays together.
            recorded = [np.asarray(acquisition.b_value)[shell] for shell in acquisition.shells()]
            n_low = sum(self._is_low(b_value) for b_value in recorded)
            for b_value in recorded[max(n_low - 1, 0) : -1]:
                reduced, matrix = acquisition.up_to(b_value.max())
                if self.is_determined_by(reduced):
                    return reduced, matrix
        return acquisition, None

    def _is_low(self, b_value: npt.NDArray[np.float64]) -> bool:
        """Return whether the polynomial holds at the b-values of a shell, s/mm2."""
        return bool(b_value.mean() <= self.max_b_value + B0_THRESHOLD)

    def caution(self, acquisition: Acquisition) -> str | None:
        """Say that volumes above `max_b_value` are used, as the others do not determine the parameters."""
        used, _ = self.adapt(acquisition)
        assert isinstance(used, Diffusion)
        if self._is_low(np.asarray(used.b_value)[used.shells()[-1]]):
            return None
        return (
            f"{self.name}: volumes up to b = {max(used.b_value):.0f} s/mm2 are used, since those up to "
            f"{self.max_b_value:.0f} do not determine the parameters: where diffusion is not as the model says, as in "
            "tissue at such b-values, the maps are biased (diffusivities come out too low)."
        )

    def check(self, acquisition: Acquisition) -> None:
        """Require a gradient table that determines all parameters."""
        super().check(acquisition)
        if not self.is_determined_by(acquisition):
            raise ProtocolError(
                f"Model {self.name} needs {self.needs}; the gradient table does not determine the "
                f"{len(self.parameters)} parameters; leave the model out with --models."
            )


def gradient_table(acquisition: Acquisition) -> tuple[torch.Tensor, torch.Tensor]:
    """Return b-values (n, 1) s/mm2 and directions (n, 3), float64; ProtocolError unless it is a diffusion series."""
    if not isinstance(acquisition, Diffusion):
        raise ProtocolError(f"A diffusion protocol is needed, got {type(acquisition).__name__}.")
    b_value, direction = (torch.tensor(x, dtype=torch.float64) for x in (acquisition.b_value, acquisition.direction))
    return b_value.unsqueeze(-1), direction.reshape(-1, 3)
