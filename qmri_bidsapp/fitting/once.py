"""What is done once per protocol and shared by all series of it: training and certification."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qmri_bidsapp.artifacts.weights import key_of
from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.noise import noise_kind
from qmri_bidsapp.core.prior import Prior, make_prior
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.errors import InputError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.learned.base import LearnedEstimator
from qmri_bidsapp.fitting.noise_level import coarse
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.uncertainty.certificate import N_VOXELS, Certificate, certify
from qmri_bidsapp.uncertainty.identity import identity_of


def train_once(estimator: LearnedEstimator, acquisition: Acquisition, cache: Path, *, seed: int = 0) -> Path:
    """Return the folder of an estimator's weights; whoever comes first trains them.

    Parameters
    ----------
    estimator : LearnedEstimator
        Not yet fitted.
    acquisition : Acquisition
        Protocol as the model uses it.
    cache : Path
        Folder of all weights; each has a folder named by the hash of everything that it depends on.
    seed : int
    """
    folder = cache / estimator.cache_key(acquisition, seed)
    with locked(folder):
        if not folder.exists():
            estimator.fit(acquisition, seed=seed).save(folder)
    return folder


def certify_once(
    estimator: Estimator,
    acquisition: Acquisition,
    cache: Path,
    *,
    noise: Noise,
    prior: Prior | None = None,
    n: int = N_VOXELS,
    noise_is_known: bool = True,
    covariates_are_known: bool = False,
) -> Path:
    """Return the folder of a certificate; whoever comes first makes it.

    Parameters
    ----------
    estimator : Estimator
        Fitted to the protocol.
    acquisition, noise, prior, n, noise_is_known, covariates_are_known
        See `certify`.
    cache : Path
        Folder of all certificates; each has a folder named by the hash of everything that it depends on.
    """
    options: dict[str, Any] = {"noise": noise, "n": n, "seed": 0}
    options |= {"noise_is_known": noise_is_known, "covariates_are_known": covariates_are_known}
    stated = prior or estimator.model.default_prior()
    folder = cache / key_of(identity_of(estimator, acquisition, prior=stated, **options))
    with locked(folder):
        try:
            Certificate.load(folder, estimator.model)
        except InputError:
            # It is missing or damaged.
            certify(estimator, acquisition, prior=prior, **options).save(folder)
    return folder


def noise_level_of(acquisition: Acquisition, snr: float, *, floor_removed: bool) -> Noise:
    """Return the noise at which a series is certified: the nearest of the levels that series share.

    Parameters
    ----------
    acquisition : Acquisition
        Protocol as the model uses it.
    snr : float
        Median signal-to-noise ratio of the series.
    floor_removed : bool
        Whether preprocessing removed the noise floor of the magnitudes.
    """
    level = coarse(snr)
    return Noise(noise_kind(acquisition, floor_removed=floor_removed), (level, level))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time make a folder: the others wait here and then find it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def load_prior(model: SignalModel, name: str, samples: str | Path | None) -> Prior | None:
    """Return the training distribution of that name; None for the model's own, which is uniform.

    Parameters
    ----------
    model : SignalModel
    name : str
        See `core.prior.make_prior`.
    samples : path or None
        ``.npz`` with the parameters of each subject that the distribution is made from.
    """
    if not samples:
        return None
    with np.load(samples, allow_pickle=False) as file:
        return make_prior(name, model.default_prior(), [file[key] for key in sorted(file.files)])
