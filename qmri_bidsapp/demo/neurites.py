"""The first subject's diffusion: NODDI with a smooth main direction of the fibres."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.demo.phantom import TISSUE_PROPERTIES, PhantomHead, Volume, variation
from qmri_bidsapp.models.noddi import Noddi

Array = npt.NDArray[np.float64]

#: Tissue -> free water fraction, neurite density and orientation dispersion; for the brain, round values from the range
#: of published maps of healthy adults. All lie off their limits: ranges hold a truth on a limit more often than others.
TISSUES = {
    "gm": (0.10, 0.42, 0.45),
    "wm": (0.05, 0.65, 0.18),
    "csf": (0.95, 0.30, 0.60),
    "bone": (0.02, 0.85, 0.85),
    "marrow": (0.02, 0.85, 0.85),
    "scalp": (0.02, 0.80, 0.80),
    "muscle": (0.02, 0.35, 0.60),
}
#: Lowest and highest value of a voxel.
LIMITS = {"fwf": (0.01, 0.98), "ndi": (0.03, 0.95), "odi": (0.03, 0.95)}
#: Length over which the main direction of the fibres is smooth, mm.
FIBRE_LENGTH = 16.0
#: Voxels whose signal is computed at once, which bounds the memory.
CHUNK_SIZE = 16_384


def neurite_parameters(head: PhantomHead, rng: np.random.Generator) -> dict[str, Volume]:
    """Return the parameters of NODDI of every voxel but its amplitude.

    Parameters
    ----------
    head : PhantomHead
    rng : numpy.random.Generator

    Returns
    -------
    dict
        ``fwf``, ``ndi``, ``odi``, and polar angle ``theta`` and azimuth ``phi`` (degree, world axes, RAS+) of the main
        direction -> (x, y, z). Water fractions are means over the protons of a voxel's tissues; density and dispersion
        are means over those that are not free.
    """
    weight = {key: fraction * TISSUE_PROPERTIES[key].density for key, fraction in head.fractions.items()}
    bound = {key: protons * (1 - TISSUES[key][0]) for key, protons in weight.items()}
    found = {
        "fwf": _mean({key: TISSUES[key][0] for key in weight}, weight),
        "ndi": _mean({key: TISSUES[key][1] for key in weight}, bound),
        "odi": _mean({key: TISSUES[key][2] for key in weight}, bound),
    }
    shape, voxel_size = found["fwf"].shape, float(head.affine[0, 0])
    for name, limits in LIMITS.items():
        found[name] = np.clip(found[name] * (1 + variation(shape, voxel_size, rng)), *limits)
    x, y, z = np.moveaxis(main_direction(head, rng), -1, 0)
    # An axis has no sign: that of the two directions with a polar angle up to 90 degrees.
    sign = np.where(z < 0, -1.0, 1.0)
    found["theta"] = np.degrees(np.arccos(np.clip(sign * z, -1, 1)))
    found["phi"] = np.degrees(np.arctan2(sign * y, sign * x))
    return found


def neurite_attenuation(parameters: dict[str, Volume], inside: npt.NDArray[np.bool_], acquisition: Diffusion) -> Array:
    """Return the attenuation along each gradient, in world axes, of the voxels inside, (n, n_measurements)."""
    model = Noddi()
    columns = [np.ones(int(inside.sum())), *(parameters[p.name][inside] for p in model.parameters[1:])]
    theta = torch.tensor(np.stack(columns, axis=-1))
    with torch.no_grad():
        return np.concatenate([model.signal(part, acquisition).numpy() for part in theta.split(CHUNK_SIZE)])


def main_direction(head: PhantomHead, rng: np.random.Generator) -> Array:
    """Return the smooth main direction of the fibres, (x, y, z, 3) unit vectors."""
    from scipy.ndimage import gaussian_filter

    shape = head.parameters["t2"].shape
    width = FIBRE_LENGTH / head.affine[0, 0]
    main = np.stack([gaussian_filter(rng.standard_normal(shape), width) for _ in range(3)], axis=-1)
    return np.asarray(main / np.linalg.norm(main, axis=-1, keepdims=True))


def _mean(values: dict[str, float], weight: dict[str, Volume]) -> Volume:
    """Return the weighted mean over tissues; in air, which has no signal, the value does not matter."""
    total = np.sum(list(weight.values()), axis=0)
    weighted = np.sum([weight[key] * values[key] for key in weight], axis=0)
    return np.divide(weighted, total, out=np.full_like(total, 0.5), where=total > 1e-3)
