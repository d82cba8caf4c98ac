"""Features of a voxel for learned estimators."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import Acquisition, Diffusion, reference_limit
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.layout import n_distinct_axes
from qmri_bidsapp.models.rotation import FORMS, harmonics_of_elements
from qmri_bidsapp.models.tensor import full_tensor

Array = npt.NDArray[np.float64]

#: Largest condition number of the least-squares fit of spherical harmonics to a shell.
MAX_CONDITION = 20.0


class Features:
    """Signals, covariates and noise of a voxel, in a form that does not depend on the orientation of its tissue.

    For models that turn with the tissue, the relative signals of each shell are replaced by spherical harmonics up to
    degree four, two, or zero, whichever the directions of the shell determine. Their axes are the voxel's own: the
    eigenvectors of the quadratic form that fits the signals of all shells, by ascending signal. For evenly spread
    directions, a posterior over tissue in any orientation depends on nothing else.

    Parameters
    ----------
    model : SignalModel
    acquisition : Acquisition
    noise : Noise
        Noise of the training.
    device : str

    Raises
    ------
    ProtocolError
        If no shell has the six directions that the voxel's axes need.
    """

    def __init__(self, model: SignalModel, acquisition: Acquisition, noise: Noise, device: str) -> None:
        self._noise = noise
        self._is_oriented = bool(model.directional)
        blocks, axes = (
            _operators(acquisition, 4 if model.directional else 0)
            if isinstance(acquisition, Diffusion)
            else ({}, np.zeros((0, 6)))
        )
        if model.directional and not axes.any():
            raise ProtocolError(
                f"A learned estimator of model {model.name} needs a shell of at least 6 directions in general position."
            )
        self._axes = torch.tensor(axes, dtype=torch.float32, device=device)
        self._blocks = {rank: torch.tensor(block, dtype=torch.float32, device=device) for rank, block in blocks.items()}

    def frames(self, relative: torch.Tensor) -> torch.Tensor | None:
        """Return the axes of each voxel as rows, (n, 3, 3); None for models that do not turn with the tissue.

        Parameters
        ----------
        relative : Tensor
            (n, n_measurements) signals over the reference.
        """
        if not self._is_oriented:
            return None
        vectors: torch.Tensor = torch.linalg.eigh(full_tensor(relative @ self._axes)).eigenvectors
        return vectors.mT

    def __call__(
        self,
        relative: torch.Tensor,
        frames: torch.Tensor | None,
        noise_std: torch.Tensor,
        covariates: torch.Tensor,
    ) -> torch.Tensor:
        """Return (n, n_features).

        Parameters
        ----------
        relative : Tensor
            (n, n_measurements) signals over the reference.
        frames : Tensor or None
            From `frames`.
        noise_std : Tensor
            (n, 1) standard deviation of the noise over the reference; NaN where unknown.
        covariates : Tensor
            (n, n_covariates).
        """
        parts = [*self._signals(relative, frames), covariates]
        if not self._noise.is_fixed:
            low, high = (math.log(value) for value in self._noise.snr)
            level = (-(noise_std.log()) - low) / (high - low)
            known = torch.isfinite(level)
            parts += [torch.where(known, level.clamp(0, 1), 0.5), known.float()]
        return torch.cat(parts, dim=1)

    def _signals(self, relative: torch.Tensor, frames: torch.Tensor | None) -> list[torch.Tensor]:
        """Return the signals, or the harmonics of each shell."""
        if not self._blocks:
            return [relative]
        parts = []
        for rank, block in self._blocks.items():
            values = relative @ block
            if frames is not None and rank:
                harmonics = harmonics_of_elements(frames, rank)
                size = harmonics.shape[-1]
                elements = values.reshape(len(values), values.shape[1] // size, size)
                values = (elements @ harmonics.mT).flatten(1)
            parts.append(values)
        return parts


def _operators(acquisition: Diffusion, highest: int) -> tuple[dict[int, Array], Array]:
    """Return the matrices from signals to the polynomials of each shell.

    Returns
    -------
    blocks : dict
        Highest rank that the directions determine -> (n_measurements, n_shells * n_elements) of the shells with it.
    axes : ndarray
        (n_measurements, 6), for the mean of the quadratic forms of all shells; zero if no shell determines one.
    """
    timed = acquisition.small_delta is not None and acquisition.large_delta is not None
    n = acquisition.n_measurements
    b_value, direction = np.asarray(acquisition.b_value), np.asarray(acquisition.direction)
    blocks: dict[int, list[Array]] = {}
    axes = np.zeros((n, 6))
    for shell in acquisition.timed_shells() if timed else acquisition.shells():
        is_weighted = b_value[shell].max() > reference_limit(acquisition.b_value)
        rank = _rank(direction[shell], highest) if is_weighted else 0
        form = FORMS[rank](torch.tensor(direction[shell])).numpy() if rank else np.ones((len(shell), 1))
        block = np.zeros((n, form.shape[1]))
        block[shell] = np.linalg.pinv(form).T
        blocks.setdefault(rank, []).append(block)
        if rank:
            form = FORMS[2](torch.tensor(direction[shell])).numpy()
            axes[shell] = len(shell) / n * np.linalg.pinv(form).T
    return {rank: np.concatenate(parts, axis=1) for rank, parts in blocks.items()}, axes


def _rank(direction: Array, highest: int) -> int:
    """Return the highest degree, at most `highest`, of a polynomial that (n, 3) directions determine."""
    for rank in (4, 2):
        if rank <= highest:
            harmonics = harmonics_of_elements(torch.eye(3, dtype=torch.float64).unsqueeze(0), rank)[0].numpy()
            design = FORMS[rank](torch.tensor(direction)).numpy() @ np.linalg.inv(harmonics)
            if n_distinct_axes(direction) >= design.shape[1] and np.linalg.cond(design) < MAX_CONDITION:
                return rank
    return 0
