"""Signals of the simulated heads, from the project's own models, with Rician noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import Diffusion, InversionRecovery, MultiEcho
from qmri_bidsapp.core.noise import add_rician
from qmri_bidsapp.demo.neurites import main_direction, neurite_attenuation
from qmri_bidsapp.demo.phantom import PhantomHead, Volume
from qmri_bidsapp.models.relaxometry import InversionRecoveryT1, SpinEchoT2

Array = npt.NDArray[np.float64]

INVERSION_TIMES = (0.05, 0.15, 0.3, 0.5, 0.8, 1.2, 1.8, 2.7, 4.2)
ECHO_TIMES = (0.0125, 0.025, 0.05, 0.08, 0.12, 0.2)
#: Protocol of Gyori et al. 2021: 12 b0 and 32 directions on each of four shells, s/mm2; echo time, s.
B_VALUES, N_DIRECTIONS, N_B0, DWI_ECHO_TIME = (1000.0, 2000.0, 3500.0, 5000.0), 32, 12, 0.094
#: Mean signal of grey and white matter (at full recovery, at TE = 0, at b = 0) over the standard deviation of
#: the noise.
SNR = {"T1w": 40.0, "IRT1": 60.0, "MESE": 60.0, "dwi": 25.0}
#: Intensity of proton density 1.
GAIN = 1000.0
#: Fibre directions per voxel, spread about the main one by an angle (degree) in white and in grey matter.
N_FIBRES, WM_SPREAD, GM_SPREAD = 8, 12.0, 60.0
#: The region that no model describes: two equal pools with these times (s), and water that does not diffuse.
POOL_T1, POOL_T2, DOT_FRACTION = (0.25, 3.0), (0.015, 0.30), 0.4


def t1w(head: PhantomHead, rng: np.random.Generator) -> Array:
    """Return a T1-weighted image, (x, y, z), with a smooth bias field of a few tens of percent."""
    position = _position(head)
    bias = np.exp(np.tensordot(rng.uniform(-0.12, 0.12, 3), position, axes=1) - 0.12 * (position**2).sum(0))
    signal = GAIN * head.parameters["t1w"] * bias
    return add_rician(signal, noise_level("T1w", head, signal), rng)


def inversion_recovery(head: PhantomHead, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return magnitudes (x, y, z, 9) and the true inversion factor (x, y, z)."""
    signal, factor = inversion_recovery_signal(head)
    return add_rician(signal, noise_level("IRT1", head, GAIN * head.parameters["density"]), rng), factor


def inversion_recovery_signal(head: PhantomHead) -> tuple[Array, Array]:
    """Return magnitudes without noise (x, y, z, 9) and the true inversion factor (x, y, z), smooth and just below 2."""
    factor = 1.96 - 0.06 * (_position(head) ** 2).sum(0)
    m0 = GAIN * head.parameters["density"]
    acquisition = InversionRecovery(INVERSION_TIMES)

    def magnitude(t1: Array) -> Array:
        theta = torch.tensor(np.stack([m0, factor, t1], axis=-1))
        return InversionRecoveryT1().signal(theta, acquisition).numpy()

    return _with_pools(head, "t1", POOL_T1, magnitude), factor


def multi_echo(head: PhantomHead, rng: np.random.Generator) -> Array:
    """Return magnitudes, (x, y, z, 6)."""
    signal = multi_echo_signal(head)
    return add_rician(signal, noise_level("MESE", head, GAIN * head.parameters["density"]), rng)


def multi_echo_signal(head: PhantomHead) -> Array:
    """Return magnitudes without noise, (x, y, z, 6)."""
    s0 = GAIN * head.parameters["density"]
    acquisition = MultiEcho(ECHO_TIMES)

    def decay(t2: Array) -> Array:
        return SpinEchoT2().signal(torch.tensor(np.stack([s0, t2], axis=-1)), acquisition).numpy()

    return _with_pools(head, "t2", POOL_T2, decay)


def diffusion(
    head: PhantomHead, acquisition: Diffusion, rng: np.random.Generator, neurites: dict[str, Volume] | None = None
) -> tuple[Array, Array]:
    """Return magnitudes and signals without noise, (x, y, z, n_measurements), along gradient directions in world axes.

    Parameters
    ----------
    head : PhantomHead
    acquisition : Diffusion
    rng : numpy.random.Generator
    neurites : dict, optional
        From `neurite_parameters`: the signal is then that of NODDI. Without them it is that of the two compartments of
        the spherical mean technique along several fibres.
    """
    p = head.parameters
    inside = p["density"] > 0
    if neurites is None:
        fibres = _fibres(head, rng)[inside]
        attenuation = fibre_attenuation(p["fraction"][inside], p["diffusivity"][inside], fibres, acquisition)
    else:
        attenuation = neurite_attenuation(neurites, inside, acquisition)
    dot = head.unmodelled[inside]
    attenuation[dot] = DOT_FRACTION + (1 - DOT_FRACTION) * attenuation[dot]
    signal = np.zeros((*inside.shape, acquisition.n_measurements))
    signal[inside] = without_diffusion(head)[inside][:, None] * attenuation
    return add_rician(signal, noise_level("dwi", head, signal[..., 0]), rng), signal


def without_diffusion(head: PhantomHead) -> Array:
    """Return the signal at b = 0, (x, y, z)."""
    return np.asarray(GAIN * head.parameters["density"] * np.exp(-DWI_ECHO_TIME / head.parameters["t2"]))


def fibre_attenuation(fraction: Array, diffusivity: Array, fibres: Array, acquisition: Diffusion) -> Array:
    r"""Return the attenuation along each gradient, (voxel, n_measurements).

    The two compartments of the spherical mean technique (Kaden et al. 2016), before the mean: sticks, and
    around them a cylindrically symmetric tensor with tortuous :math:`\lambda_\perp = (1 - v) \lambda`.

    .. math::
        E(b, g) = \frac1n \sum_i v\, e^{-b \lambda (g \cdot u_i)^2}
                  + (1 - v)\, e^{-b \lambda_\perp - b (\lambda - \lambda_\perp) (g \cdot u_i)^2}

    Its mean over all g is the model's signal for any fibre directions.

    Parameters
    ----------
    fraction, diffusivity : ndarray
        (voxel,) intra-neurite fraction v; :math:`\lambda`, mm2/s.
    fibres : ndarray
        (voxel, n, 3) unit vectors u.
    acquisition : Diffusion
    """
    v, parallel = fraction[:, None], diffusivity[:, None]
    perpendicular = (1 - v) * parallel
    columns = []
    for b, g in zip(acquisition.b_value, acquisition.direction, strict=True):
        along = (fibres @ np.asarray(g)) ** 2
        stick = np.exp(-b * parallel * along)
        extra = np.exp(-b * (perpendicular + (parallel - perpendicular) * along))
        columns.append((v * stick + (1 - v) * extra).mean(axis=1))
    return np.stack(columns, axis=-1)


def gradient_table(rng: np.random.Generator) -> Diffusion:
    """Return the protocol: b0 between the shells, directions of each shell spread over the half-sphere."""
    n_b0 = N_B0 // len(B_VALUES)
    b_value: list[float] = []
    direction: list[tuple[float, ...]] = []
    for b in B_VALUES:
        b_value += [0.0] * n_b0 + [b] * N_DIRECTIONS
        spread = _spread_directions(N_DIRECTIONS, rng)
        direction += [(0.0, 0.0, 0.0)] * n_b0 + [tuple(float(x) for x in row) for row in spread]
    return Diffusion(tuple(b_value), tuple(direction))


def noise_level(kind: str, head: PhantomHead, signal: Array) -> float:
    """Return the standard deviation of the noise for the SNR of a series in grey and white matter."""
    return float(signal[np.isin(head.dseg, (1, 2))].mean()) / SNR[kind]


def _with_pools(head: PhantomHead, name: str, pools: tuple[float, float], signal: Callable[[Array], Array]) -> Array:
    """Return the signal of the head; in the region that no model describes, the mean of two pools."""
    times = head.parameters[name]
    values = signal(times)
    mixed = np.mean([signal(np.full_like(times, time))[head.unmodelled] for time in pools], axis=0)
    values[head.unmodelled] = mixed
    return values


def _position(head: PhantomHead) -> Array:
    """Return (3, x, y, z), from -1 to 1 along each axis of the grid."""
    axes = (np.linspace(-1, 1, n) for n in head.parameters["t1"].shape)
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _spread_directions(n: int, rng: np.random.Generator) -> Array:
    """Return (n, 3) unit vectors, repelling each other and their opposites (Jones et al. 1999)."""
    from dipy.core.sphere import disperse_charges_alt

    start = rng.standard_normal((n, 3))
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    spread = np.asarray(disperse_charges_alt(start, 2000))
    return np.asarray(spread / np.linalg.norm(spread, axis=1, keepdims=True))


def _fibres(head: PhantomHead, rng: np.random.Generator) -> Array:
    """Return (x, y, z, n_fibres, 3): a smooth main direction, spread little in white, much in grey matter."""
    shape, main = head.parameters["t2"].shape, main_direction(head, rng)
    angle = np.where(head.fractions["wm"] > 0.5, WM_SPREAD, GM_SPREAD)
    spread = np.tan(np.deg2rad(angle))[..., None, None]
    fibres = main[..., None, :] + spread * rng.standard_normal((*shape, N_FIBRES, 3))
    return np.asarray(fibres / np.linalg.norm(fibres, axis=-1, keepdims=True))
