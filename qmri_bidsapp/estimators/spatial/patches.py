"""Training patches: simulated measurements of virtual heads with drawn or given protocols and noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import Acquisition, InversionRecovery, MultiEcho
from qmri_bidsapp.core.noise import add_gaussian, add_rician
from qmri_bidsapp.estimators.spatial.slices import Coordinates, Slices
from qmri_bidsapp.estimators.spatial.virtual_heads import (
    BRAIN_STRUCTURES,
    BROAD,
    INVERSION_SPREAD,
    MAX_TEXTURE,
    RELAXATION_STATISTICS,
    draw_patch,
    draw_values,
)
from qmri_bidsapp.models.base import SignalModel

#: Side of a patch, voxels; range of the noise, relative to A of cerebrospinal fluid; and the SNR range that results
#: (Sabidussi et al. 2021, section 4.2).
PATCH_SIZE = 40
NOISE_RANGE = (0.0065, 0.255)
SNR_RANGE = (3.0, 100.0)
#: Share of patches with structures of no particular tissue, so that networks also meet phantoms and disease.
BROAD_SHARE = 0.2
#: Signal in the definition of the SNR: amplitude of white matter in the paper's Table 1.
SNR_SIGNAL = RELAXATION_STATISTICS["wm"].a[0]
#: Standard deviations of the logarithmic errors of the scale and of the noise that the network is given.
SCALE_ERROR = 0.2
NOISE_ERROR = 0.05
#: Quantity of `draw_values` that corresponds to each parameter.
QUANTITIES = {"m0": "a", "s0": "a", "inversion_factor": "b", "t1": "t1", "t2": "t2"}
#: Number of measurements of drawn protocols.
N_MEASUREMENTS = (4, 36)
#: Shortest and longest first time, and shortest and longest last time, of drawn protocols, s.
FIRST_TIME: dict[type[Acquisition], tuple[float, float]] = {InversionRecovery: (0.02, 0.4), MultiEcho: (0.005, 0.03)}
LAST_TIME: dict[type[Acquisition], tuple[float, float]] = {InversionRecovery: (0.7, 6.0), MultiEcho: (0.06, 0.4)}
#: Share of drawn inversion recoveries with restored polarity, and of those with inversion times as within one heart
#: beat.
SIGNED_SHARE = 0.15
HEART_BEAT_SHARE = 0.4


class Batch(NamedTuple):
    """Slices and the truth: normalised parameters (n, n_parameters, height, width) where `counts` (n, height, width).

    The patches of all series follow each other.
    """

    series: list[Slices]
    truth: torch.Tensor
    counts: torch.Tensor


def draw_protocol(model: SignalModel, rng: np.random.Generator) -> Acquisition:
    """Draw inversion times or echo times of the kinds in use.

    They begin within `FIRST_TIME` and end within `LAST_TIME`, with a spacing between even and logarithmic.
    """
    low, high = np.log(N_MEASUREMENTS)
    n_measurements = round(np.exp(rng.uniform(low, high)))
    if model.acquisition_type is MultiEcho:
        first, last = (_between(*drawn[MultiEcho], rng) for drawn in (FIRST_TIME, LAST_TIME))
        return MultiEcho(_times(first, last, n_measurements, rng))
    signed = bool(rng.uniform() < SIGNED_SHARE)
    if rng.uniform() < HEART_BEAT_SHARE:
        n_measurements = int(rng.integers(18, N_MEASUREMENTS[1]))
        times = _times(_between(0.1, 0.2, rng), _between(0.8, 1.1, rng), n_measurements, rng, evenness=1.0)
    else:
        first, last = (_between(*drawn[InversionRecovery], rng) for drawn in (FIRST_TIME, LAST_TIME))
        times = _times(first, last, n_measurements, rng)
    return InversionRecovery(times, signed)


def _between(low: float, high: float, rng: np.random.Generator) -> float:
    """Draw from a log-uniform distribution."""
    return float(low * (high / low) ** rng.uniform())


def _times(
    first: float, last: float, n_times: int, rng: np.random.Generator, evenness: float | None = None
) -> tuple[float, ...]:
    """Return times between two limits, s; evenness 1 spaces them evenly, 0 logarithmically, None draws it."""
    share = rng.uniform() if evenness is None else evenness
    even, geometric = np.linspace(first, last, n_times), np.geomspace(first, last, n_times)
    return tuple(np.round(share * even + (1 - share) * geometric, 5).tolist())


def describe(model: SignalModel, protocol: Acquisition | None = None) -> dict[str, Any]:
    """Return the distribution of the patches, as plain data for the card of weights.

    Parameters
    ----------
    model : SignalModel
    protocol : Acquisition, optional
        As for `draw_batch`.
    """
    first, last = FIRST_TIME[model.acquisition_type], LAST_TIME[model.acquisition_type]
    names = sorted({QUANTITIES[parameter.name] for parameter in model.parameters} - {"b"})
    if model.acquisition_type is MultiEcho:
        times = f"echo times, {1e3 * first[0]:g}-{1e3 * first[1]:g} to {1e3 * last[0]:g}-{1e3 * last[1]:g} ms"
    else:
        times = (
            f"inversion times, {first[0]:g}-{first[1]:g} to {last[0]:g}-{last[1]:g} s, {HEART_BEAT_SHARE:g} of them "
            f"within one heart beat, {SIGNED_SHARE:g} with polarity"
        )
    return {
        "protocols": f"{N_MEASUREMENTS[0]} to {N_MEASUREMENTS[1]} {times}, drawn anew for each batch"
        if protocol is None
        else "one protocol",
        "tissues_mean_std": {
            name: {k: list(getattr(t, k)) for k in names} for name, t in RELAXATION_STATISTICS.items()
        },
        "inversion_factor": f"2 - half-normal({INVERSION_SPREAD:g})",
        "texture": [0, MAX_TEXTURE],
        "broad_share": BROAD_SHARE,
        "broad_ranges": {name: list(BROAD[name]) for name in names},
        "patch_size": PATCH_SIZE,
        "noise": {
            "kind": "half of the magnitudes Rician, half Gaussian; Gaussian with polarity",
            "std": list(NOISE_RANGE),
            "unit": "amplitude of cerebrospinal fluid",
        },
        "snr": list(SNR_RANGE),
    }


def draw_batch(
    model: SignalModel,
    heads: Sequence[npt.NDArray[np.uint8]],
    seed: Sequence[int],
    *,
    n_protocols: int = 6,
    n_patches: int = 4,
    size: int = PATCH_SIZE,
    protocol: Acquisition | None = None,
    noise_std: float | None = None,
) -> Batch:
    """Draw patches of several protocols.

    Parameters
    ----------
    model : SignalModel
        With inversion or echo times.
    heads : sequence of ndarray
        Structures of heads, see `virtual_heads.draw_patch`.
    seed : sequence of int
        The same seed gives the same batch.
    n_protocols, n_patches : int
        Number of protocols, and of patches for each.
    size : int
        Voxels along each side of a patch.
    protocol : Acquisition, optional
        Used for all; drawn if not given.
    noise_std : float, optional
        Of all patches, relative to the amplitude of cerebrospinal fluid; drawn for each if not given.
    """
    rng = np.random.default_rng(list(seed))
    coordinates = Coordinates(model)
    parts = []
    for _ in range(n_protocols):
        acquisition = draw_protocol(model, rng) if protocol is None else protocol
        parts.append(_draw_series(model, heads, acquisition, coordinates, n_patches, size, rng, noise_std))
    series, truth, counts = zip(*parts, strict=True)
    return Batch(list(series), torch.cat(truth).movedim(-1, 1), torch.cat(counts))


def _draw_series(
    model: SignalModel,
    heads: Sequence[npt.NDArray[np.uint8]],
    acquisition: Acquisition,
    coordinates: Coordinates,
    n_patches: int,
    size: int,
    rng: np.random.Generator,
    noise_std: float | None,
) -> tuple[Slices, torch.Tensor, torch.Tensor]:
    """Return the patches of one protocol, their normalised parameters, and which voxels count."""
    # Real magnitudes are Rician, but experiments in the literature add Gaussian noise to them.
    is_rician = not acquisition.has_sign and bool(rng.uniform() < 0.5)
    add_noise = add_rician if is_rician else add_gaussian
    drawn = []
    for _ in range(n_patches):
        structures = draw_patch(heads, size, rng)
        values = draw_values(structures, rng, broad=bool(rng.uniform() < BROAD_SHARE))
        theta = torch.as_tensor(
            np.stack([values[QUANTITIES[parameter.name]] for parameter in model.parameters], axis=-1)
        )
        tissue = torch.as_tensor(structures > 0)
        # In air the relaxation time is zero, by which the signal divides; the amplitude is zero there.
        clean = torch.where(tissue.unsqueeze(-1), model.signal(theta, acquisition), 0.0).numpy()
        sigma = _between(*NOISE_RANGE, rng) if noise_std is None else noise_std
        signals = torch.as_tensor(add_noise(clean, sigma, rng), dtype=torch.float32)
        brain = torch.as_tensor(np.isin(structures, BRAIN_STRUCTURES))
        inside = (brain, tissue, torch.ones_like(tissue))[rng.integers(3)]
        unit = signals.abs().amax(-1)[tissue].median() * float(np.exp(SCALE_ERROR * rng.standard_normal()))
        theta[..., 0] /= unit
        noise = sigma / unit * float(np.exp(NOISE_ERROR * rng.standard_normal()))
        drawn.append((signals / unit, inside, noise, coordinates.normal(theta), tissue & inside))
    signals, inside, noise, truth, counts = (torch.stack(part) for part in zip(*drawn, strict=True))
    return Slices(acquisition, signals, inside, noise.view(-1, 1, 1), is_rician), truth, counts
