"""Tests of whether the volumes of a diffusion series moved at all, before any of them is registered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from scipy.stats import f

Array = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

#: Probability that a volume that did not move is taken for one that did.
LEVEL = 1e-3
#: Errors of a prediction are correlated within blocks of this size, mm, and not between them.
BLOCK = 40.0
#: Fewest blocks that give the covariance of six numbers.
MIN_BLOCKS = 12
#: Standard deviation, voxels, of the Gaussian that images are smoothed with: noise has no edges then.
SMOOTHING = 1.0
#: Leverage above which a volume is hardly predicted by others.
MAX_LEVERAGE = 0.95


@dataclass(frozen=True)
class Frame:
    """The part of an image on which motion is judged.

    Attributes
    ----------
    mask : ndarray
        (x, y, z) bool, the head.
    affine : ndarray
        (4, 4).
    """

    mask: Mask
    affine: npt.NDArray[np.float64]

    @property
    def points(self) -> npt.NDArray[np.float64]:
        """(n, 3) mm, of the masked voxels, about their centre."""
        points = np.argwhere(self.mask) @ self.affine[:3, :3].T
        return np.asarray(points - points.mean(axis=0))

    @property
    def blocks(self) -> npt.NDArray[np.intp]:
        """(n,) number of the block of each masked voxel."""
        return np.unique(np.floor(self.points / BLOCK), axis=0, return_inverse=True)[1].ravel()

    def smooth(self, values: Array) -> npt.NDArray[np.float64]:
        """Return the image of (n,) masked values, zero elsewhere, smoothed."""
        volume = np.zeros(self.mask.shape)
        volume[self.mask] = values
        return np.asarray(gaussian_filter(volume, SMOOTHING))


def moved(frame: Frame, values: Array, predicted: Array) -> bool:
    """Return whether an image contradicts that it lies where its prediction does.

    A score test: where the head moved by a little, the difference from the prediction resembles the derivatives of the
    prediction by the six parameters of rigid motion. Their covariance is estimated from the sums over blocks, so that
    whatever else makes the prediction wrong (contrast, noise and its correlation) counts as uncertainty and not as
    motion (Hotelling's test of the mean of the blocks). A scale of the intensity is projected out.

    Parameters
    ----------
    frame : Frame
    values, predicted : ndarray
        (n,) of the masked voxels.
    """
    blocks = frame.blocks
    n = int(blocks.max()) + 1
    if n < MIN_BLOCKS:
        return True
    image, target = frame.smooth(values), frame.smooth(predicted)
    gradient = np.stack(np.gradient(target), axis=-1)[frame.mask] @ np.linalg.inv(frame.affine[:3, :3])
    derivatives = np.hstack([gradient, np.cross(frame.points, gradient)])
    size = target[frame.mask]
    size = size / np.linalg.norm(size)
    difference = (image - target)[frame.mask]
    difference = difference - size * (size @ difference)
    derivatives = derivatives - np.outer(size, size @ derivatives)
    scores = np.stack([np.bincount(blocks, column, n) for column in (derivatives * difference[:, None]).T], axis=-1)
    total = scores.sum(axis=0)
    covariance = n * np.cov(scores.T)
    statistic = total @ np.linalg.pinv(covariance) @ total
    n_parameters = scores.shape[1]
    return bool(f.sf(statistic * (n - n_parameters) / (n_parameters * (n - 1)), n_parameters, n - n_parameters) < LEVEL)


def moved_within_shell(frame: Frame, series: npt.NDArray[np.float32], fit: npt.NDArray[np.float64]) -> list[bool]:
    """Return, for each volume, whether it moved against what the others of its shell predict for its direction.

    Parameters
    ----------
    frame : Frame
    series : ndarray
        (x, y, z, n).
    fit : ndarray
        (n, n), see `Diffusion.angular_fit`.

    Returns
    -------
    list of bool
        True as well for volumes that others do not predict.
    """
    values = series[frame.mask]
    fitted = values @ fit.astype(np.float32)
    leverage = np.diag(fit)
    return [
        bool(own > MAX_LEVERAGE) or moved(frame, values[:, i], (fitted[:, i] - own * values[:, i]) / (1 - own))
        for i, own in enumerate(leverage)
    ]


def moved_between(frame: Frame, image: Array, reference: Array) -> bool:
    """Return whether an image moved against a reference of another contrast, (x, y, z) both.

    The prediction is a polynomial of third degree in the reference.
    """
    values, known = image[frame.mask], reference[frame.mask] / reference[frame.mask].mean()
    powers = np.vander(known, 4)
    return moved(frame, values, powers @ np.linalg.lstsq(powers, values, rcond=None)[0])
