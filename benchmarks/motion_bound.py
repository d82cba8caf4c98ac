"""Upper bound of the accuracy of a motion score from poses alone, by voxel size and resolution of the image.

Poses acquired within the band of the network's grid are known exactly, those beyond are unknown. The last row uses only
the mean and maximum distance of the head from its place in each of eight bands of k-space. Gradient boosting is trained
on 5,000 simulated acquisitions and tested on 1,000 others.

    python benchmarks/motion_bound.py
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from qmri_bidsapp.motion.displacement import Floats, rms_deviation, rotation_matrix
from qmri_bidsapp.motion.training.augmentation import RESOLUTION
from qmri_bidsapp.motion.training.samples import profile_of
from qmri_bidsapp.motion.training.simulation import MOVEMENTS, Motion, draw_motion

N_TRAINING, N_TEST = 5000, 1000
GRIDS = (2.0, 1.5, 1.2, 1.0)
#: Limits of the groups of voxel sizes, mm.
SIZES = (0.65, 0.8, 1.1, 1.5, 2.1)


def seen(motion: Motion, grid: float) -> Floats:
    """Return features of a motion from the frequencies of a grid of some spacing (mm)."""
    frequency = np.linspace(-0.5 / grid, 0.5 / grid, 65)
    pose = motion.pose_at(frequency)
    rotations, shifts = rotation_matrix(motion.rotations)[pose], motion.translations[pose]
    steps = rms_deviation(rotations[:-1], shifts[:-1], rotations[1:], shifts[1:])
    largest = np.sort(steps)[::-1][: MOVEMENTS[1] + 1]
    n = np.count_nonzero(np.diff(pose))
    return np.concatenate([motion.deviation_at(frequency)[::4], largest, [steps.sum() / max(n, 1), n]])


def r2(truth: Floats, found: Floats) -> float:
    """Return the fraction of variance explained."""
    return float(1 - ((found - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


def main() -> None:
    """Print the table."""
    known_by = {f"poses, {grid} mm": partial(seen, grid=grid) for grid in GRIDS} | {"distances by band": profile_of}
    print("| known | all | " + " | ".join(f"{a} to {b} mm" for a, b in pairwise(SIZES)) + " |")
    print("| --- |" + " ---: |" * len(SIZES))
    for name, look in known_by.items():
        rng = np.random.default_rng(0)
        size = np.exp(rng.uniform(*np.log(RESOLUTION), N_TRAINING + N_TEST))
        motions = [draw_motion(rng, [one] * 3) for one in size]
        known, score = np.array([look(motion) for motion in motions]), np.array([m.score for m in motions])
        model = HistGradientBoostingRegressor(max_iter=400, learning_rate=0.05, early_stopping=True, random_state=0)
        model.fit(known[:N_TRAINING], score[:N_TRAINING])
        truth, found, size = score[N_TRAINING:], model.predict(known[N_TRAINING:]), size[N_TRAINING:]
        groups = [(a <= size) & (size < b) for a, b in pairwise(SIZES)]
        cells = [r2(truth, found), *(r2(truth[group], found[group]) for group in groups)]
        print(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
