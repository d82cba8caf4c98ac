"""Errors of NODDI's three indices: AMICO, dmipy and the estimators of this package on the same simulated voxels.

Two kinds of signals, both with Rician noise: from AMICO's own generator (Watson's distribution as a truncated series of
spherical harmonics), and from the model of Zhang et al. 2012 by quadrature over the sphere.

    pip install '.[peers]'
    python benchmarks/noddi_accuracy.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.core.noise import add_rician
from qmri_bidsapp.evaluation.speed.peers import PEERS, one_core
from qmri_bidsapp.evaluation.standards import TISSUE, even_directions, standard
from qmri_bidsapp.registry import get_model, load_estimators, load_models

INDICES = ("ndi", "odi", "fwf")
#: Diffusivities along neurites and of free water, mm2/s (Zhang et al. 2012).
PARALLEL, FREE = 1.7e-3, 3.0e-3
AMPLITUDE = 1000.0
N_POINTS = 5000
#: Maximum number of voxels for dmipy, which takes tens of milliseconds per voxel.
MAX_DMIPY = 400


def draw(n_voxels: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return (n_voxels, 3) indices in the order of `INDICES` and (n_voxels, 3) fibre directions."""
    truth = np.stack([rng.uniform(*TISSUE["noddi"][name], n_voxels) for name in INDICES], axis=1)
    axes = rng.standard_normal((n_voxels, 3))
    return truth, axes / np.linalg.norm(axes, axis=1, keepdims=True)


def exact_signals(protocol: Diffusion, truth: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Return (n_voxels, n_measurements) signals, S0 = 1, by quadrature over half the sphere."""
    b_value, direction = np.asarray(protocol.b_value), np.asarray(protocol.direction)
    points = np.array(even_directions(N_POINTS))
    ndi, odi, fwf = truth[..., None].transpose(1, 0, 2)
    weight = np.exp(((axes @ points.T) ** 2 - 1) / np.tan(odi * np.pi / 2))
    weight /= weight.sum(axis=1, keepdims=True)
    sticks = weight @ np.exp(-b_value[:, None] * PARALLEL * (direction @ points.T) ** 2).T
    orientation = np.einsum("vp,pi,pj->vij", weight, points, points, optimize=True)
    along = np.einsum("mi,vij,mj->vm", direction, orientation, direction, optimize=True)
    across = PARALLEL * (1 - ndi)
    extra = np.exp(-b_value * (across * (b_value > 0) + (PARALLEL - across) * along))
    return (1 - fwf) * (ndi * sticks + (1 - ndi) * extra) + fwf * np.exp(-b_value * FREE)


def amico_signals(protocol: Diffusion, truth: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Return (n_voxels, n_measurements) signals, S0 = 1, of AMICO's generator, whose fibres lie along z."""
    from amico.scheme import Scheme
    from amico.synthesis import NODDIExtraCellular, NODDIIntraCellular, NODDIIsotropic

    signals = np.empty((len(truth), protocol.n_measurements))
    for voxel, ((ndi, odi, fwf), axis) in enumerate(zip(truth, axes, strict=True)):
        turned = np.asarray(protocol.direction) @ _frame(axis)
        scheme = Scheme(np.column_stack([turned, protocol.b_value]))
        kappa = 1 / np.tan(odi * np.pi / 2)
        intra = NODDIIntraCellular(scheme).get_signal(PARALLEL, kappa)
        extra = NODDIExtraCellular(scheme).get_signal(PARALLEL, kappa, ndi)
        water = NODDIIsotropic(scheme).get_signal(FREE)
        signals[voxel] = (1 - fwf) * (ndi * intra + (1 - ndi) * extra) + fwf * water
    return signals


def _frame(axis: np.ndarray) -> np.ndarray:
    """Return a matrix (3, 3) of orthonormal columns, the last of which is `axis`."""
    frame, _ = np.linalg.qr(np.column_stack([axis, np.eye(3)[np.argsort(np.abs(axis))[:2]].T]))
    frame[:, 0] = axis
    return frame[:, [1, 2, 0]]


def methods(protocol: Diffusion) -> Iterator[tuple[str, int | None, Callable[[np.ndarray], np.ndarray]]]:
    """Yield name, maximum number of voxels, and a function from signals to (n_voxels, 3) indices."""
    for peer in PEERS:
        if peer.model == "noddi":
            try:
                yield peer.name, MAX_DMIPY if peer.name == "dmipy" else None, peer.prepare(protocol)
            except ImportError as error:
                print(f"{peer.name} was skipped: {error}")
    if "noddi" not in load_models():
        return
    model = get_model("noddi")
    for name, estimator in load_estimators().items():
        if estimator.supports(model):
            fitted = estimator(model).fit(model.adapt(protocol)[0])
            columns = [[p.name for p in (*model.parameters, *model.derived)].index(index) for index in INDICES]
            yield f"qmri_bidsapp {name}", None, lambda signals, f=fitted, c=columns: f.predict(signals).estimate[:, c]


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxels", type=int, default=2000)
    parser.add_argument("--snr", type=float, default=20.0, help="SNR of the unweighted signal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    protocol = standard("noddi")
    assert isinstance(protocol, Diffusion)
    truth, axes = draw(arguments.voxels, rng)
    data = {
        name: add_rician(AMPLITUDE * generate(protocol, truth, axes), AMPLITUDE / arguments.snr, rng)
        for name, generate in (("amico", amico_signals), ("exact", exact_signals))
    }
    print("| data | method | voxels | RMSE NDI | RMSE ODI | RMSE FWF |\n| --- | --- | ---: | ---: | ---: | ---: |")
    rows = []
    for name, most, fit in methods(protocol):
        for kind, signals in data.items():
            with one_core():
                found = fit(signals[:most].astype(np.float32))
            error = np.sqrt(np.nanmean((found - truth[:most]) ** 2, axis=0))
            rows.append(
                {"data": kind, "method": name, "voxels": len(found), **dict(zip(INDICES, error.tolist(), strict=True))}
            )
            print(
                f"| {kind} | {name} | {len(found)} | " + " | ".join(f"{value:.3f}" for value in error) + " |",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
