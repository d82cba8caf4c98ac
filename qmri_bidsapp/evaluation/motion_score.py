"""Accuracy of the motion score on heads of any folder, with simulated motion."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from qmri_bidsapp.errors import InputError, InputMissingError
from qmri_bidsapp.images.volumes import load_image
from qmri_bidsapp.motion.displacement import Floats
from qmri_bidsapp.motion.network_input import GRID
from qmri_bidsapp.motion.scorer import MotionScorer
from qmri_bidsapp.motion.training.accuracy import ScoredImage, agreement, simulate_levels


@dataclass
class Evaluation:
    """True and estimated scores.

    Attributes
    ----------
    cases : list of ScoredImage
        Scored images, with their true scores; the images themselves are dropped.
    scores : list of (float, float, float)
        Mean and limits of the interval of each, mm.
    skipped : dict
        File -> reason.
    refused : dict
        Head -> number of images with motion that the scorer refused.
    """

    cases: list[ScoredImage] = field(default_factory=list)
    scores: list[tuple[float, float, float]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """Return measures of agreement, overall and by head; None where there are too few images."""
        heads = np.array([case.head for case in self.cases])
        overall = self._agreement(np.full(len(heads), True))
        by_head = {name: self._agreement(heads == name) for name in sorted(set(heads.tolist()))}
        for name, n in self.refused.items():
            by_head[name]["refused"] = n
        return {**overall, "n": len(heads), "by_head": by_head, "skipped": self.skipped}

    def _agreement(self, chosen: Any) -> dict[str, Any]:
        rows = np.flatnonzero(chosen)
        mean, low, high = np.array([self.scores[i] for i in rows]).T
        found = agreement([self.cases[i] for i in rows], mean, low, high)
        return {name: value if np.isfinite(value) else None for name, value in found.items()}


def find_volumes(folder: Path) -> list[Path]:
    """Return the volumes (.nii, .nii.gz) in a folder and its subfolders, sorted.

    Raises
    ------
    InputMissingError
        If there is none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.name.endswith((".nii", ".nii.gz")) and path.is_file())
    if not paths:
        raise InputMissingError(f"{folder} does not exist or holds no .nii or .nii.gz.")
    return paths


def evaluate(
    paths: Sequence[Path],
    root: Path,
    scorer: MotionScorer,
    *,
    per_head: int,
    seed: int,
    correct_bias: Callable[[nib.Nifti1Image], nib.Nifti1Image],
    report: Callable[[str], None] = print,
    skip: Callable[[str], None] = print,
) -> Evaluation:
    """Score every head as acquired and with simulated motion.

    The motion of a head depends only on the seed and its name, not on other files.

    Parameters
    ----------
    paths : sequence of Path
        T1w volumes.
    root : Path
        Names of heads are relative to this folder.
    scorer : MotionScorer
    per_head : int
        Number of levels of motion, from 0 to 4 mm.
    seed : int
    correct_bias : callable
        The app's correction of the bias field; used if the network expects it.
    report, skip : callable
        Receive lines of progress, and a line for each skipped file.

    Raises
    ------
    InputError
        If no file can be scored.
    """
    found = Evaluation()
    for number, path in enumerate(paths, start=1):
        name = path.relative_to(root).as_posix()
        try:
            image = load_image(path, ndim=3)
            volume = torch.from_numpy(np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32), posinf=0, neginf=0))
            affine = np.asarray(image.affine, dtype=np.float64)
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            for level, (moved, upright, score) in enumerate(simulate_levels(volume, affine, per_head, rng, GRID)):
                report(f"head {number}/{len(paths)}, image {level + 1}/{per_head + 1}: {name}")
                seen = apply_bias_correction(moved, upright, scorer, correct_bias)
                _add(found, name, score, seen, upright, scorer)
        except InputError as error:
            found.skipped[name] = str(error)
            skip(f"skipped: {name}: {error}")
    if not found.cases:
        raise InputError(f"None of the {len(paths)} files can be scored.")
    return found


def _add(
    found: Evaluation, name: str, score: float, volume: torch.Tensor, affine: Floats, scorer: MotionScorer
) -> None:
    """Score an image. A refused image with motion is counted; a refused one without skips its head."""
    try:
        result = scorer.score(volume, affine)
    except InputError:
        if score == 0:
            raise
        found.refused[name] = found.refused.get(name, 0) + 1
        return
    found.cases.append(ScoredImage(name, "", torch.empty(0), score))
    found.scores.append((result.mean, result.low, result.high))


def apply_bias_correction(
    volume: torch.Tensor,
    affine: Floats,
    scorer: MotionScorer,
    correct_bias: Callable[[nib.Nifti1Image], nib.Nifti1Image],
) -> torch.Tensor:
    """Return a volume as the app scores it: after N4 if the network expects it."""
    if not scorer.bias_corrected:
        return volume
    corrected = correct_bias(nib.Nifti1Image(volume.numpy(), affine))
    return torch.from_numpy(np.asarray(corrected.dataobj, dtype=np.float32))
