"""The motion score in the graph of a subject."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nipype.pipeline.engine import Workflow

    from qmri_bidsapp.bids.inputs import InputGroup
    from qmri_bidsapp.config import Config

NO_WEIGHTS = "No motion score: this version of the program comes without weights; name some with --motion-weights."


@dataclass(frozen=True)
class Scoring:
    """With what T1w images are scored.

    Attributes
    ----------
    weights : str
        Folder, or TorchScript file.
    sha256 : str
    bias_corrected : bool
        Whether images come after N4.
    qc_head, qc_head_sha256 : str
        Empty: none.
    """

    weights: str
    sha256: str
    bias_corrected: bool
    qc_head: str = ""
    qc_head_sha256: str = ""

    @property
    def about(self) -> dict[str, Any]:
        """What sidecars say of it."""
        grades = {"QualityHeadSHA256": self.qc_head_sha256} if self.qc_head else {}
        return {"Weights": Path(self.weights).name, "WeightsSHA256": self.sha256, **grades}


def find_scoring(config: Config) -> Scoring | None:
    """Return with what T1w images are scored in a run; None if they are not.

    Raises
    ------
    WeightsError
        If weights cannot be used, or the quality-control head is for others.
    """
    if not scores_motion(config):
        return None
    from qmri_bidsapp.motion.qc_head import QualityHead
    from qmri_bidsapp.motion.scorer import SHIPPED, MotionScorer

    weights = config.motion_weights or SHIPPED
    scorer = MotionScorer.open(weights, config.motion_weights_sha256 or None)
    head = {}
    if config.qc_head is not None:
        found = QualityHead.load(config.qc_head, scorer.sha256)
        head = {"qc_head": str(config.qc_head), "qc_head_sha256": found.sha256}
    return Scoring(str(weights), scorer.sha256, scorer.bias_corrected, **head)


def scores_motion(config: Config) -> bool:
    """Return whether a run scores T1w images: it is not told otherwise, and there are weights."""
    from qmri_bidsapp.motion.scorer import SHIPPED

    return not config.no_motion_score and (config.motion_weights is not None or SHIPPED.is_dir())


def why_no_score(config: Config) -> str:
    """Return why a run without a `Scoring` makes no scores."""
    return "No motion score: --no-motion-score was given." if config.no_motion_score else NO_WEIGHTS


def score_names(group: InputGroup) -> dict[str, str]:
    """Return the names of the distribution and of the preprocessed T1w, relative to the output folder."""
    from qmri_bidsapp.bids.derivatives import relative_path

    entities = dict(group.entities)
    extra = {"desc": "motion"}
    distribution = relative_path(
        group.subject, entities, datatype="motion", suffix="T1w", extension=".json", extra=extra
    )
    image = relative_path(group.subject, entities, datatype="anat", suffix="T1w", extra={"desc": "preproc"})
    return {"distribution": distribution, "image": image}


def add_motion(
    wf: Workflow, anat_wf: Workflow, group: InputGroup, save: Any, scoring: Scoring, *, n_threads: int, name: str
) -> None:
    """Add the node that scores a T1w; nothing waits for it but the one that saves.

    Parameters
    ----------
    wf, anat_wf : Workflow
        Of the subject, and of the T1w.
    group : InputGroup
        The T1w.
    save : Node
        `SaveScore`.
    scoring : Scoring
    n_threads : int
    name : str
        Of the node.
    """
    from nipype.pipeline.engine import Node

    from qmri_bidsapp.interfaces.motion_score import ScoreMotion

    inputs = {"weights": scoring.weights, "sha256": scoring.sha256, "n_threads": n_threads}
    if scoring.qc_head:
        inputs |= {"qc_head": scoring.qc_head, "qc_head_sha256": scoring.qc_head_sha256}
    score = Node(ScoreMotion(**inputs), name=name, n_procs=n_threads, mem_gb=2)
    score.title = f"{group.name} motion score"
    source = "bias.out_file" if scoring.bias_corrected else "load.out_file"
    wf.connect([(anat_wf, score, [(source, "in_file")]), (score, save, [("found", "found")])])


def save_inputs(group: InputGroup, bids_dir: str, scoring: Scoring) -> dict[str, Any]:
    """Return inputs of `SaveScore` for a T1w."""
    from qmri_bidsapp.bids.derivatives import bids_uri
    from qmri_bidsapp.bids.record import MotionScoreRecord

    names = score_names(group)
    record = MotionScoreRecord(
        name=group.name,
        image=names["image"],
        distribution=names["distribution"],
        weights=Path(scoring.weights).name,
        weights_sha256=scoring.sha256,
        qc_head_sha256=scoring.qc_head_sha256,
    )
    sidecar = {
        "Description": "Distribution of the motion score of a T1w",
        "Sources": [bids_uri(file, bids_dir) for file in group.files],
        **scoring.about,
    }
    return {"record": record, "sidecar": sidecar}
