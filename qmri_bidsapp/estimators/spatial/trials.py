"""Simulated measurements of virtual heads, and the errors of any estimator on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qmri_bidsapp.core.acquisition import Acquisition, InversionRecovery, MultiEcho
from qmri_bidsapp.core.noise import add_gaussian, add_rician
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.spatial.error_head import ErrorHead, SliceNetwork
from qmri_bidsapp.estimators.spatial.patches import QUANTITIES, SNR_SIGNAL
from qmri_bidsapp.estimators.spatial.slices import Coordinates, Slices, typical_signal
from qmri_bidsapp.estimators.spatial.virtual_heads import (
    BRAIN_STRUCTURES,
    crop,
    draw_values,
    label_phantom,
    structures_of,
)
from qmri_bidsapp.models.base import SignalModel

PHANTOM_SNR = 20.0
#: Side of a slice, voxels.
SLICE_SIZE = 96

#: Inversion times of the protocols with 23 and 31, ms; the one with 25 adds two to the 23.
_MS_23 = "172 204 237 270 303 335 368 401 434 467 499 532 565 598 630 663 696 729 761 794 827 860 893"
_MS_31 = (
    "139 166 193 219 246 272 299 325 352 379 405 432 458 485 511 538 565 591 618 644 671 697 724 751 777 804 838 857 "
    "883 915 937"
)
#: Sabidussi et al. 2021, Table 2.
PROTOCOLS: dict[str, dict[str, Acquisition]] = {
    "t1": {
        name: InversionRecovery(tuple(float(time) / 1000 for time in text.split()))
        for name, text in (("23", _MS_23), ("25", f"{_MS_23} 925 958"), ("31", _MS_31))
    },
    "t2": {"6": MultiEcho((0.01, 0.02, 0.04, 0.08, 0.16, 0.32))},
}


class Scene(NamedTuple):
    """Slices of tissue to be measured.

    Attributes
    ----------
    theta : ndarray
        (n_slices, height, width, n_parameters) of the model; zero in air.
    structures : ndarray
        (n_slices, height, width), from `virtual_heads.structures_of`.
    """

    theta: npt.NDArray[np.float32]
    structures: npt.NDArray[np.uint8]

    @property
    def brain(self) -> npt.NDArray[np.bool_]:
        """Voxels to estimate, (n_slices, height, width)."""
        return np.isin(self.structures, BRAIN_STRUCTURES)

    @property
    def truth(self) -> npt.NDArray[np.float64]:
        """Relaxation times of the brain's voxels, (n_voxels,) s."""
        return self.theta[self.brain][:, -1].astype(float)


class Trial(NamedTuple):
    """Repeated measurements of slices.

    Attributes
    ----------
    acquisition : Acquisition
    signals : ndarray
        (n_repetitions, n_slices, height, width, n_measurements) float32.
    truth : ndarray
        (n_slices, height, width) relaxation time, s.
    brain : ndarray
        (n_slices, height, width) bool.
    noise_std : float
        In the unit of the signals.
    is_rician : bool
        Whether the signals are magnitudes with Rician noise; otherwise the noise is Gaussian.
    """

    acquisition: Acquisition
    signals: npt.NDArray[np.float32]
    truth: npt.NDArray[np.float32]
    brain: npt.NDArray[np.bool_]
    noise_std: float
    is_rician: bool


class RelaxationErrors(NamedTuple):
    """Medians over the voxels of the brain, relative to the true value.

    Attributes
    ----------
    error : float
        Absolute error.
    bias : float
        Bias, with its sign (Sabidussi et al. 2021, eq. 7).
    cv : float
        Coefficient of variation over repetitions (their eq. 8).
    """

    error: float
    bias: float
    cv: float


def simulate_trial(
    model: SignalModel,
    heads: Sequence[npt.NDArray[np.uint8]],
    acquisition: Acquisition,
    snr: float,
    *,
    n_repetitions: int = 2,
    seed: int = 0,
) -> Trial:
    """Return repeated measurements of the middle axial slice of each head, with Gaussian noise.

    Parameters
    ----------
    model : SignalModel
        One with `PROTOCOLS`.
    heads : sequence of ndarray
        Structures, cropped to the brain, with z the last axis.
    acquisition : Acquisition
    snr : float
        `SNR_SIGNAL` over the standard deviation of the noise.
    n_repetitions : int
    seed : int
        Of tissue values and noise; the tissue values depend only on it and the heads.
    """
    rng = np.random.default_rng(seed)
    return measure(model, draw_scene(model, heads, rng), acquisition, snr, rng, n_repetitions=n_repetitions)


def draw_scene(model: SignalModel, heads: Sequence[npt.NDArray[np.uint8]], rng: np.random.Generator) -> Scene:
    """Draw tissue for the middle axial slice of each head; see `simulate_trial`."""
    structures = np.stack([_middle(head[..., head.shape[2] // 2]) for head in heads])
    values = [draw_values(part, rng) for part in structures]
    maps = [np.stack([part[QUANTITIES[parameter.name]] for part in values]) for parameter in model.parameters]
    return Scene(np.stack(maps, axis=-1), structures)


def measure(
    model: SignalModel,
    scene: Scene,
    acquisition: Acquisition,
    snr: float,
    rng: np.random.Generator,
    *,
    n_repetitions: int = 1,
    is_rician: bool = False,
) -> Trial:
    """Return repeated measurements of a scene, with Gaussian noise or as magnitudes; see `simulate_trial`."""
    signal = model.signal(torch.as_tensor(scene.theta), acquisition).numpy()
    clean = np.where((scene.structures > 0)[..., None], signal, 0)
    noise_std = SNR_SIGNAL / snr
    add_noise = add_rician if is_rician else add_gaussian
    signals = add_noise(np.broadcast_to(clean, (n_repetitions, *clean.shape)), noise_std, rng)
    return Trial(acquisition, signals.astype(np.float32), scene.theta[..., -1], scene.brain, noise_std, is_rician)


def _middle(plane: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the middle of a slice, (`SLICE_SIZE`, `SLICE_SIZE`)."""
    corner = [max(0, (n - SLICE_SIZE) // 2) for n in plane.shape]
    return plane[corner[0] : corner[0] + SLICE_SIZE, corner[1] : corner[1] + SLICE_SIZE]


def estimate_with(estimator: Estimator, trial: Trial) -> npt.NDArray[np.float64]:
    """Return the relaxation times of the brain's voxels, (n_repetitions, n_voxels), from a fitted estimator."""
    position = len(estimator.model.parameters) - 1
    mask = np.moveaxis(trial.brain, 0, -1)
    # From the order of the voxels in the mask back to that in the slices.
    order = np.moveaxis(np.arange(trial.brain.size).reshape(trial.brain.shape), 0, -1)[mask].argsort()
    found = []
    for signals in trial.signals:
        voxels = np.moveaxis(signals, 0, 2)[mask]
        # Slices of different heads are far apart, so that they are not taken for neighbours.
        maps = estimator.predict_volume(voxels, mask, spacing=(1.0, 1.0, 1e3), noise_std=trial.noise_std)
        found.append(maps.estimate[order, position].astype(float))
    return np.stack(found)


@torch.no_grad()
def estimate_by_network(network: nn.Module, model: SignalModel, trial: Trial) -> npt.NDArray[np.float64]:
    """Return the relaxation times of the brain's voxels, (n_repetitions, n_voxels), from a spatial network."""
    coordinates = Coordinates(model)
    found = []
    for series in _series_of(trial):
        normal = network([series])[-1]
        found.append(coordinates.physical(normal.movedim(1, -1))[series.inside][:, -1].double().numpy())
    return np.stack(found)


def _series_of(trial: Trial) -> Iterator[Slices]:
    """Yield each repetition as the input of a network."""
    inside = torch.as_tensor(trial.brain)
    for values in trial.signals:
        signals = torch.as_tensor(values)
        unit = typical_signal(signals, inside)
        noise = (trial.noise_std / unit).expand(len(signals), 1, 1)
        yield Slices(trial.acquisition, signals / unit, inside, noise, trial.is_rician)


def per_voxel(
    estimates: npt.NDArray[np.float64], truth: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return relative bias and coefficient of variation, (n_voxels,) each (Sabidussi et al. 2021, eqs. 7 and 8).

    Parameters
    ----------
    estimates : ndarray
        (n_repetitions, n_voxels); a failed one (not finite) makes both results infinite.
    truth : ndarray
        (n_voxels,).
    """
    values = np.where(np.isfinite(estimates), estimates, np.inf)
    mean = values.mean(0)
    with np.errstate(invalid="ignore"):
        cv = np.nan_to_num(values.std(0, ddof=1) / mean, nan=np.inf)
    return (mean - truth) / truth, cv


def errors_of(estimates: npt.NDArray[np.float64], trial: Trial) -> RelaxationErrors:
    """Return the errors of estimates, (n_repetitions, n_voxels); failed ones (not finite) count as infinite."""
    truth = trial.truth[trial.brain].astype(float)
    values = np.where(np.isfinite(estimates), estimates, np.inf)
    bias, cv = per_voxel(estimates, truth)
    error = abs(values - truth) / truth
    return RelaxationErrors(error=float(np.median(error)), bias=float(np.median(bias)), cv=float(np.median(cv)))


def _phantom(model: SignalModel, acquisition: Acquisition) -> Trial:
    """Return measurements of a head of ellipsoids at `PHANTOM_SNR`."""
    return simulate_trial(model, [crop(structures_of(label_phantom()))], acquisition, PHANTOM_SNR)


def phantom_errors(network: nn.Module, model: SignalModel, acquisition: Acquisition) -> RelaxationErrors:
    """Return the errors of a network on a head of ellipsoids at `PHANTOM_SNR`, against which its card is checked."""
    trial = _phantom(model, acquisition)
    return errors_of(estimate_by_network(network, model, trial), trial)


@torch.no_grad()
def phantom_std(network: SliceNetwork, head: ErrorHead, model: SignalModel, acquisition: Acquisition) -> list[float]:
    """Return the median standard deviation of each normalised parameter on the same phantom, from an error head."""
    stds = []
    for series in _series_of(_phantom(model, acquisition)):
        _, known = network.known([series])
        stds.append(head.std(known).movedim(1, -1)[series.inside])
    medians: list[float] = torch.cat(stds).median(0).values.tolist()
    return medians
