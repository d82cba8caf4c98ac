"""Motion scores of a group: distribution, outliers, and scores with a warning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qmri_bidsapp.bids.record import MotionScoreRecord
from qmri_bidsapp.bids.record_files import read_record, record_files
from qmri_bidsapp.errors import InputMissingError

#: Scores above the median by more than this many scaled median absolute deviations are outliers.
OUTLIER_LIMIT = 3.5
#: With fewer images, no outliers are reported.
MIN_IMAGES = 6
#: Floor of the scaled median absolute deviation, mm: the error of the network itself.
LEAST_SPREAD = 0.1


@dataclass(frozen=True)
class GroupScores:
    """Scores of a group.

    Attributes
    ----------
    names : tuple of str
        Participant and T1w.
    scores : tuple of float
        mm.
    outside : tuple of bool
        Whether it is an outlier.
    outliers, doubts, refused : tuple of str
        One sentence for each outlier, for each score with a warning, and for each image without a score.
    """

    names: tuple[str, ...]
    scores: tuple[float, ...]
    outside: tuple[bool, ...]
    outliers: tuple[str, ...]
    doubts: tuple[str, ...]
    refused: tuple[str, ...]

    @property
    def summary(self) -> str:
        """One sentence on the distribution."""
        low, middle, high = np.percentile(self.scores, [25, 50, 75])
        return (
            f"{len(self.scores)} T1w images: median {middle:.2f} mm, half of them between {low:.2f} and {high:.2f} mm, "
            f"largest {max(self.scores):.2f} mm."
        )

    @property
    def rule(self) -> str:
        """How outliers are defined, in one sentence."""
        if len(self.scores) < MIN_IMAGES:
            return f"Outliers are reported from {MIN_IMAGES} images on."
        return (
            f"Outliers exceed the median by more than {OUTLIER_LIMIT:g} times the scaled median absolute deviation, "
            f"which counts as at least {LEAST_SPREAD:g} mm (Leys et al. 2013)."
        )


def group_scores(out_dir: Path, participant_labels: Sequence[str] = ()) -> GroupScores:
    """Return the motion scores in the records of these participants, or of all."""
    found: list[tuple[str, float]] = []
    doubts, refused = [], []
    for path in record_files(out_dir, participant_labels):
        for entry in _entries(path):
            name = f"{path.stem}, {entry.name}"
            if entry.score is None:
                refused.append(f"{name}: no score: {entry.refusal}")
                continue
            found.append((name, entry.score.mean))
            if entry.warnings:
                doubts.append(f"{name} ({entry.score.mean:.2f} mm): {' '.join(entry.warnings)}")
    scores = np.array([score for _, score in found])
    outside, outliers = np.zeros(len(scores), dtype=bool), []
    if len(scores) >= MIN_IMAGES:
        centre = float(np.median(scores))
        spread = max(1.4826 * float(np.median(np.abs(scores - centre))), LEAST_SPREAD)
        outside = scores > centre + OUTLIER_LIMIT * spread
        outliers = [
            f"{name}: {score:.2f} mm is {(score - centre) / spread:.1f} deviations above the median ({centre:.2f} mm)."
            for (name, score), out in zip(found, outside, strict=True)
            if out
        ]
    names, values = tuple(name for name, _ in found), tuple(score for _, score in found)
    return GroupScores(names, values, tuple(map(bool, outside)), tuple(outliers), tuple(doubts), tuple(refused))


def scores_section(found: GroupScores) -> dict[str, Any]:
    """Return the variables of the template ``motion_scores.html``."""
    from qmri_bidsapp.group.correction_report import inline_svg
    from qmri_bidsapp.reports.motion_score_figures import scores_figure

    figure = inline_svg(scores_figure(found.scores, found.outside)) if found.scores else ""
    return {"found": found, "figure": figure}


def _entries(path: Path) -> tuple[MotionScoreRecord, ...]:
    """Return the motion scores of a record; `aggregate` reports a record that cannot be read."""
    try:
        return read_record(path).motion_scores
    except InputMissingError:
        return ()
