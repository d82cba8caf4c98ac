"""Errors of rim and of least squares for protocols within and beyond the training protocols of rim.

    python benchmarks/spatial_protocols.py LABELS

LABELS is the folder of the label maps; training leaves out the last five. Three of these are measured, at SNR 30 with
known Gaussian noise. Per protocol, the table has medians over the brain's voxels of the bias of three repetitions, of
its absolute value and of the root mean square error, relative to the true relaxation time, in percent. It also has the
bias for relaxation times 0.7 and 1.4 times as long, which an estimate that depends on its training does not follow.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from qmri_bidsapp.core.acquisition import Acquisition, InversionRecovery, MultiEcho
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.likelihood.varpro import VariableProjection
from qmri_bidsapp.estimators.spatial.base import SpatialNetwork
from qmri_bidsapp.estimators.spatial.estimators import RecurrentInference
from qmri_bidsapp.estimators.spatial.recipe import N_HELD_OUT
from qmri_bidsapp.estimators.spatial.trials import draw_scene, estimate_with, measure, per_voxel
from qmri_bidsapp.images.label_maps import load_heads
from qmri_bidsapp.registry import get_model

N_HEADS, SNR, N_REPETITIONS, SEED = 3, 30.0, 3, 7
FACTORS = (0.7, 1.4)
#: First time, last time (s) and number. Inversion times that begin before 0.1 s are evenly spaced in their logarithm.
PROTOCOLS: dict[str, tuple[tuple[float, float, int], ...]] = {
    "t1": (
        (0.05, 3.0, 9),
        (0.4, 0.7, 4),
        (0.05, 0.5, 9),
        (0.05, 0.35, 9),
        (0.02, 0.3, 9),
        (0.8, 4.0, 9),
        (1.2, 5.0, 9),
        (2.0, 2.6, 4),
        (2.0, 6.0, 9),
        (0.05, 10.0, 9),
        (0.05, 3.0, 72),
    ),
    "t2": (
        (0.01, 0.2, 10),
        (0.03, 0.06, 4),
        (0.01, 0.04, 10),
        (0.01, 0.03, 4),
        (0.008, 0.02, 8),
        (0.001, 0.004, 4),
        (0.002, 0.1, 10),
        (0.06, 0.3, 8),
        (0.1, 0.4, 8),
        (0.01, 0.8, 32),
        (0.01, 0.32, 72),
    ),
}


class AnyProtocol(RecurrentInference):
    """`rim` without the check of the protocol, to measure refused protocols."""

    check = SpatialNetwork.check


def protocol_of(model: str, first: float, last: float, n: int) -> Acquisition:
    """Return a protocol of `PROTOCOLS`."""
    if model == "t2":
        return MultiEcho(tuple(np.linspace(first, last, n)))
    return InversionRecovery(tuple((np.geomspace if first < 0.1 else np.linspace)(first, last, n)))


def errors(estimator: Estimator, heads: list[np.ndarray], protocol: Acquisition, factor: float = 1.0) -> list[float]:
    """Return median bias, absolute bias and root mean square error, %."""
    rng = np.random.default_rng(SEED)
    scene = draw_scene(estimator.model, heads, rng)
    scene.theta[..., -1] *= factor
    trial = measure(estimator.model, scene, protocol, SNR, rng, n_repetitions=N_REPETITIONS)
    found = estimate_with(estimator.fit(protocol), trial)
    bias, _ = per_voxel(found, scene.truth)
    relative = np.nan_to_num((found - scene.truth) / scene.truth, nan=np.inf)
    return [100 * float(np.median(part)) for part in (bias, abs(bias), np.sqrt((relative**2).mean(0)))]


def main(labels: Path) -> None:
    """Print a table."""
    torch.set_num_threads(1)
    heads = load_heads(labels)[-N_HELD_OUT:][:N_HEADS]
    print("| protocol | `rim`: bias, absolute bias, error | least squares | bias of `rim`, shorter and longer times |")
    print("| --- | --- | --- | --- |")
    for name, protocols in PROTOCOLS.items():
        model = get_model(name)
        for limits in protocols:
            protocol = protocol_of(name, *limits)
            try:
                RecurrentInference.check(model, protocol)
                refused = ""
            except ProtocolError:
                refused = ", refused"
            columns = [errors(kind(model), heads, protocol) for kind in (AnyProtocol, VariableProjection)]
            columns.append([errors(AnyProtocol(model), heads, protocol, factor)[0] for factor in FACTORS])
            cells = [
                ", ".join(f"{value:.1f}" if abs(value) < 20 else f"{value:.0f}" for value in column)
                for column in columns
            ]
            what = f"{name}: {limits[2]} times, {limits[0]:g} to {limits[1]:g} s{refused}"
            print(f"| {' | '.join((what, *cells))} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
