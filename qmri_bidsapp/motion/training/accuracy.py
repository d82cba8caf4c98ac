"""Accuracy of scores: images with simulated motion at their own resolution, and measures of agreement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from qmri_bidsapp.motion.displacement import Floats
from qmri_bidsapp.motion.network import SFCN, summarise
from qmri_bidsapp.motion.network_input import GRID, Grid, find_head, prepare, reorient
from qmri_bidsapp.motion.training.simulation import MAX_SCORE, apply_motion, draw_motion

#: Heads without motion should score below this, mm.
STILL_LIMIT = 0.5
COVERAGE = 0.9


@dataclass(frozen=True, eq=False)
class ScoredImage:
    """An input of the network with its true score.

    Attributes
    ----------
    head, domain : str
    image : Tensor
        (x, y, z) float16.
    score : float
        mm; 0 for the image as acquired.
    """

    head: str
    domain: str
    image: Tensor
    score: float


def simulated_cases(
    head: str, domain: str, volume: Tensor, affine: Floats, n: int, rng: np.random.Generator, grid: Grid = GRID
) -> list[ScoredImage]:
    """Return the network's inputs for a T1w volume without and with simulated motion; see `simulate_levels`."""
    return [
        ScoredImage(head, domain, prepare(moved, upright, grid).half(), score)
        for moved, upright, score in simulate_levels(volume, affine, n, rng, grid)
    ]


def simulate_levels(
    volume: Tensor, affine: Floats, n: int, rng: np.random.Generator, grid: Grid
) -> Iterator[tuple[Tensor, Floats, float]]:
    """Yield a T1w volume as acquired, then with simulated motion at `n` levels from 0 to 4 mm.

    Motion acts at the resolution of the volume; there is no augmentation.

    Parameters
    ----------
    volume : Tensor
        (i, j, k).
    affine : ndarray
        (4, 4) voxel to mm.
    n : int
    rng : Generator
    grid : Grid
        Determines the centre of the head, about which it rotates.

    Yields
    ------
    Tensor
        (x, y, z) towards right, anterior, superior.
    ndarray
        (4, 4) affine, upright.
    float
        Score, mm; 0 for the volume as acquired.
    """
    turned, size = reorient(volume.clamp_min(0), affine)
    voxel_size = size.tolist()
    centre = find_head(turned, voxel_size, grid) / size
    upright = np.diag([*voxel_size, 1.0])
    yield turned, upright, 0.0
    for level in range(n):
        motion = draw_motion(rng, voxel_size, score=MAX_SCORE * (level + rng.uniform()) / n)
        yield apply_motion(turned, motion, voxel_size, centre=centre.tolist()), upright, motion.score


@torch.no_grad()
def predict(network: SFCN, images: Sequence[Tensor], device: str = "cpu") -> tuple[Floats, Floats, Floats]:
    """Return mean scores and bounds of their 90% intervals, each (image,) mm."""
    network.eval()
    results = [summarise(network(image[None].to(device).float()), COVERAGE) for image in images]
    mean, lower, upper = (torch.cat(part).double().cpu().numpy() for part in zip(*results, strict=True))
    return mean, lower, upper


def agreement(cases: Sequence[ScoredImage], mean: Floats, lower: Floats, upper: Floats) -> dict[str, float]:
    """Return measures of agreement between true and estimated scores.

    Parameters
    ----------
    cases : sequence of ScoredImage
    mean, lower, upper : ndarray
        (case,) mm, from `predict`.

    Returns
    -------
    dict
        ``r2``, ``mae_mm``, ``bias_mm``, ``spearman_within_head``, ``coverage_90`` of cases with motion, and
        ``still_below_0.5``, ``still_mean_mm`` of cases without. NaN where there are no such cases.
    """
    score = np.array([case.score for case in cases])
    moved = score > 0
    truth, found = score[moved], mean[moved]
    names = np.array([case.head for case in cases])
    ranks = [
        spearmanr(score[rows], mean[rows]).statistic
        for rows in (moved & (names == name) for name in sorted(set(names.tolist())))
        if rows.sum() > 2
    ]
    nan = float("nan")
    figures = {
        "r2": 1 - ((found - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum() if moved.sum() > 1 else nan,
        "mae_mm": np.abs(found - truth).mean() if moved.any() else nan,
        "bias_mm": (found - truth).mean() if moved.any() else nan,
        "spearman_within_head": np.mean(ranks) if ranks else nan,
        "coverage_90": ((lower[moved] <= truth) & (truth <= upper[moved])).mean() if moved.any() else nan,
        "still_below_0.5": (mean[~moved] < STILL_LIMIT).mean() if (~moved).any() else nan,
        "still_mean_mm": mean[~moved].mean() if (~moved).any() else nan,
    }
    return {name: float(value) for name, value in figures.items()}


def agreement_by_domain(
    cases: Sequence[ScoredImage], mean: Floats, lower: Floats, upper: Floats
) -> dict[str, dict[str, float]]:
    """Return `agreement` for all cases and for each domain."""
    domains = np.array([case.domain for case in cases])
    groups = {"all": np.full(len(cases), True)}
    groups |= {name: domains == name for name in sorted(set(domains.tolist()))}
    return {
        name: agreement(
            [case for case, chosen in zip(cases, rows, strict=True) if chosen], mean[rows], lower[rows], upper[rows]
        )
        for name, rows in groups.items()
    }
