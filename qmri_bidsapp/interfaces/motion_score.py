"""Nodes of the motion score: one scores a T1w, one saves the score."""

from __future__ import annotations

from typing import Any

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from qmri_bidsapp.interfaces.derivatives import _RecordOutputSpec, _SaveInputSpec, _write_record
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


class _SaveScoreInputSpec(_SaveInputSpec):
    found = traits.Dict(mandatory=True, desc="of `ScoreMotion`")
    sidecar = traits.Dict(mandatory=True, desc="further fields of the file")


class SaveScore(SimpleInterface):
    """Save the distribution of a motion score."""

    input_spec = _SaveScoreInputSpec
    output_spec = _RecordOutputSpec
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.bids.derivatives import save_json
        from qmri_bidsapp.bids.scans_table import distribution_file
        from qmri_bidsapp.motion.scorer import MotionScore

        inputs, found = self.inputs, dict(self.inputs.found)
        content = {**inputs.sidecar, **distribution_file(found, MotionScore.bins())}
        save_json(content, inputs.out_dir, inputs.record["distribution"])
        kept = {name: found[name] for name in ("mean", "low", "high", "p_value", "grades", "refusal") if name in found}
        record = {**inputs.record, **kept, "warnings": list(found.get("warnings", ()))}
        self._results["record_file"] = _write_record(record, inputs.record_file)
        return runtime
