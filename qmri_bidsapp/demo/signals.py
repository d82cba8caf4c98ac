"""Signals of the simulated heads, from the project's own models, with Rician noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import Diffusion, InversionRecovery, MultiEcho
from qmri_bidsapp.core.noise import add_rician
from qmri_bidsapp.demo.phantom import Head
from qmri_bidsapp.models.relaxometry import InversionRecoveryT1, SpinEchoT2

Array = npt.NDArray[np.float64]

INVERSION_TIMES = (0.05, 0.15, 0.3, 0.5, 0.8, 1.2, 1.8, 2.7, 4.2)
ECHO_TIMES = (0.0125, 0.025, 0.05, 0.08, 0.12, 0.2)
#: Protocol of Gyori et al. 2021: 12 b0 and 32 directions on each of four shells, s/mm2; echo time, s.
B_VALUES, N_DIRECTIONS, N_B0, DWI_ECHO_TIME = (1000.0, 2000.0, 3500.0, 5000.0), 32, 12, 0.094
#: Mean signal of brain tissue (at full recovery, at TE = 0, at b = 0) over the standard deviation of the noise.
SNR = {"T1w": 40.0, "IRT1": 60.0, "MESE": 60.0, "dwi": 25.0}
#: Intensity of proton density 1.
GAIN = 1000.0
#: Fibre directions per voxel, spread about the main one by this angle (degree) in white and in grey matter.
N_FIBRES, WM_SPREAD, GM_SPREAD = 8, 12.0, 60.0
#: The region that no model describes: two pools with these relaxation times (s), and water that does not diffuse.
POOL_T1, POOL_T2, DOT_FRACTION = (0.25, 3.0), (0.015, 0.30), 0.4


def noise_level(kind: str, head: Head, signal: Array) -> float:
    """Return the standard deviation of the noise that gives the stated SNR in grey and white matter."""
    return float(signal[np.isin(head.dseg, (1, 2))].mean()) / SNR[kind]


def t1w(head: Head, rng: np.random.Generator) -> Array:
    """Return a T1-weighted image, (x, y, z), with a smooth bias field of about 15 %."""
    shape = head.parameters["t1w"].shape
    position = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    bias = np.exp(np.tensordot(rng.uniform(-0.12, 0.12, 3), position, axes=1) - 0.12 * (position**2).sum(0))
    signal = GAIN * head.parameters["t1w"] * bias
    return add_rician(signal, noise_level("T1w", head, signal), rng)


def inversion_recovery(head: Head, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return magnitudes (x, y, z, 9) and the true inversion factor (x, y, z)."""
    shape = head.parameters["t1"].shape
    radius = np.linalg.norm(np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")), axis=0)
    factor = 1.96 - 0.06 * radius**2
    m0 = GAIN * head.parameters["density"]
    acquisition = InversionRecovery(INVERSION_TIMES)

    def magnitude(t1: Array) -> Array:
        theta = torch.tensor(np.stack([m0, factor, np.maximum(t1, 0.02)], axis=-1))
        return np.asarray(InversionRecoveryT1().signal(theta, acquisition))

    signal = magnitude(head.parameters["t1"])
    pools = [magnitude(np.full(shape, t1)) for t1 in POOL_T1]
    signal[head.unmodelled] = (0.5 * (pools[0] + pools[1]))[head.unmodelled]
    return add_rician(signal, noise_level("IRT1", head, m0), rng), factor


def multi_echo(head: Head, rng: np.random.Generator) -> Array:
    """Return magnitudes, (x, y, z, 6)."""
    shape, s0 = head.parameters["t2"].shape, GAIN * head.parameters["density"]
    acquisition = MultiEcho(ECHO_TIMES)

    def decay(t2: Array) -> Array:
        theta = torch.tensor(np.stack([s0, np.maximum(t2, 0.001)], axis=-1))
        return np.asarray(SpinEchoT2().signal(theta, acquisition))

    signal = decay(head.parameters["t2"])
    pools = [decay(np.full(shape, t2)) for t2 in POOL_T2]
    signal[head.unmodelled] = (0.5 * (pools[0] + pools[1]))[head.unmodelled]
    return add_rician(signal, noise_level("MESE", head, s0), rng)


def gradient_table(rng: np.random.Generator) -> Diffusion:
    """Return the protocol: b0 spread over the series, directions of each shell spread over the half-sphere."""
    b_value: list[float] = []
    direction: list[tuple[float, ...]] = []
    for b in B_VALUES:
        b_value += [0.0] * (N_B0 // len(B_VALUES)) + [b] * N_DIRECTIONS
        spread = _spread_directions(N_DIRECTIONS, rng)
        direction += [(0.0, 0.0, 0.0)] * (N_B0 // len(B_VALUES)) + [tuple(float(x) for x in row) for row in spread]
    return Diffusion(tuple(b_value), tuple(direction))


def _spread_directions(n: int, rng: np.random.Generator) -> Array:
    """Return (n, 3) unit vectors, repelling each other and their opposites (Jones et al. 1999)."""
    from dipy.core.sphere import HemiSphere, disperse_charges

    start = rng.standard_normal((n, 3))
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    dispersed, _ = disperse_charges(HemiSphere(xyz=start), 300)
    return np.asarray(dispersed.vertices)


def diffusion(head: Head, acquisition: Diffusion, rng: np.random.Generator) -> Array:
    """Return magnitudes, (x, y, z, n_volumes).

    The compartments of the spherical mean technique (Kaden et al. 2016), sticks and a tortuous extra-neurite space,
    along several fibre directions per voxel: its powder average is the model's, whatever the directions.
    """
    p, shape = head.parameters, head.parameters["t2"].shape
    inside = p["density"] > 0.02
    s0 = (GAIN * p["density"] * np.exp(-DWI_ECHO_TIME / np.maximum(p["t2"], 1e-3)))[inside]
    fibres = _fibres(head, rng)[inside]
    fraction, diffusivity = p["fraction"][inside], p["diffusivity"][inside]
    hindered = (1 - fraction) * diffusivity
    signal = np.zeros((*shape, acquisition.n_measurements))
    for index, (b, g) in enumerate(zip(acquisition.b_value, acquisition.direction, strict=True)):
        along = (fibres @ np.asarray(g)) ** 2
        stick = np.exp(-b * diffusivity[:, None] * along)
        extra = np.exp(-b * (hindered[:, None] + (diffusivity - hindered)[:, None] * along))
        attenuation = (fraction[:, None] * stick + (1 - fraction)[:, None] * extra).mean(axis=1)
        dot = head.unmodelled[inside]
        attenuation[dot] = DOT_FRACTION + (1 - DOT_FRACTION) * attenuation[dot]
        signal[inside, index] = s0 * attenuation
    return add_rician(signal, noise_level("dwi", head, signal[..., 0]), rng)


def _fibres(head: Head, rng: np.random.Generator) -> Array:
    """Return (x, y, z, n_fibres, 3) unit vectors: a smooth main direction, spread little in white, much in grey matter."""
    from scipy.ndimage import gaussian_filter

    shape = head.parameters["t2"].shape
    voxel_size = float(head.affine[0, 0])
    field = np.stack([gaussian_filter(rng.standard_normal(shape), 16.0 / voxel_size) for _ in range(3)], axis=-1)
    main = field / np.linalg.norm(field, axis=-1, keepdims=True)
    spread = np.where(head.fractions["wm"] > 0.5, np.tan(np.deg2rad(WM_SPREAD)), np.tan(np.deg2rad(GM_SPREAD)))
    fibres = main[..., None, :] + spread[..., None, None] * rng.standard_normal((*shape, N_FIBRES, 3))
    return np.asarray(fibres / np.linalg.norm(fibres, axis=-1, keepdims=True))
