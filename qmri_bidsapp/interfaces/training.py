"""The node that trains a learned estimator, once for all subjects of a protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import BaseInterfaceInputSpec, Directory, File, SimpleInterface, TraitedSpec, traits

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.interfaces.preprocess import defined


class _TrainInputSpec(BaseInterfaceInputSpec):
    acquisition = traits.Dict(mandatory=True, desc="Acquisition.to_dict(), as acquired")
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
        from qmri_bidsapp.estimators.learned.base import LearnedEstimator
        from qmri_bidsapp.fitting.once import load_prior, train_once
        from qmri_bidsapp.fitting.series import make_estimator
        from qmri_bidsapp.registry import get_model

        inputs, model = self.inputs, get_model(self.inputs.model)
        prior = load_prior(model, inputs.prior, defined(inputs.samples))
        estimator = make_estimator(model, inputs.estimator, device=inputs.device, prior=prior)
        assert isinstance(estimator, LearnedEstimator)
        protocol, _ = model.adapt(Acquisition.from_dict(inputs.acquisition))
        self._results["weights"] = str(train_once(estimator, protocol, Path(inputs.cache), seed=inputs.seed))
        return runtime
