"""Accuracy of a quality-control head on simulated grades; no rater has seen these images.

Each head is scored undisturbed and with new motion, as in `qmri evaluate motion`. The simulated rater sees the true
score with an error of 0.3 mm and gives 1 below 0.75 mm, 2 below 2 mm, 3 above. Grades are predicted from embeddings, by
cross-validation over heads.

    python benchmarks/motion_grades.py --heads HEADS --per-head 10 --json motion_grades.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from qmri_bidsapp.evaluation.motion_score import apply_bias_correction, find_volumes
from qmri_bidsapp.images.volumes import load_image
from qmri_bidsapp.motion.network_input import GRID
from qmri_bidsapp.motion.qc_head import cross_validate
from qmri_bidsapp.motion.scorer import SHIPPED, MotionScorer
from qmri_bidsapp.motion.training.accuracy import simulate_levels
from qmri_bidsapp.preprocess.anat import correct_bias

LIMITS, RATER = (0.75, 2.0), 0.3


def main() -> None:
    """Print the figures and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=Path, required=True)
    parser.add_argument("--per-head", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--motion-weights", type=Path, default=SHIPPED)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    scorer = MotionScorer.load(arguments.motion_weights)
    embeddings, scores, heads = [], [], []
    for number, path in enumerate(find_volumes(arguments.heads)):
        image = load_image(path, ndim=3)
        volume = torch.from_numpy(np.ascontiguousarray(np.nan_to_num(image.dataobj)))
        rng = np.random.default_rng([arguments.seed, number])
        for moved, upright, score in simulate_levels(volume, image.affine, arguments.per_head, rng, GRID):
            embeddings.append(
                scorer.score(apply_bias_correction(moved, upright, scorer, correct_bias), upright).embedding
            )
            scores.append(score)
            heads.append(path.name)
        print(f"{path.name}: {len(heads)} images", flush=True)
    seen = np.array(scores) + np.random.default_rng(arguments.seed).normal(0, RATER, len(scores))
    figures = cross_validate(np.array(embeddings), 1.0 + np.searchsorted(LIMITS, seen), heads, seed=arguments.seed)
    print(json.dumps(figures, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
