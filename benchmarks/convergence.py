"""Percentage of voxels in which an estimator reaches the best cost of sixteen random starts of scipy.

Noisy simulated voxels over the parameter space of each model, without its degenerate edges (ranges below). The cost is
the weighted sum of squared residuals, evaluated in double precision at the single-precision estimates.

    python benchmarks/convergence.py --json benchmarks/results/convergence.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import least_squares

from qmri_bidsapp.evaluation.standards import AMPLITUDE, standard
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.registry import get_estimator, get_model

#: Ranges wider than tissue: the bounds without the edges where a parameter has no effect on the signal.
SPACE: dict[str, dict[str, tuple[float, float]]] = {
    "t1": {"inversion_factor": (1.2, 2.5), "t1": (0.15, 4.0)},
    "t2": {"t2": (0.008, 1.0)},
    "ivim": {"perfusion_fraction": (0.05, 0.45), "pseudodiffusivity": (0.008, 0.06), "diffusivity": (0.3e-3, 3e-3)},
    "smt": {"intra_fraction": (0.05, 0.95), "diffusivity": (0.3e-3, 2.9e-3)},
    "noddi": {"fwf": (0.0, 0.7), "ndi": (0.1, 0.9), "odi": (0.03, 0.9), "theta": (5.0, 85.0), "phi": (-180.0, 180.0)},
}
METHODS = {"t1": ("nlls", "varpro"), "t2": ("nlls", "varpro"), "smt": ("nlls", "varpro"), "ivim": ("nlls", "varpro")}
N_STARTS = 16
TOLERANCE = 1e-4


def residuals(model: SignalModel, acquisition: object, theta: np.ndarray, signal: np.ndarray) -> np.ndarray:
    """Return residuals (..., n_measurements), weighted by the root of the number of averages."""
    with torch.no_grad():
        found = model.signal(torch.tensor(theta), acquisition).numpy()
    return (found - signal) * np.sqrt(acquisition.n_averages)


def best_of_starts(model: SignalModel, acquisition: object, signal: np.ndarray, rng: np.random.Generator) -> float:
    """Return the lowest cost of bounded trust-region fits from random starts within the bounds."""
    size = np.abs(signal).max()
    scale = np.array([size, *(p.scale for p in model.parameters[1:])])
    low, high = (np.array([p.bounds[i] for p in model.parameters]) for i in (0, 1))
    low[0], high[0] = low[0] * size, high[0] * size
    wide = np.array([lo > 0 and hi / lo > 20 for lo, hi in (p.bounds for p in model.parameters)])
    wide[0] = False
    lowest = np.inf
    for _ in range(N_STARTS):
        start = rng.uniform(low, high)
        start[wide] = np.exp(rng.uniform(np.log(low[wide]), np.log(high[wide])))
        start[0] = size
        free = [p.is_periodic for p in model.parameters]
        bounds = np.where(free, -np.inf, low), np.where(free, np.inf, high)
        found = least_squares(
            lambda theta: residuals(model, acquisition, theta, signal),
            np.clip(start, *bounds),
            jac=lambda theta: (
                model.jacobian(torch.tensor(theta), acquisition).numpy() * np.sqrt(acquisition.n_averages)[:, None]
            ),
            bounds=bounds,
            x_scale=scale,
            ftol=1e-10,
            xtol=1e-10,
            gtol=1e-12,
            max_nfev=400,
        )
        lowest = min(lowest, 2 * found.cost)
    return lowest


def main() -> None:
    """Compare, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SPACE))
    parser.add_argument("--voxels", type=int, default=1000)
    parser.add_argument("--snr", type=float, default=50.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table: dict[str, dict[str, float]] = {}
    print(f"| model | estimator | voxels | within {TOLERANCE:g} of the best of {N_STARTS} starts |\n|---|---|---|---|")
    for name in args.models:
        model, rng = get_model(name), np.random.default_rng(0)
        acquisition, _ = model.adapt(standard(name))
        ranges = [SPACE[name][p.name] for p in model.parameters[1:]]
        theta = np.column_stack(
            [np.full(args.voxels, AMPLITUDE), *(rng.uniform(*limits, args.voxels) for limits in ranges)]
        )
        with torch.no_grad():
            clean = model.signal(torch.tensor(theta), acquisition).numpy()
        noise = AMPLITUDE / args.snr / np.sqrt(acquisition.n_averages)
        signals = clean + noise * rng.standard_normal(clean.shape)
        # Magnitudes: inversion recoveries have no sign.
        signals = np.abs(signals).astype(np.float32).astype(np.float64)
        best = np.array([best_of_starts(model, acquisition, signal, rng) for signal in signals])
        for method in METHODS.get(name, ("nlls",)):
            maps = get_estimator(method)(model).fit(acquisition).predict(signals)
            estimate = maps.estimate[:, : len(model.parameters)].astype(np.float64)
            cost = (residuals(model, acquisition, estimate, signals) ** 2).sum(axis=1)
            share = float((cost <= (1 + TOLERANCE) * best).mean())
            table.setdefault(name, {})[method] = share
            print(f"| {name} | {method} | {args.voxels} | {100 * share:.2f} % |", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"tolerance": TOLERANCE, "starts": N_STARTS, "share": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
