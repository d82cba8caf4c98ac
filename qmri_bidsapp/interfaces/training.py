"""The node that trains a learned estimator, once for all subjects of a protocol."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, Directory, File, SimpleInterface, TraitedSpec, traits

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.prior import Prior, make_prior
from qmri_bidsapp.estimators.learned.base import LearnedEstimator
from qmri_bidsapp.interfaces.preprocess import defined
from qmri_bidsapp.models.base import SignalModel


def train_once(estimator: LearnedEstimator, acquisition: Acquisition, cache: Path, *, seed: int = 0) -> Path:
    """Return the folder of an estimator's weights, trained by whoever comes first.

    Parameters
    ----------
    estimator : LearnedEstimator
        Not yet fitted.
    acquisition : Acquisition
        Protocol, as the model uses it.
    cache : Path
        Folder of all weights; each has a folder named by the hash of everything that it depends on.
    seed : int
    """
    folder = cache / estimator.cache_key(acquisition, seed)
    with locked(folder):
        if not folder.exists():
            estimator.fit(acquisition, seed=seed).save(folder)
    return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let only one process at a time make a folder: the others wait here, and then find it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def load_prior(model: SignalModel, name: str, samples: str | Path | None) -> Prior | None:
    """Return the training distribution of that name; None for the model's own, which is uniform."""
    if not samples:
        return None
    with np.load(samples, allow_pickle=False) as file:
        return make_prior(name, model.default_prior(), [file[key] for key in sorted(file.files)])


class _TrainInputSpec(BaseInterfaceInputSpec):
    acquisition = traits.Dict(mandatory=True, desc="Acquisition.to_dict(), as it was acquired")
    model = traits.Str(mandatory=True)
    estimator = traits.Str(mandatory=True)
    seed = traits.Int(0, usedefault=True)
    prior = traits.Str("uniform", usedefault=True, desc="name of the training distribution")
    samples = File(exists=True, desc="parameters of each subject that it is made from, .npz, unless it is uniform")
    cache = Directory(mandatory=True, nohash=True, desc="folder of all weights")
    device = traits.Str("cpu", usedefault=True, nohash=True)
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)


class _TrainOutputSpec(TraitedSpec):
    weights = Directory(exists=True)


class Train(SimpleInterface):
    """Train a learned estimator for a protocol, or find that it was done."""

    input_spec = _TrainInputSpec
    output_spec = _TrainOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.registry import get_estimator, get_model

        model, kind = get_model(self.inputs.model), get_estimator(self.inputs.estimator)
        assert issubclass(kind, LearnedEstimator)
        prior = load_prior(model, self.inputs.prior, defined(self.inputs.samples))
        estimator = kind(model, device=self.inputs.device, prior=prior)
        protocol, _ = model.adapt(Acquisition.from_dict(self.inputs.acquisition))
        self._results["weights"] = str(train_once(estimator, protocol, Path(self.inputs.cache), seed=self.inputs.seed))
        return runtime
