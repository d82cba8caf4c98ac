"""Nodes of the motion score: one scores a T1w, one saves what was found."""

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
    found = traits.Dict(desc="see `motion.scorer.MotionScore`; or `refusal`: why there is no score")


class ScoreMotion(SimpleInterface):
    """Motion score of a T1w; an image that cannot be scored is a result, not a failure."""

    input_spec = _ScoreInputSpec
    output_spec = _ScoreOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        import nibabel as nib
        import numpy as np
        import torch

        from qmri_bidsapp.errors import InputError
        from qmri_bidsapp.images.volumes import load_image
        from qmri_bidsapp.motion.air import signal_in_air
        from qmri_bidsapp.motion.qc_head import QualityHead
        from qmri_bidsapp.motion.scorer import MotionScorer

        torch.set_num_threads(self.inputs.n_threads)
        image = nib.as_closest_canonical(load_image(self.inputs.in_file, ndim=3))
        volume = np.ascontiguousarray(image.dataobj, dtype=np.float32)
        scorer = MotionScorer.open(self.inputs.weights, self.inputs.sha256)
        try:
            found = scorer.score(torch.from_numpy(volume), image.affine).to_dict()
        except InputError as error:
            found = {"refusal": str(error)}
        else:
            size = np.linalg.norm(image.affine[:3, :3], axis=0)
            found["air"] = [float(value) for value in signal_in_air(volume, size)]
            if folder := defined(self.inputs.qc_head):
                found["grades"] = QualityHead.load(folder, self.inputs.sha256).probabilities(found["embedding"])
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
