"""Check that loaded weights still reproduce the predictions stored with them, and suit the protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.artifacts.weights import REMEDY
from qmri_bidsapp.errors import WeightsError

#: Largest angle, degree, between a gradient direction of the training and that of a series after motion correction.
#: Features use the series' own directions. Other tables of directions differ by more for some direction.
MAX_TURN = 20.0
#: Largest difference of noise-free signals of amplitude one.
SIGNAL_TOLERANCE = 1e-3
#: Largest median difference of estimates, in standard deviations, and of the logarithm of these.
ESTIMATE_TOLERANCE = 0.1
#: Error that rounding on another machine may cause, relative to the spread of the estimates.
ROUNDING = 1e-3


def check_turn(folder: Path, trained: npt.NDArray[np.floating], used: npt.NDArray[np.floating]) -> None:
    """Raise WeightsError if gradient axes, (n, 3) each, differ by more than motion explains."""
    cosine = np.abs((trained * used).sum(1))[np.linalg.norm(trained, axis=1) > 0]
    turn = float(np.rad2deg(np.arccos(cosine.clip(max=1))).max(initial=0.0))
    if turn > MAX_TURN:
        raise WeightsError(
            f"The weights in {folder} are for other gradient directions: one differs by {turn:.0f} degree, more than "
            f"the {MAX_TURN:g} that motion explains. {REMEDY}"
        )


def check_probes(
    folder: Path, probes: Mapping[str, torch.Tensor], clean: torch.Tensor, estimate: torch.Tensor, std: torch.Tensor
) -> None:
    """Raise WeightsError if voxels of the training have other signals or estimates now.

    Parameters
    ----------
    folder : Path
    probes : mapping
        Stored with the weights: ``clean``, (n, n_measurements) noise-free signals of amplitude one, and ``estimate``
        and ``std``, (n, n_parameters). Single voxels may differ: rounding can change a branch of a tree, or the sign
        of an eigenvector.
    clean, estimate, std : Tensor
        The same, computed now.
    """
    same_signals = bool(((clean - probes["clean"]).abs() <= SIGNAL_TOLERANCE).all())
    usual = ROUNDING * (probes["estimate"] - probes["estimate"].nanmedian(0).values).abs().nanmedian(0).values
    difference = (estimate - probes["estimate"]).abs() / (probes["std"] + usual)
    widening = ((std + usual) / (probes["std"] + usual)).log().abs()
    worst = torch.stack([difference, widening]).nanmedian(1).values
    lost = torch.isnan(std).sum(0) > torch.isnan(probes["std"]).sum(0) + len(std) // 4
    if not same_signals or bool((worst > ESTIMATE_TOLERANCE).any()) or bool(lost.any()):
        raise WeightsError(
            f"The weights in {folder} come from a version of the program that computes other "
            f"{'features or estimates' if same_signals else 'signals'}. {REMEDY}"
        )


def errors_by_name(names: Sequence[str], error: torch.Tensor, std: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return the card's summary of scaled errors on unseen voxels and their standard deviations, (n, n_names) each."""
    relative, covered = error.square().mean(0).sqrt(), (error.abs() <= 1.96 * std).float().mean(0)
    return {
        name: {"relative_rmse": round(float(e), 4), "coverage_of_95": round(float(c), 4)}
        for name, e, c in zip(names, relative, covered, strict=True)
    }
