"""The motion score of a T1w in the report of a participant."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.bids.record import MotionScoreRecord, MotionScoreValues
from qmri_bidsapp.motion.scorer import MAX_INTERVAL, UNFAMILIAR
from qmri_bidsapp.reports import tables
from qmri_bidsapp.reports.motion_score_figures import air_figure, most_affected, score_figure

#: Limits, mm, and the words for scores below them.
LEVELS = ((0.5, "hardly any motion"), (1.0, "little motion"), (2.0, "clear motion"), (np.inf, "strong motion"))
#: Slices stand out if their signal in the air exceeds the median by this factor.
STANDS_OUT = 1.3
NONE_STANDS_OUT = "No slice stands out: the signal in the air is similar in all."
ABOUT_AIR = (
    "Mean signal in the air beside the head, independent of the network, and the slices with the highest values, "
    "brightened to show the air. Motion puts ghosts and ringing into the air, but so do pulsating vessels and "
    "wrap-around, and noise is always present. In a 3-D acquisition motion affects all slices, some more visibly."
)


class Pages(Protocol):
    """Writes reportlets; see `assembler`."""

    out_dir: Path

    def html(self, name: str, text: str, **texts: str) -> dict[str, Any]:
        """Write a snippet."""

    def figure(self, name: str, figure: Any, **texts: str) -> dict[str, Any]:
        """Write a figure."""

    def volume(self, relative: str) -> npt.NDArray[Any] | None:
        """Return an image."""


def score_notes(entries: Sequence[MotionScoreRecord]) -> list[str]:
    """Return refusals and warnings for the summary of the report."""
    found = []
    for entry in entries:
        if entry.refusal:
            found.append(f"{entry.name}: no motion score: {entry.refusal}")
        elif entry.warnings:
            found.append(f"{entry.name}: the motion score may be wrong: {' '.join(entry.warnings)}")
    return found


def sentence(score: MotionScoreValues) -> str:
    """Return a score in plain words, or that it means nothing for an image unlike the training images."""
    if score.p_value is not None and score.p_value < UNFAMILIAR:
        return (
            f"The network estimates {max(score.mean, 0):.1f} mm from one position to the next, but was not trained "
            "on images like this one: its estimate says nothing about how far the head moved."
        )
    words = next(text for limit, text in LEVELS if score.mean < limit)
    if score.high - score.low > MAX_INTERVAL:
        words = "the amount is uncertain"
    return (
        f"From one position to the next the head moved by {max(score.mean, 0):.1f} mm on average, as the network "
        f"estimates: {words}. With a probability of 90 % it is between {max(score.low, 0):.1f} and "
        f"{max(score.high, 0):.1f} mm."
    )


def score_reportlets(pages: Pages, entries: Sequence[MotionScoreRecord]) -> list[dict[str, Any]]:
    """Return the reportlets of all T1w of a subject."""
    reportlets = []
    for entry in entries:
        name, score = f"{entry.name}score", entry.score
        if score is None:
            text = tables.notes([f"No motion score: {entry.refusal}"], "warning")
            reportlets.append(pages.html(name, text, subtitle=entry.name))
            continue
        text = tables.notes(entry.warnings, "warning") + f"<p>{sentence(score)}</p>"
        if score.p_value is not None:
            text += (
                f"<p class='elem-desc'>{100 * score.p_value:.2g} % of the training images of the network are as "
                f"unusual as this one (below {UNFAMILIAR:.0%}: unlike the training data).</p>"
            )
        if score.grades:
            rows = [(grade, f"{value:.2f}") for grade, value in score.grades.items()]
            text += tables.table(("Grade (trained on the lab's own)", "Probability"), rows)
        reportlets.append(pages.html(name, text, subtitle=entry.name))
        reportlets += _figures(pages, entry, score)
    return reportlets


def _figures(pages: Pages, entry: MotionScoreRecord, score: MotionScoreValues) -> list[dict[str, Any]]:
    """Return the distribution, and the signal in the air."""
    name, file = entry.name, pages.out_dir / entry.distribution
    if not file.is_file():
        missing = tables.notes([f"{entry.distribution} is not in the output folder."], "error")
        return [pages.html(f"{name}nodistribution", missing)]
    content = json.loads(file.read_text(encoding="utf-8"))
    figure = score_figure(content["BinCentres"], content["Probability"], score.mean, (score.low, score.high))
    found = [pages.figure(f"{name}distribution", figure, caption=entry.distribution)]
    air = np.array([np.nan if value is None else value for value in content["SignalInAir"]["Values"]], dtype=float)
    volume = pages.volume(entry.image)
    if volume is None or volume.shape[2:] != air.shape or not most_affected(air):
        text = tables.notes(["No slices to show: the air beside the head was blanked, or is outside the image."])
        return [*found, pages.html(f"{name}noair", text)]
    caption = ABOUT_AIR if np.nanmax(air) > STANDS_OUT * np.nanmedian(air) else f"{NONE_STANDS_OUT} {ABOUT_AIR}"
    figure = air_figure(volume, air)
    return [*found, pages.figure(f"{name}air", figure, subtitle="Most affected slices", caption=caption)]
