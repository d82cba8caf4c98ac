"""The motion score in the workflow of a subject."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.errors import UsageError

if TYPE_CHECKING:
    from nipype.pipeline.engine import Workflow

    from qmri_bidsapp.bids.inputs import InputGroup
    from qmri_bidsapp.config import Config

NO_WEIGHTS = "No motion score: this version comes without weights; name some with --motion-weights."


@dataclass(frozen=True)
class MotionWeights:
    """Files that a run scores T1w images with.

    Attributes
    ----------
    path : str
        Folder of weights, or TorchScript file.
    sha256 : str
    bias_corrected : bool
        Whether the network expects images after N4.
    qc_head, qc_head_sha256 : str
        Folder of a quality-control head, and its SHA-256; empty without one.
    """

    path: str
    sha256: str
    bias_corrected: bool
    qc_head: str = ""
    qc_head_sha256: str = ""

    @property
    def about(self) -> dict[str, Any]:
        """Fields of sidecars that name the weights."""
        grades = {"QualityHeadSHA256": self.qc_head_sha256} if self.qc_head else {}
        return {"Weights": Path(self.path).name, "WeightsSHA256": self.sha256, **grades}


def find_motion_weights(config: Config) -> MotionWeights | None:
    """Return the weights that this run scores T1w images with, or None if scoring is disabled.

    Raises
    ------
    WeightsError
        If the weights cannot be used, or the quality-control head was trained on embeddings of other weights.
    UsageError
        If the weights were trained on images without bias field, and the run leaves its correction out.
    """
    if not scores_motion(config):
        return None
    from qmri_bidsapp.motion.qc_head import QualityHead
    from qmri_bidsapp.motion.scorer import SHIPPED, MotionScorer

    weights = config.motion_weights or SHIPPED
    scorer = MotionScorer.open(weights, config.motion_weights_sha256 or None)
    if scorer.bias_corrected and "bias-field" in config.skip:
        raise UsageError(
            f"{weights} scores images that are corrected for the bias field, and --skip names bias-field; leave it out "
            "or give --no-motion-score."
        )
    head = {}
    if config.qc_head is not None:
        found = QualityHead.load(config.qc_head, scorer.sha256)
        head = {"qc_head": str(config.qc_head), "qc_head_sha256": found.sha256}
    return MotionWeights(str(weights), scorer.sha256, scorer.bias_corrected, **head)


def scores_motion(config: Config) -> bool:
    """Return whether a run scores T1w images: scoring is not disabled, and there are weights."""
    from qmri_bidsapp.motion.scorer import SHIPPED

    return not config.no_motion_score and (config.motion_weights is not None or SHIPPED.is_dir())


def why_no_score(config: Config) -> str:
    """Return the reason why a run has no motion scores."""
    return "No motion score: --no-motion-score was given." if config.no_motion_score else NO_WEIGHTS


def score_names(group: InputGroup) -> dict[str, str]:
    """Return the paths of the distribution and of the preprocessed T1w, relative to the output folder."""
    from qmri_bidsapp.bids.derivatives import relative_path

    entities = dict(group.entities)
    extra = {"desc": "motion"}
    distribution = relative_path(
        group.subject, entities, datatype="motion", suffix="T1w", extension=".json", extra=extra
    )
    image = relative_path(group.subject, entities, datatype="anat", suffix="T1w", extra={"desc": "preproc"})
    return {"distribution": distribution, "image": image}


def add_motion(
    wf: Workflow, anat_wf: Workflow, group: InputGroup, save: Any, weights: MotionWeights, *, n_threads: int, name: str
) -> None:
    """Add the node that scores a T1w; only the node that saves the score depends on it.

    Parameters
    ----------
    wf, anat_wf : Workflow
        Workflow of the subject, and of the T1w.
    group : InputGroup
        The T1w.
    save : Node
        `SaveMotionScore`.
    weights : MotionWeights
    n_threads : int
    name : str
        Name of the node.
    """
    from nipype.pipeline.engine import Node

    from qmri_bidsapp.interfaces.motion_score import ScoreMotion

    inputs = {"weights": weights.path, "sha256": weights.sha256, "n_threads": n_threads}
    if weights.qc_head:
        inputs |= {"qc_head": weights.qc_head, "qc_head_sha256": weights.qc_head_sha256}
    score = Node(ScoreMotion(**inputs), name=name, n_procs=n_threads, mem_gb=2)
    score.title = f"{group.name} motion score"
    source = "bias.out_file" if weights.bias_corrected else "load.out_file"
    wf.connect([(anat_wf, score, [(source, "in_file")]), (score, save, [("found", "found")])])


def save_inputs(group: InputGroup, bids_dir: str, weights: MotionWeights) -> dict[str, Any]:
    """Return the inputs of `SaveMotionScore` for a T1w."""
    from qmri_bidsapp.bids.derivatives import bids_uri
    from qmri_bidsapp.bids.record import MotionScoreRecord

    names = score_names(group)
    record = MotionScoreRecord(
        name=group.name,
        image=names["image"],
        distribution=names["distribution"],
        weights=Path(weights.path).name,
        weights_sha256=weights.sha256,
        qc_head_sha256=weights.qc_head_sha256,
    )
    sidecar = {
        "Description": "Distribution of the motion score of a T1w",
        "Sources": [bids_uri(file, bids_dir) for file in group.files],
        **weights.about,
    }
    return {"record": record, "sidecar": sidecar}
