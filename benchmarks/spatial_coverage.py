"""Coverage of 1.96 standard deviations of rim.

    python benchmarks/spatial_coverage.py LABELS

LABELS is the folder of the label maps; training leaves out the last five. The last three of these, which did not
calibrate the standard deviations either, are measured as in use: whole slices, random protocols as in training (half of
the magnitudes with Rician noise), with known noise or noise from residuals, and every voxel as a slice of its own. Per
SNR, the table has the coverage of each parameter in percent, and the median standard deviation of the relaxation time
relative to its estimate. `none` is the percentage of voxels without a standard deviation.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.estimators.spatial.estimators import RecurrentInference
from qmri_bidsapp.estimators.spatial.patches import draw_protocol
from qmri_bidsapp.estimators.spatial.recipe import N_CALIBRATION, N_HELD_OUT
from qmri_bidsapp.estimators.spatial.trials import draw_scene, measure
from qmri_bidsapp.images.label_maps import load_heads
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.registry import get_model

SNRS = (3, 5, 10, 20, 50, 100)
#: Number of protocols, each with new tissue, and of voxels without neighbours for each.
N_PROTOCOLS, N_ALONE, SEED = 12, 500, 11
WAYS = ("known noise", "noise from residuals", "voxels alone")


def ratios(model: SignalModel, heads: list[np.ndarray], snr: float, index: int) -> dict[str, np.ndarray]:
    """Return way -> errors over standard deviations, (n_voxels, n_parameters + 1); the last column is std / T."""
    rng = np.random.default_rng([SEED, index])
    protocol = draw_protocol(model, rng)
    try:
        estimator = RecurrentInference(model).fit(protocol)
    except ProtocolError:
        return {}
    scene = draw_scene(model, heads, rng)
    is_rician = bool(index % 2) and not protocol.has_sign
    trial = measure(model, scene, protocol, snr, rng, is_rician=is_rician)
    mask = np.moveaxis(scene.brain, 0, -1)
    signals, truth = np.moveaxis(trial.signals[0], 0, 2)[mask], np.moveaxis(scene.theta, 0, 2)[mask]
    estimator.noise = "rician" if is_rician else "gaussian"
    some = rng.permutation(len(signals))[:N_ALONE]
    found = {
        WAYS[0]: (estimator.predict_volume(signals, mask, noise_std=trial.noise_std), truth),
        WAYS[1]: (estimator.predict_volume(signals, mask), truth),
        WAYS[2]: (estimator.predict(signals[some], noise_std=trial.noise_std), truth[some]),
    }
    n = len(model.parameters)
    return {
        way: np.column_stack(
            [np.abs(maps.estimate[:, :n] - true) / maps.std[:, :n], maps.std[:, n - 1] / maps.estimate[:, n - 1]]
        )
        for way, (maps, true) in found.items()
    }


def main(labels: Path) -> None:
    """Print a table for each model."""
    torch.set_num_threads(1)
    heads = load_heads(labels)[-N_HELD_OUT:][N_CALIBRATION:]
    for name in ("t1", "t2"):
        model = get_model(name)
        what = ", ".join(parameter.name for parameter in model.parameters)
        print(f"\n| {name}: SNR | {' | '.join(f'{way}: {what}; std, none' for way in WAYS)} |")
        print("| ---: | --- | --- | --- |")
        totals: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
        for snr in SNRS:
            parts = [ratios(model, heads, snr, index) for index in range(N_PROTOCOLS)]
            cells = []
            for way in WAYS:
                values = np.concatenate([part[way] for part in parts if part])
                known = values[np.isfinite(values).all(1)]
                covered = (known[:, :-1] <= 1.96).mean(0)
                totals[way].append(covered)
                shares = ", ".join(f"{100 * share:.1f}" for share in covered)
                cells.append(
                    f"{shares}; {100 * np.median(known[:, -1]):.1f}, {100 * (1 - len(known) / len(values)):.1f}"
                )
            print(f"| {snr} | {' | '.join(cells)} |", flush=True)
        means = [", ".join(f"{100 * share:.1f}" for share in np.mean(totals[way], axis=0)) for way in WAYS]
        print(f"| all | {' | '.join(means)} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
