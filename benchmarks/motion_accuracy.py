"""Accuracy of the motion score by domain, resolution and noise, on heads that were not in the training.

Each head is resampled to a resolution and scored undisturbed and with new motion; noise is added after the motion. Each
rendered head has one contrast, T1-like or other.

    python benchmarks/motion_accuracy.py --heads HEADS --stripped STRIPPED --labels LABELS --only ds000011-sub-08 seg_18
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.images.volumes import load_image
from qmri_bidsapp.motion.displacement import Floats
from qmri_bidsapp.motion.network_input import GRID, reorient, resample
from qmri_bidsapp.motion.scorer import SHIPPED, MotionScorer
from qmri_bidsapp.motion.training.accuracy import ScoredImage, agreement, simulate_levels
from qmri_bidsapp.motion.training.rendering import draw_contrast, render
from qmri_bidsapp.motion.training.samples import label_head

#: Voxel size (mm; 0: native) and standard deviation of the added noise (fraction of the 99th percentile).
CONDITIONS = ((0.0, 0.0), (1.5, 0.0), (2.0, 0.0), (0.0, 0.02), (0.0, 0.05))
COLUMNS = {
    "r2": ("R2", ".2f"),
    "mae_mm": ("error, mm", ".2f"),
    "bias_mm": ("bias, mm", "+.2f"),
    "spearman_within_head": ("rank", ".2f"),
    "coverage_90": ("in 90 %", ".2f"),
    "still_mean_mm": ("still, mm", ".2f"),
    "still_below_0.5": ("still below 0.5 mm", ".2f"),
}


def load(domain: str, path: Path, rng: np.random.Generator) -> tuple[Tensor, Floats]:
    """Return a volume, towards right, anterior and superior, and its voxel size, mm."""
    image = load_image(path, ndim=3)
    volume = torch.from_numpy(np.nan_to_num(np.asarray(image.dataobj)))
    if domain == "rendered":
        head = label_head(path.name, volume, image.affine, GRID)
        assert head.intensity is not None
        return render(head.volume, draw_contrast(rng, head.intensity)), head.voxel_size
    return reorient(volume.float().clamp_min(0), image.affine)


def coarsen(volume: Tensor, size: Floats, spacing: float) -> tuple[Tensor, Floats]:
    """Return a volume resampled to larger voxels of `spacing` (mm; 0: native)."""
    if not spacing:
        return volume, size
    extent = size * np.array(volume.shape)
    middle = (extent - size) / 2
    shape = (extent / spacing).astype(int).tolist()
    return resample(volume, size.tolist(), middle.tolist(), shape, spacing).clamp_min(0), np.full(3, spacing)


def add_noise(volume: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """Return a magnitude image with noise of a standard deviation in units of the 99th percentile."""
    if not level:
        return volume
    sigma = level * float(np.quantile(volume[::3, ::3, ::3], 0.99))
    real, imaginary = (torch.from_numpy(rng.standard_normal(volume.shape, dtype=np.float32)) for _ in range(2))
    return torch.hypot(volume + sigma * real, sigma * imaginary)


def score_head(
    domain: str, path: Path, scorer: MotionScorer, per_head: int, seed: int
) -> list[tuple[str, tuple[float, float], ScoredImage, tuple[float, float, float]]]:
    """Return domain, condition, case and score of every image of a head. Refused images are printed and skipped."""
    rng = np.random.default_rng([seed, *path.name.encode()])
    volume, size = load(domain, path, rng)
    found = []
    for spacing in sorted({spacing for spacing, _ in CONDITIONS}):
        coarse, voxel_size = coarsen(volume, size, spacing)
        levels = [noise for other, noise in CONDITIONS if other == spacing]
        for moved, upright, score in simulate_levels(coarse, np.diag([*voxel_size, 1.0]), per_head, rng, GRID):
            for noise in levels:
                try:
                    result = scorer.score(add_noise(moved, noise, rng), upright)
                except InputError as error:
                    print(f"refused: {path.name}, {score:.1f} mm: {error}", flush=True)
                    continue
                case = ScoredImage(path.name, domain, torch.empty(0), score)
                found.append((domain, (spacing, noise), case, (result.mean, result.low, result.high)))
    return found


def main() -> None:
    """Print the tables, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=Path, required=True)
    parser.add_argument("--stripped", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="NAME", help="files whose name contains one of these"
    )
    parser.add_argument("--per-head", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--motion-weights", type=Path, default=SHIPPED)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    scorer = MotionScorer.load(arguments.motion_weights)
    found = []
    for domain, folder in {"real": "heads", "stripped": "stripped", "rendered": "labels"}.items():
        for path in sorted(getattr(arguments, folder).glob("*.nii.gz")):
            if any(name in path.name for name in arguments.only):
                found += score_head(domain, path, scorer, arguments.per_head, arguments.seed)
                print(f"{domain}: {path.name}", flush=True)
    figures = {}
    print("\n| domain | voxel size | noise | " + " | ".join(title for title, _ in COLUMNS.values()) + " |")
    print("| --- | --- | --- |" + " ---: |" * len(COLUMNS))
    for domain in ("real", "rendered", "stripped", "all"):
        for condition in CONDITIONS:
            rows = [row for row in found if row[1] == condition and domain in (row[0], "all")]
            if not rows:
                continue
            row = figures[f"{domain} {condition[0]} {condition[1]}"] = figures_of(rows)
            cells = " | ".join(format(row[key], form) for key, (_, form) in COLUMNS.items())
            size = f"{condition[0]} mm" if condition[0] else "native"
            print(f"| {domain} | {size} | {condition[1]:.0%} | {cells} |")
    print("\nLargest errors, native resolution without noise:")
    plain = [row for row in found if row[1] == (0.0, 0.0)]
    for _, _, case, (mean, low, high) in sorted(plain, key=lambda row: -abs(row[3][0] - row[2].score))[:5]:
        print(f"- {case.head}: {case.score:.2f} mm, estimated {mean:.2f} ({low:.2f} to {high:.2f})")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def figures_of(rows: list[Any]) -> dict[str, float]:
    """Return the figures of agreement of some rows."""
    mean, low, high = np.array([row[3] for row in rows]).T
    return agreement([row[2] for row in rows], mean, low, high)


if __name__ == "__main__":
    main()
