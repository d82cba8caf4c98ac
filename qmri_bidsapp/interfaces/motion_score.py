"""The node that scores the motion in a T1w."""

from __future__ import annotations

from typing import Any

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from qmri_bidsapp.interfaces.preprocess import defined


class _ScoreInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="T1w on its own grid")
    weights = traits.Str(mandatory=True, nohash=True, desc="folder of weights, or TorchScript file")
    sha256 = traits.Str(mandatory=True, desc="of the weights")
    qc_head = traits.Str(nohash=True, desc="folder of a quality-control head")
    qc_head_sha256 = traits.Str(desc="of its weights")
    n_threads = traits.Int(1, usedefault=True, nohash=True)


class _ScoreOutputSpec(TraitedSpec):
    found = traits.Dict(desc="see `motion.scorer.MotionScore`; or `refusal`: the reason why there is no score")


class ScoreMotion(SimpleInterface):
    """Motion score of a T1w; a refused image is a result, not a failure."""

    input_spec = _ScoreInputSpec
    output_spec = _ScoreOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        import numpy as np
        import torch

        from qmri_bidsapp.errors import InputError
        from qmri_bidsapp.images.volumes import load_image
        from qmri_bidsapp.motion.qc_head import QualityHead
        from qmri_bidsapp.motion.scorer import MotionScorer, score_t1w

        torch.set_num_threads(self.inputs.n_threads)
        image = load_image(self.inputs.in_file, ndim=3)
        scorer = MotionScorer.open(self.inputs.weights, self.inputs.sha256)
        folder = defined(self.inputs.qc_head)
        quality_head = QualityHead.load(folder, scorer.sha256) if folder else None
        try:
            found = score_t1w(np.asarray(image.dataobj), image.affine, scorer, quality_head).to_dict()
        except InputError as error:
            found = {"refusal": str(error)}
        self._results["found"] = found
        return runtime
