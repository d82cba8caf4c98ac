"""Voxels that a model does not describe, by fault of tissue, scanner or participant, one case each.

A case changes the noise-free series of otherwise typical voxels, the protocol of their measurement, or the noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.acquisition import B0_THRESHOLD, Acquisition, Diffusion, InversionRecovery, MultiEcho
from qmri_bidsapp.models.smt import FREE_DIFFUSIVITY

Array = npt.NDArray[np.float64]

#: Signal-to-noise ratio of the case of a noise floor, which has hardly any effect at much higher ones.
FLOOR_SNR = 5.0

#: Changes (n, n_measurements) noise-free signals of a protocol, of amplitude one.
Change = Callable[[Array, Acquisition, np.random.Generator], Array]


@dataclass(frozen=True)
class Case:
    """How voxels differ from typical ones.

    Attributes
    ----------
    change : callable, optional
        Changes the noise-free signals.
    protocol : callable, optional
        Takes the assumed protocol, returns the true one, with as many images.
    noise_factor : float
        True noise over assumed noise.
    rician : bool
        Whether magnitudes keep a noise floor that should have been removed.
    snr : float, optional
        In place of that of the setting, of typical voxels and the certificate too.
    outside : bool
        Whether the tissue is not of the prior.
    """

    change: Change | None = None
    protocol: Callable[[Acquisition], Acquisition] | None = None
    noise_factor: float = 1.0
    rician: bool = False
    snr: float | None = None
    outside: bool = False


def mixed_with(attenuation: Callable[[Array], Array], low: float, high: float) -> Change:
    """Return what replaces a part, from `low` to `high`, of diffusion signals by those of another compartment."""

    def change(clean: Array, acquisition: Acquisition, rng: np.random.Generator) -> Array:
        part = rng.uniform(low, high, (len(clean), 1))
        return (1 - part) * clean + part * attenuation(_b_values(acquisition))

    return change


def shell_drops(clean: Array, acquisition: Acquisition, rng: np.random.Generator) -> Array:
    """Scale all volumes of one shell of each voxel by 0.7 to 0.9."""
    assert isinstance(acquisition, Diffusion)
    shells = [shell for shell in acquisition.shells() if _b_values(acquisition)[shell].max() > B0_THRESHOLD]
    factor = np.ones_like(clean)
    chosen = rng.integers(len(shells), size=len(clean))
    for k, shell in enumerate(shells):
        factor[np.ix_(chosen == k, shell)] = rng.uniform(0.7, 0.9, (int((chosen == k).sum()), 1))
    return clean * factor


def images_drop(most: int, low: float, high: float) -> Change:
    """Return what takes 1 to `most` images of each voxel a part, from `low` to `high`, of their signal.

    Of diffusion series, of those with weighting.
    """

    def change(clean: Array, acquisition: Acquisition, rng: np.random.Generator) -> Array:
        able = np.flatnonzero(_b_values(acquisition) > B0_THRESHOLD)
        order = able[rng.random((len(clean), len(able))).argsort(axis=1)[:, :most]]
        number = rng.integers(1, most + 1, (len(clean), 1))
        lost = np.where(np.arange(most) < number, rng.uniform(low, high, order.shape), 0.0)
        result = clean.copy()
        np.put_along_axis(result, order, np.take_along_axis(clean, order, 1) * (1 - lost), 1)
        return result

    return change


def moves(clean: Array, acquisition: Acquisition, rng: np.random.Generator) -> Array:
    """Mix in 30 to 70 % of another voxel, of 0.6 to 1.4 times the amplitude, in a random run of images.

    The participant moves between two images, and back or not.
    """
    n, n_images = clean.shape
    other = clean[rng.permutation(n)] * rng.uniform(0.6, 1.4, (n, 1))
    first = rng.integers(1, n_images, (n, 1))
    last = rng.integers(first + 1, n_images + 1)
    image = np.arange(n_images)
    part = np.where((image >= first) & (image < last), rng.uniform(0.3, 0.7, (n, 1)), 0.0)
    return np.asarray((1 - part) * clean + part * other)


def mixed_among(low: float, high: float) -> Change:
    """Return what replaces a part of each voxel by another voxel of the same amplitude: two components."""

    def change(clean: Array, acquisition: Acquisition, rng: np.random.Generator) -> Array:
        part = rng.uniform(low, high, (len(clean), 1))
        return np.asarray((1 - part) * clean + part * clean[rng.permutation(len(clean))])

    return change


def first_echo_low(clean: Array, acquisition: Acquisition, rng: np.random.Generator) -> Array:
    """Scale the first echo by 0.8 to 0.9, as imperfect refocusing does, whose stimulated echoes it lacks."""
    factor = np.ones_like(clean)
    factor[:, 0] = rng.uniform(0.8, 0.9, len(clean))
    return clean * factor


def stretched(clean: Array, acquisition: Acquisition, rng: np.random.Generator) -> Array:
    """Replace the recovery from -1 of each voxel by one to the power 0.6 to 0.8 of its exponent."""
    exponent = np.log(np.maximum((1 - clean) / 2, np.finfo(float).tiny))
    return np.asarray(1 - 2 * np.exp(-(np.abs(exponent) ** rng.uniform(0.6, 0.8, (len(clean), 1)))))


def _b_values(acquisition: Acquisition) -> Array:
    """Return b-values; of other series, all images count as weighted."""
    if isinstance(acquisition, Diffusion):
        return np.asarray(acquisition.b_value)
    return np.full(acquisition.n_measurements, np.inf)


def with_b_values(change: Callable[[Array], Array]) -> Callable[[Acquisition], Acquisition]:
    """Return what changes the b-values of a protocol."""

    def other(acquisition: Acquisition) -> Acquisition:
        assert isinstance(acquisition, Diffusion)
        return replace(acquisition, b_value=tuple(change(np.asarray(acquisition.b_value)).tolist()))

    return other


def one_wrong_time(acquisition: Acquisition) -> Acquisition:
    """Return a protocol of which one time, in the middle, is twice what it is believed to be."""
    if isinstance(acquisition, InversionRecovery):
        return replace(acquisition, inversion_time=_doubled(acquisition.inversion_time))
    assert isinstance(acquisition, MultiEcho)
    return replace(acquisition, echo_time=_doubled(acquisition.echo_time))


def _doubled(times: tuple[float, ...]) -> tuple[float, ...]:
    middle = len(times) // 2
    return (*times[:middle], 2 * times[middle], *times[middle + 1 :])


def _other_shells(b_value: Array) -> Array:
    """Return shells of 0.7 times the b-value up to 2000 s/mm2, and of 0.8 times above."""
    return b_value * np.where(b_value <= 2000, 0.7, 0.8)


_DIFFUSION = {
    "noise x2": Case(noise_factor=2.0),
    "free water 20 to 50%": Case(mixed_with(lambda b: np.exp(-b * FREE_DIFFUSIVITY), 0.2, 0.5)),
    "third compartment 10 to 30%": Case(mixed_with(np.ones_like, 0.1, 0.3)),
    "one shell drops 10 to 30%": Case(shell_drops),
    "1 to 3 volumes drop out": Case(images_drop(3, 0.3, 1.0)),
    "b-values +15%": Case(protocol=with_b_values(lambda b: 1.15 * b)),
    "another protocol": Case(protocol=with_b_values(_other_shells)),
    "Rician floor": Case(rician=True, snr=FLOOR_SNR),
}
_RELAXATION = {
    "noise x2": Case(noise_factor=2.0),
    "two components": Case(mixed_among(0.2, 0.5)),
    "motion between images": Case(moves),
    "a dropped image": Case(images_drop(1, 0.5, 1.0)),
    "wrong time of one image": Case(protocol=one_wrong_time),
}
#: Model -> name -> case. A free water fraction is a parameter of NODDI.
CASES: dict[str, dict[str, Case]] = {
    "smt": {"parameters outside the prior": Case(outside=True), **_DIFFUSION},
    "noddi": {
        **{name: case for name, case in _DIFFUSION.items() if "free water" not in name},
        "a second bundle 30 to 50%": Case(mixed_among(0.3, 0.5)),
    },
    "t1": {**_RELAXATION, "wrong model": Case(stretched)},
    "t2": {**_RELAXATION, "wrong model": Case(first_echo_low)},
}
