"""Diffusion series by shell and direction: residuals that no tissue explains, and rotational invariants.

The signal of tissue varies smoothly with direction: it is a short series of spherical harmonics of even degree (Frank
2002, Magn Reson Med 47:1083; Descoteaux et al. 2006, Magn Reson Med 56:395). The residual of a shell is noise, or a
fault of single volumes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.transform import Rotation

from qmri_bidsapp.core.acquisition import B0_THRESHOLD, Diffusion, SphericalMean, reference_limit
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.directions import even_directions
from qmri_bidsapp.models.layout import n_distinct_axes
from qmri_bidsapp.models.rotation import real_harmonics
from qmri_bidsapp.models.smt import SphericalMeanTechnique
from qmri_bidsapp.uncertainty.ood_floor import floor_score

Array = npt.NDArray[np.float64]

#: Highest degree of the fitted harmonics, and of those whose power is a feature.
HIGHEST_FITTED = 8
HIGHEST_FEATURE = 4
#: Largest number of harmonics per distinct axis, and largest condition number, of a fit.
SHARE = 0.5
MAX_CONDITION = 20.0
#: Simulated fibres of a voxel: largest number of bundles, fibres of each, and range of their spread about its axis.
MAX_BUNDLES = 3
N_PER_BUNDLE = 20
SPREAD = (0.15, 1.0)
#: Batch of voxels whose series are simulated.
BATCH = 512


class ShellFits:
    """Fits of spherical harmonics to the shells of a protocol.

    Parameters
    ----------
    acquisition : Diffusion

    Attributes
    ----------
    degrees : tuple of int
        Highest degree of the fit of each shell, by ascending b-value, as `SHARE` admits.
    freedom : int
        Volumes minus fitted coefficients, of all fitted shells; zero if no weighted shell determines more than its
        mean.
    """

    def __init__(self, acquisition: Diffusion) -> None:
        direction, b_value = np.asarray(acquisition.direction), np.asarray(acquisition.b_value)
        timed = acquisition.small_delta is not None and acquisition.large_delta is not None
        shells = acquisition.timed_shells() if timed else acquisition.shells()
        limit = reference_limit(acquisition.b_value)
        self.degrees = tuple(_degree(direction[shell]) if b_value[shell].max() > limit else 0 for shell in shells)
        n = acquisition.n_measurements
        residual, size, features = np.zeros((n, n)), np.zeros(n), []
        self.freedom = 0
        for shell, degree in zip(shells, self.degrees, strict=True):
            design = _harmonics(direction[shell], degree) if degree else np.ones((len(shell), 1))
            to_coefficients = np.zeros((n, design.shape[1]))
            to_coefficients[shell] = np.linalg.pinv(design).T
            features += _parts(to_coefficients, degree)
            if len(shell) > design.shape[1] and (degree or b_value[shell].max() <= limit):
                own = np.eye(len(shell)) - design @ np.linalg.pinv(design)
                residual[np.ix_(shell, shell)] = own
                size[shell] = np.sqrt(np.diag(own))
                self.freedom += len(shell) - design.shape[1]
        if not any(self.degrees):
            self.freedom = 0
        self._residual = residual
        self._over_size = np.divide(1, size, out=np.zeros(n), where=size > 0)
        self._features = features

    def residuals(self, series: npt.NDArray[np.floating]) -> tuple[Array, Array]:
        """Return sum of squares and largest studentised size of the residuals, (n_voxels,) each.

        Parameters
        ----------
        series : ndarray
            (n_voxels, n_volumes).
        """
        left = np.asarray(series, dtype=np.float64) @ self._residual
        return np.square(left).sum(axis=1), np.abs(left * self._over_size).max(axis=1)

    def floor(self, series: npt.NDArray[np.floating], noise: Array) -> Array:
        """Return the log-likelihood ratio of Rician to Gaussian noise, (n_voxels,); see `floor_score`.

        Parameters
        ----------
        series : ndarray
            (n_voxels, n_volumes).
        noise : ndarray
            (n_voxels,) standard deviation.
        """
        values, kept = np.asarray(series, dtype=np.float64), self._over_size > 0
        left = values @ self._residual[:, kept]
        return floor_score(values[:, kept], values[:, kept] - left, noise)

    def features(self, series: npt.NDArray[np.floating]) -> Array:
        """Return mean, and root of the power of each degree up to four, of each shell, (n_voxels, n_features)."""
        values = np.asarray(series, dtype=np.float64)
        parts = [values @ operator for operator in self._features]
        return np.stack(
            [part[:, 0] if part.shape[1] == 1 else np.sqrt(np.square(part).sum(axis=1)) for part in parts], axis=1
        )


def _degree(direction: Array) -> int:
    """Return the highest degree of harmonics to fit to (n, 3) directions; zero for the mean."""
    n_axes = n_distinct_axes(direction)
    for degree in range(HIGHEST_FITTED, 0, -2):
        if (degree + 1) * (degree + 2) / 2 <= SHARE * n_axes:
            design = _harmonics(direction, degree)
            if np.linalg.cond(design) < MAX_CONDITION:
                return degree
    return 0


def _harmonics(direction: Array, degree: int) -> Array:
    """Return the harmonics up to a degree along (n, 3) directions, (n, n_harmonics)."""
    unit = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    return real_harmonics(np.arccos(np.clip(unit[:, 2], -1, 1)), np.arctan2(unit[:, 1], unit[:, 0]), degree)


def _parts(to_coefficients: Array, degree: int) -> list[Array]:
    """Return the operators of each degree up to `HIGHEST_FEATURE`; a single column is a mean."""
    ends = [(k + 1) * (k + 2) // 2 for k in range(0, min(degree, HIGHEST_FEATURE) + 1, 2)]
    return [to_coefficients[:, first:last] for first, last in zip([0, *ends], ends, strict=False)]


def nominal_series(model: SignalModel, acquisition: object) -> tuple[Diffusion, Array] | None:
    """Return a series whose powder average is the protocol of a model, and the averaging matrix.

    Its directions are spread evenly, so that participants with different directions share a certificate.

    Parameters
    ----------
    model : SignalModel
    acquisition : Acquisition

    Returns
    -------
    Diffusion, ndarray
        None for models that do not take powder averages of fibres, or if there are too few directions.
    """
    if not isinstance(model, SphericalMeanTechnique) or not isinstance(acquisition, SphericalMean):
        return None
    b_value: list[float] = []
    direction: list[tuple[float, ...]] = []
    for b, n in zip(acquisition.b_value, acquisition.n_directions, strict=True):
        b_value += [b] * n
        direction += [(0.0, 0.0, 0.0)] * n if b <= B0_THRESHOLD else even_directions(n)
    series = Diffusion(tuple(b_value), tuple(direction))
    if not ShellFits(series).freedom:
        return None
    shell = np.repeat(np.arange(acquisition.n_measurements), acquisition.n_directions)
    return series, np.eye(acquisition.n_measurements)[shell] / np.asarray(acquisition.n_directions)


def fibre_series(
    model: SignalModel, theta: torch.Tensor, acquisition: Diffusion, rng: np.random.Generator
) -> torch.Tensor:
    """Return noise-free series, (n, n_volumes) float32, of voxels with one to three dispersed bundles.

    Parameters
    ----------
    model : SignalModel
    theta : Tensor
        (n, 3).
    acquisition : Diffusion
        From `nominal_series`.
    rng : numpy.random.Generator
    """
    assert isinstance(model, SphericalMeanTechnique)
    parts = []
    for part in torch.split(theta, BATCH):
        axes = torch.tensor(_fibres(len(part), rng), dtype=torch.float32)
        parts.append(model.signal_of_fibres(part.float(), axes, acquisition))
    return torch.cat(parts)


def _fibres(n: int, rng: np.random.Generator) -> Array:
    """Return (n, n_fibres, 3) unit vectors: angular central Gaussian clouds about the axes of bundles."""
    bundles = Rotation.random(n * MAX_BUNDLES, random_state=rng).as_matrix()[:, 0].reshape(n, MAX_BUNDLES, 1, 3)
    n_bundles = rng.integers(1, MAX_BUNDLES + 1, n)
    # Missing bundles are copies of the existing ones.
    own = np.arange(MAX_BUNDLES) % n_bundles[:, None]
    bundles = np.take_along_axis(bundles, own[:, :, None, None], axis=1)
    spread = rng.uniform(*SPREAD, (n, 1, 1, 1))
    cloud = bundles + spread * rng.standard_normal((n, MAX_BUNDLES, N_PER_BUNDLE, 3))
    axes = cloud.reshape(n, -1, 3)
    return np.asarray(axes / np.linalg.norm(axes, axis=2, keepdims=True))
