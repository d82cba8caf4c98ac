"""Errors of a learned estimator and of least squares, for a model with directions or tensors.

Tissue and its orientation come from the training distribution of the network; noise is Gaussian and known. Errors are
root mean squares in units of each parameter's scale (1e-3 mm2/s, 5 micrometres), those of directions medians in
degrees, with the coverage of 95 % intervals in brackets.

    python benchmarks/learned_directions.py noddi --steps 5000 --combinations 200000 --snr 20 30
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from qmri_bidsapp.core.acquisition import Acquisition, Diffusion
from qmri_bidsapp.core.maps import ParameterMaps
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.learned.mlp import MultilayerPerceptron
from qmri_bidsapp.estimators.learned.training import Training
from qmri_bidsapp.evaluation.standards import even_directions, shells, signals, standard
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.directions import unit_vector
from qmri_bidsapp.models.rotation import turn
from qmri_bidsapp.registry import get_estimator, get_model

#: b-value (s/mm2), duration and separation of the gradients (s): 300 mT/m, of several timings.
TIMED = ((2067.0, 0.0056, 0.0121), (5683.0, 0.0056, 0.03), (11743.0, 0.0056, 0.06), (9516.0, 0.0105, 0.0169))
#: Number of voxels for least squares, which may be slow, and for the learned estimator.
N_CLASSICAL = {"tensor": 10_000, "kurtosis": 10_000, "noddi": 4_000}
N_FEW, N_VOXELS = 400, 10_000


def protocol(name: str) -> Acquisition:
    """Return the standard protocol, or 160 directions of four timings for models of diameters."""
    if name == "kurtosis":
        return shells(6, (1000.0, 30), (2000.0, 60))
    if name not in ("activeax", "zcd"):
        return standard(name)
    b_value, small, large = np.repeat(((0.0, 0.0056, 0.0121), *TIMED), (6, 40, 40, 40, 40), axis=0).T
    axes = ((0.0, 0.0, 0.0),) * 6 + even_directions(40) * 4
    return Diffusion(tuple(b_value), axes, tuple(small), tuple(large))


def voxels(model: SignalModel, acquisition: Acquisition, snr: float) -> tuple[np.ndarray, np.ndarray]:
    """Return parameters and derived ones (n, n_columns), of amplitude one, and noisy signals."""
    rng = np.random.default_rng(7)
    theta = torch.tensor(np.insert(model.default_prior().draw(N_VOXELS, rng), 0, 1.0, axis=1))
    theta = turn(model, theta, torch.tensor(Rotation.random(N_VOXELS, random_state=rng).as_matrix()))
    clean = signals(model, theta.numpy(), acquisition)
    truth = torch.cat([theta, model.derive(theta)], dim=1).numpy()
    return truth, clean + rng.standard_normal(clean.shape) / snr


def report(maps: ParameterMaps, truth: np.ndarray, model: SignalModel) -> str:
    """Return errors and the coverage of 95 % intervals."""
    error = maps.estimate - truth
    cells = []
    for i, p in enumerate(maps.parameters):
        if p.saved and not p.is_periodic:
            covered = (np.abs(error[:, i]) <= 1.96 * maps.std[:, i]).mean()
            cells.append(f"{p.name} {np.sqrt(np.mean(error[:, i] ** 2)) / p.scale:.4f} ({100 * covered:.1f} %)")
    for part in model.directional:
        if part.kind == "axis":
            found, true = (unit_vector(torch.tensor(v[:, part.columns]).double()) for v in (maps.estimate, truth))
            angle = (found * true).sum(1).abs().clamp(max=1).acos().rad2deg()
            cells.append(f"direction {float(angle.median()):.2f}")
    return ", ".join(cells)


def main() -> None:
    """Train, fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("tensor", "kurtosis", "noddi", "activeax", "zcd"))
    parser.add_argument("--steps", type=int, default=Training().steps)
    parser.add_argument("--combinations", type=int, default=2**19)
    parser.add_argument("--snr", type=float, nargs="+", default=[30.0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, acquisition = get_model(options.model), protocol(options.model)
    start = time.process_time()
    mlp = MultilayerPerceptron(model, training=Training(steps=options.steps), n_combinations=options.combinations)
    mlp.fit(acquisition, seed=1)
    print(f"training: {time.process_time() - start:.0f} s of one CPU")
    classical = get_estimator("wls" if options.model in ("tensor", "kurtosis") else "nlls")(model).fit(acquisition)
    n_classical = N_CLASSICAL.get(options.model, N_FEW)
    for snr in options.snr:
        truth, signal = voxels(model, acquisition, snr)
        rows: list[tuple[Estimator, int]] = [(mlp, N_VOXELS), (mlp, n_classical), (classical, n_classical)]
        for estimator, n in rows:
            start = time.process_time()
            maps = estimator.predict(signal[:n], noise_std=np.full(n, 1 / snr))
            speed = n / (time.process_time() - start)
            print(f"SNR {snr:g}, {estimator.name}, {n} voxels, {speed:.0f}/s: {report(maps, truth[:n], model)}")


if __name__ == "__main__":
    main()
