"""Standard protocols and simulated tissue, to compare estimators and peers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import Acquisition, Diffusion, InversionRecovery, MultiEcho, SphericalMean
from qmri_bidsapp.core.noise import add_gaussian, add_rician
from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.directions import even_directions

Array = npt.NDArray[np.float64]

#: Amplitude of every voxel over the standard deviation of the noise of one measurement.
SNR = 50.0
AMPLITUDE = 1000.0
#: Batch size (voxels) of noise-free signals, which bounds the memory of models with dispersion.
CHUNK_SIZE = 16_384
#: IVIM: dense below 100 s/mm2, where perfusion decays.
IVIM_B_VALUES = (0, 10, 20, 30, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800)
#: Model -> parameter -> range in tissue, in its unit. `tissue_range` has the default of all others.
TISSUE: dict[str, dict[str, tuple[float, float]]] = {
    "t1": {"inversion_factor": (1.7, 2.0), "t1": (0.5, 2.5)},
    "t2": {"t2": (0.03, 0.15)},
    "smt": {"intra_fraction": (0.2, 0.8), "diffusivity": (0.8e-3, 2.4e-3)},
    "ivim": {
        "perfusion_fraction": (0.03, 0.25),
        "pseudodiffusivity": (0.008, 0.04),
        "diffusivity": (0.6e-3, 1.6e-3),
    },
    "noddi": {"fwf": (0.0, 0.5), "ndi": (0.2, 0.8), "odi": (0.05, 0.8)},
}
#: Eigenvalues of the diffusion tensor in tissue, mm2/s.
EIGENVALUES = (0.2e-3, 1.7e-3)


def shells(n_b0: int, *parts: tuple[float, int]) -> Diffusion:
    """Return a protocol of b0 volumes, then shells as pairs of b-value (s/mm2) and number of directions."""
    b_value = (0.0,) * n_b0 + tuple(b for b, n in parts for _ in range(n))
    return Diffusion(b_value, ((0.0, 0.0, 0.0),) * n_b0 + tuple(g for _, n in parts for g in even_directions(n)))


def _ivim() -> Diffusion:
    return Diffusion(tuple(map(float, IVIM_B_VALUES)), ((0.0, 0.0, 0.0), *even_directions(len(IVIM_B_VALUES) - 1)))


#: Model name -> standard protocol.
STANDARDS: dict[str, Callable[[], Acquisition]] = {
    "t1": lambda: InversionRecovery(tuple(np.geomspace(0.05, 3.0, 31).tolist())),
    "t2": lambda: MultiEcho((0.0125, 0.025, 0.05, 0.08, 0.12, 0.2)),
    "smt": lambda: SphericalMean((0.0, 1000.0, 2000.0, 3500.0, 5000.0), (12, 32, 32, 32, 32)),
    "ivim": _ivim,
    "noddi": lambda: shells(9, (700.0, 32), (2000.0, 64)),
    "tensor": lambda: shells(3, (1000.0, 30)),
}


@cache
def standard(name: str) -> Acquisition:
    """Return the standard protocol of a model; KeyError if there is none."""
    return STANDARDS[name]()


def tissue_range(model: SignalModel, parameter: Parameter) -> tuple[float, float]:
    """Return the range of a parameter in tissue, in its unit; by default the middle half of its bounds."""
    low, high = parameter.bounds
    return TISSUE.get(model.name, {}).get(parameter.name, (low + (high - low) / 4, high - (high - low) / 4))


def tissue(model: SignalModel, n_voxels: int, rng: np.random.Generator) -> Array:
    """Return (n_voxels, n_parameters) parameters, uniform over tissue, with `AMPLITUDE` first."""
    amplitude = np.full((n_voxels, 1), AMPLITUDE)
    if model.name == "tensor":
        return np.hstack([amplitude, _tensor_elements(n_voxels, rng)])
    ranges = [tissue_range(model, parameter) for parameter in model.parameters[1:]]
    return np.hstack([amplitude, *(rng.uniform(*limits, (n_voxels, 1)) for limits in ranges)])


def _tensor_elements(n_voxels: int, rng: np.random.Generator) -> Array:
    """Return (n_voxels, 6) elements xx, xy, yy, xz, yz, zz of randomly oriented tensors, mm2/s."""
    axes, _ = np.linalg.qr(rng.standard_normal((n_voxels, 3, 3)))
    tensor = (axes * rng.uniform(*EIGENVALUES, (n_voxels, 1, 3))) @ axes.transpose(0, 2, 1)
    return np.stack([tensor[:, i, j] for i, j in ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2))], axis=1)


def signals(model: SignalModel, theta: Array, acquisition: Acquisition) -> Array:
    """Return noise-free signals, (n_voxels, n_measurements), computed in double precision."""
    parts = [theta[first : first + CHUNK_SIZE] for first in range(0, len(theta), CHUNK_SIZE)]
    with torch.no_grad():
        return np.concatenate([model.signal(torch.tensor(part), acquisition).numpy() for part in parts])


def add_noise(signal: Array, acquisition: Acquisition, sigma: float, rng: np.random.Generator) -> Array:
    """Return noisy signals: Rician magnitudes, or averages of many measurements, which are nearly Gaussian.

    Parameters
    ----------
    signal : ndarray
        (n_voxels, n_measurements).
    acquisition : Acquisition
        Its `n_averages` says how many measurements were averaged.
    sigma : float
        Standard deviation of the noise of one measurement, in the unit of the signal.
    rng : numpy.random.Generator
    """
    averages = np.asarray(acquisition.n_averages)
    if (averages > 1).any():
        return add_gaussian(signal, sigma / np.sqrt(averages), rng)
    return add_rician(signal, sigma, rng)


def simulate(model: SignalModel, acquisition: Acquisition, n_voxels: int, *, seed: int = 0) -> npt.NDArray[np.float32]:
    """Return noisy signals of tissue-like voxels, (n_voxels, n_measurements), at an SNR of `SNR`."""
    rng = np.random.default_rng(seed)
    clean = signals(model, tissue(model, n_voxels, rng), acquisition)
    return add_noise(clean, acquisition, AMPLITUDE / SNR, rng).astype(np.float32)
