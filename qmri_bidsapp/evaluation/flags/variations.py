"""Minor faults of the input, as happen in practice; of most of them one fault of an image or of a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.acquisition import B0_THRESHOLD, Acquisition, Diffusion, InversionRecovery, MultiEcho
from qmri_bidsapp.evaluation.flags.cases import Change
from qmri_bidsapp.evaluation.standards import AMPLITUDE
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.smt import FREE_DIFFUSIVITY

Array = npt.NDArray[np.float64]

#: Standard deviation of single b-values or times, and common error of all of them, relative.
JITTER = 0.03
#: Part of another voxel that moves into some images; of cerebrospinal fluid, or air, at the edge of a shifted mask.
MOVED = (0.1, 0.3)
FLUID = (0.1, 0.5)
AIR = (0.1, 0.9)
#: Intercept of another vendor's scaling that was not applied, relative to the amplitude.
INTERCEPT = 0.02
#: Cerebrospinal fluid, s (Sabidussi et al. 2021, Table 1); it is inverted completely.
FLUID_T1, FLUID_T2 = 3.5, 2.0


@dataclass(frozen=True)
class Variation:
    """What is different from what it should be.

    Attributes
    ----------
    protocol : callable, optional
        Takes the protocol that is believed and a generator, returns that of the signals; of as many images.
    change : callable, optional
        Of the noise-free signals.
    noise_factor : float
        Of the noise that is believed.
    rician : bool
        Whether magnitudes keep their noise floor although they should not.
    after : callable, optional
        Changes measured series.
    scale : float
        Of the intensities, and of the noise that is measured in them.
    removed : int, optional
        Image that is missing, and known to be.
    """

    protocol: Callable[[Acquisition, np.random.Generator], Acquisition] | None = None
    change: Change | None = None
    noise_factor: float = 1.0
    rician: bool = False
    after: Change | None = None
    scale: float = 1.0
    removed: int | None = None


def variations_of(model: SignalModel, series: Acquisition) -> dict[str, Variation]:
    """Return name -> variation for a series; that of the first nothing is wrong with.

    A noise floor is no fault of relaxometry series, whose simulations have it, nor is fluid of models that know it.
    """
    what = {Diffusion: "b-values", InversionRecovery: "inversion times", MultiEcho: "echo times"}[type(series)]
    floor = {"Rician floor": Variation(rician=True)} if isinstance(series, Diffusion) else {}
    fluid = (
        {} if any(p.name == "fwf" for p in model.parameters) else {"mask shifted: fluid": Variation(change=_with_fluid)}
    )
    return {
        "none": Variation(),
        "noise x1.5": Variation(noise_factor=1.5),
        f"{what} jitter by 3 %": Variation(protocol=partial(_scaled, common=False)),
        f"all {what} +3 %": Variation(protocol=partial(_scaled, common=True)),
        "an image taken out": Variation(removed=weighted(series)[len(weighted(series)) // 2]),
        "an image of zeros": Variation(after=_zeroed),
        "10 to 30 % of another voxel in some images": Variation(change=_moved),
        **floor,
        "intensities x1000": Variation(scale=1e3),
        "intensities /1000": Variation(scale=1e-3),
        **fluid,
        "mask shifted: air": Variation(change=_with_air),
        "intercept of 2 %": Variation(after=_raised),
        "float16": Variation(after=_rounded),
    }


def without(series: Acquisition, index: int) -> tuple[Acquisition, npt.NDArray[np.intp]]:
    """Return the protocol without one image, and the indices of the others."""
    n = series.n_measurements
    kept = np.delete(np.arange(n), index)
    columns: dict[str, Any] = {}
    for field in fields(series):  # type: ignore[arg-type]
        value = getattr(series, field.name)
        if isinstance(value, tuple) and len(value) == n:
            columns[field.name] = tuple(value[i] for i in kept)
    return replace(series, **columns), kept  # type: ignore[type-var]


def weighted(series: Acquisition) -> list[int]:
    """Return the indices of images with diffusion weighting; of other series of all."""
    if isinstance(series, Diffusion):
        return [i for i, b in enumerate(series.b_value) if b > B0_THRESHOLD]
    return list(range(series.n_measurements))


def _scaled(series: Acquisition, rng: np.random.Generator, *, common: bool) -> Acquisition:
    """Change b-values or times, each by a normal deviate, or all by the same part."""
    name = {Diffusion: "b_value", InversionRecovery: "inversion_time", MultiEcho: "echo_time"}[type(series)]
    values = np.asarray(getattr(series, name))
    factor = 1 + JITTER * (1.0 if common else rng.standard_normal(len(values)))
    return replace(series, **{name: tuple((values * factor).tolist())})  # type: ignore[type-var]


def _moved(clean: Array, series: Acquisition, rng: np.random.Generator) -> Array:
    """Mix in a part of another voxel in a run of images, the same images in all voxels of a series."""
    n, n_images = clean.shape
    first, last = np.sort(rng.choice(n_images + 1, 2, replace=False))
    result = clean.copy()
    part = rng.uniform(*MOVED, (n, 1))
    result[:, first:last] += part * (clean[rng.permutation(n)] - clean)[:, first:last]
    return result


def _with_fluid(clean: Array, series: Acquisition, rng: np.random.Generator) -> Array:
    """Replace a part of each voxel by fluid; the truth is that of the tissue."""
    if isinstance(series, Diffusion):
        fluid = np.exp(-np.asarray(series.b_value) * FREE_DIFFUSIVITY)
    elif isinstance(series, InversionRecovery):
        fluid = 1 - 2 * np.exp(-np.asarray(series.inversion_time) / FLUID_T1)
    else:
        assert isinstance(series, MultiEcho)
        fluid = np.exp(-np.asarray(series.echo_time) / FLUID_T2)
    part = rng.uniform(*FLUID, (len(clean), 1))
    return np.asarray((1 - part) * clean + part * AMPLITUDE * fluid)


def _with_air(clean: Array, series: Acquisition, rng: np.random.Generator) -> Array:
    """Take a part of each voxel's signal away, but not of its noise."""
    return np.asarray(clean * (1 - rng.uniform(*AIR, (len(clean), 1))))


def _zeroed(measured: Array, series: Acquisition, rng: np.random.Generator) -> Array:
    """Set one image with weighting to zero."""
    result = measured.copy()
    result[:, rng.choice(weighted(series))] = 0.0
    return result


def _raised(measured: Array, series: Acquisition, rng: np.random.Generator) -> Array:
    return measured + INTERCEPT * AMPLITUDE


def _rounded(measured: Array, series: Acquisition, rng: np.random.Generator) -> Array:
    return measured.astype(np.float16).astype(np.float64)
