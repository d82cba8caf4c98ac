"""Rigid motion of the head during a 3-D Cartesian acquisition, combined in k-space.

The slow phase-encoding loop acquires the planes of k-space along one axis; each plane shows the head in its pose at
that time. `draw_motion` draws the parameters and records them in a frozen `Motion`; `apply_motion` applies them.

Rotations are exact for band-limited images: each is a product of shears (Unser, Thevenaz and Yaroslavsky 1995), and a
shear, like a translation, is a phase ramp in Fourier space. Interpolation would blur the image, and the network would
learn blur instead of motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qmri_bidsapp.motion.displacement import RADIUS, Floats, mean_deviation, rms_deviation, rotation_matrix

#: Orders of the slow phase-encoding loop: from one end of k-space to the other, or outwards from its centre.
LINEAR, CENTRIC = "linear", "centric"
#: Numbers of movements in one acquisition.
MOVEMENTS = (2, 8)
#: Largest score of simulated motion, mm.
MAX_SCORE = 4.0


@dataclass(frozen=True, eq=False)
class Motion:
    """Motion during one acquisition.

    Attributes
    ----------
    rotations : ndarray
        (pose, 3) rotation vectors about the centre of the head, degree.
    translations : ndarray
        (pose, 3) mm.
    onsets : ndarray
        (pose - 1,) start of each pose but the first, as a fraction of the acquisition.
    axis : int
        Slow phase-encoding axis.
    order : str
        ``linear`` or ``centric``.
    reverse : bool
        Whether k-space is acquired from its positive to its negative end.
    centre : float
        Time of the centre of k-space in linear order, as a fraction of the acquisition.
    resolution : float
        Acquired voxel size along `axis`, mm; may be finer than the image, whose k-space then ends earlier.
    """

    rotations: Floats
    translations: Floats
    onsets: Floats
    axis: int
    order: str
    reverse: bool
    centre: float
    resolution: float

    @property
    def score(self) -> float:
        """Mean deviation between successive poses (Jenkinson 1999), mm."""
        return mean_deviation(self.rotations, self.translations)

    def pose_at(self, frequency: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
        """Return the index of the pose in which each plane of k-space is acquired.

        Parameters
        ----------
        frequency : ndarray
            (plane,) cycles/mm.

        Returns
        -------
        ndarray
            (plane,) int.
        """
        k = np.clip(2 * self.resolution * frequency, -1, 1) * (-1 if self.reverse else 1)
        if self.order == CENTRIC:
            time = np.abs(k)
        else:
            time = np.where(k < 0, self.centre * (1 + k), self.centre + (1 - self.centre) * k)
        return np.searchsorted(self.onsets, time, side="right")

    def deviation_at(self, frequency: npt.NDArray[Any]) -> Floats:
        """Return the deviation of the head at each plane of k-space from its pose at the centre of k-space.

        Parameters
        ----------
        frequency : ndarray
            (plane,) cycles/mm.

        Returns
        -------
        ndarray
            (plane,) root-mean-square deviation, mm.
        """
        rotations = rotation_matrix(self.rotations)
        pose, centre = self.pose_at(frequency), int(self.pose_at(np.zeros(1))[0])
        return rms_deviation(rotations[centre], self.translations[centre], rotations[pose], self.translations[pose])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, with the score."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()
        } | {"score": self.score}


def still(resolution: float) -> Motion:
    """Return an acquisition without motion; `resolution` as in `Motion`."""
    return Motion(np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(0), 0, LINEAR, False, 0.5, resolution)


def draw_motion(
    rng: np.random.Generator, resolution: Sequence[float], *, score: float | None = None, axis: int | None = None
) -> Motion:
    """Draw an acquisition with 2 to 8 movements, the score uniform from 0 to 4 mm.

    The head takes poses about a position of rest, each for a similar time, as in TorchIO (Perez-Garcia et al. 2021).
    As there, each degree of freedom has its own range, similar for rotations (degree) and translations (mm) up to a
    factor of about two. All poses are then scaled together to reach the drawn score.

    Parameters
    ----------
    rng : Generator
    resolution : sequence of float
        Acquired voxel size along each axis, mm.
    score : float, optional
        mm; drawn unless given.
    axis : int, optional
        Slow phase-encoding axis; drawn unless given.
    """
    target = rng.uniform(0, MAX_SCORE) if score is None else score
    n_movements = int(rng.integers(MOVEMENTS[0], MOVEMENTS[1] + 1))
    share = rng.uniform(0.3, 0.7)
    extent = rng.uniform(0.5, 1, size=(2, 3))
    poses = rng.uniform(-1, 1, size=(2, n_movements + 1, 3)) * extent[:, None]
    # A rotation by one radian moves the points of the sphere by sqrt(2/5) of its radius.
    rotations = share * np.degrees(poses[0] / (np.sqrt(0.4) * RADIUS))
    translations = (1 - share) * poses[1]
    for _ in range(6):  # nearly linear: one step almost suffices
        scale = target / mean_deviation(rotations, translations)
        rotations, translations = scale * rotations, scale * translations
        if target == 0:
            break
    chosen = int(rng.integers(3)) if axis is None else axis
    return Motion(
        rotations=rotations,
        translations=translations,
        onsets=(np.arange(n_movements) + rng.uniform(0.5, 1.5, n_movements)) / (n_movements + 1),
        axis=chosen,
        order=LINEAR if rng.uniform() < 0.75 else CENTRIC,
        reverse=bool(rng.uniform() < 0.5),
        centre=rng.uniform(0.3, 0.7),
        resolution=float(resolution[chosen]),
    )


def apply_motion(
    volume: Tensor, motion: Motion, voxel_size: Sequence[float], *, centre: Sequence[float] | None = None
) -> Tensor:
    """Return the magnitude image of a head that moved while it was acquired.

    The image shows the head in its pose at the centre of k-space: planes acquired in that pose are those of `volume`.
    Without motion the image is `volume` itself.

    Parameters
    ----------
    volume : Tensor
        (x, y, z), not negative.
    motion : Motion
    voxel_size : sequence of float
        mm.
    centre : sequence of float, optional
        Voxel coordinates of the centre of rotation; the middle of the volume by default.

    Returns
    -------
    Tensor
        (x, y, z).
    """
    order = [motion.axis, *(axis for axis in range(3) if axis != motion.axis)]
    shape = [volume.shape[axis] for axis in order]
    middle = [(n - 1) / 2 for n in volume.shape] if centre is None else list(centre)
    space = _Space(shape, [voxel_size[i] for i in order], [middle[i] for i in order], volume)
    pose = motion.pose_at(np.fft.fftfreq(shape[0], voxel_size[motion.axis]))
    rotations, translations = _relative_poses(motion, int(pose[0]))
    moved = [i for i in np.unique(pose) if not _is_identity(rotations[i], translations[i])]
    if not moved:
        return volume
    image = volume.permute(order).contiguous()
    k_space = torch.fft.fftn(image)
    hybrid = torch.fft.rfft(image, dim=0)
    for i in moved:
        planes = torch.as_tensor(np.flatnonzero(pose == i), device=volume.device)
        rotation = rotations[i][np.ix_(order, order)]
        k_space[planes] = _acquire(k_space, hybrid, rotation, translations[i][order], planes, space)
    combined: Tensor = torch.fft.ifftn(k_space).abs()
    return combined.permute(*np.argsort(order).tolist()).contiguous()


def _relative_poses(motion: Motion, reference: int) -> tuple[Floats, Floats]:
    """Return rotation matrices and translations of all poses relative to the reference pose."""
    rotations = rotation_matrix(motion.rotations)
    relative = rotations @ rotations[reference].T
    return relative, motion.translations - relative @ motion.translations[reference]


def _is_identity(rotation: Floats, translation: Floats) -> bool:
    return bool(np.abs(rotation - np.eye(3)).max() < 1e-12 and np.abs(translation).max() < 1e-12)


class _Space:
    """Coordinates (mm, about the centre) and angular frequencies (rad/mm) of a volume's axes."""

    def __init__(
        self, shape: Sequence[int], voxel_size: Sequence[float], centre: Sequence[float], like: Tensor
    ) -> None:
        options = {"dtype": like.dtype, "device": like.device}
        self.shape = shape
        self.x = [
            (torch.arange(n, **options) - c) * size  # type: ignore[call-overload]
            for n, c, size in zip(shape, centre, voxel_size, strict=True)
        ]
        self.omega = [
            2 * np.pi * torch.fft.fftfreq(n, size, **options)  # type: ignore[call-overload]
            for n, size in zip(shape, voxel_size, strict=True)
        ]


def _ramp(omega: Tensor, shift: Tensor) -> Tensor:
    """Return the phase ramps (omega, shift) that shift an image."""
    angle = -omega[:, None] * shift
    return torch.complex(torch.cos(angle), torch.sin(angle))


def _acquire(
    k_space: Tensor, hybrid: Tensor, rotation: Floats, translation: Floats, planes: Tensor, space: _Space
) -> Tensor:
    """Return planes of the k-space of the head in another pose, (plane, u, v) for axes (p, u, v).

    The rotation is a swing, in a plane through the phase-encoding axis p, followed by a twist about p. A twist mixes
    no planes of k-space: only the acquired ones are twisted.
    """
    cosine, lean = float(rotation[0, 0]), rotation[0, 1:]
    sine = float(np.hypot(*lean))
    if sine > 1e-9:
        direction = -lean / sine
        slab = _swing(hybrid, cosine, sine, direction, planes, space)
        swing = _swing_matrix(cosine, sine, direction)
    else:
        slab = torch.fft.ifftn(k_space[planes], dim=(1, 2))
        swing = np.eye(3)
    twist = rotation @ swing.T
    slab = _twist(slab, float(np.arctan2(twist[2, 1], twist[1, 1])), space)
    shift = torch.as_tensor(translation, dtype=space.x[0].dtype, device=slab.device)
    ramps = [_ramp(omega, shift[i : i + 1])[:, 0] for i, omega in enumerate(space.omega)]
    return slab * ramps[0][planes][:, None, None] * ramps[1][:, None] * ramps[2]


def _swing_matrix(cosine: float, sine: float, direction: Floats) -> Floats:
    matrix = np.eye(3)
    matrix[0, 0] = cosine
    matrix[0, 1:], matrix[1:, 0] = -sine * direction, sine * direction
    matrix[1:, 1:] += (cosine - 1) * np.outer(direction, direction)
    return matrix


def _swing(hybrid: Tensor, cosine: float, sine: float, direction: Floats, planes: Tensor, space: _Space) -> Tensor:
    """Rotate in the plane of p and a direction in (u, v) by three shears; return (plane of k_p, u, v)."""
    (n_p, n_u, n_v), (x_p, x_u, x_v), (w_p, w_u, w_v) = space.shape, space.x, space.omega
    tangent = sine / (1 + cosine)
    m_u, m_v = (float(value) for value in direction)
    half = hybrid.shape[0]
    along_u, along_v = _ramp(w_p, -tangent * m_u * x_u), _ramp(w_p, -tangent * m_v * x_v)
    image = torch.fft.irfft(hybrid * along_u[:half, :, None] * along_v[:half, None, :], n=n_p, dim=0)
    spectrum = torch.fft.rfftn(image, dim=(1, 2))
    spectrum *= _ramp(w_u, sine * m_u * x_p).T[:, :, None]
    spectrum *= _ramp(w_v[: spectrum.shape[2]].abs(), sine * m_v * x_p).T[:, None, :]
    image = torch.fft.irfftn(spectrum, s=(n_u, n_v), dim=(1, 2))
    # Only the acquired planes: a matrix product is cheaper than a transform of all.
    voxel = torch.arange(n_p, dtype=x_p.dtype, device=x_p.device)
    fourier = _ramp(2 * np.pi / n_p * planes.to(x_p.dtype), voxel)
    flat = image.reshape(n_p, -1)
    slab = torch.complex(fourier.real @ flat, fourier.imag @ flat).reshape(-1, n_u, n_v)
    acquired: Tensor = slab * along_u[planes][:, :, None] * along_v[planes][:, None, :]
    return acquired


def _twist(slab: Tensor, angle: float, space: _Space) -> Tensor:
    """Rotate planes (plane, u, v) by an angle (rad) by three shears; return their Fourier transform."""
    (_, x_u, x_v), (_, w_u, w_v) = space.x, space.omega
    outer = _ramp(w_u, -float(np.tan(angle / 2)) * x_v)
    inner = _ramp(w_v, float(np.sin(angle)) * x_u).T
    slab = torch.fft.ifft(torch.fft.fft(slab, dim=1) * outer, dim=1)
    slab = torch.fft.ifft(torch.fft.fft(slab, dim=2) * inner, dim=2)
    k_space: Tensor = torch.fft.fft(torch.fft.fft(slab, dim=1) * outer, dim=2)
    return k_space
