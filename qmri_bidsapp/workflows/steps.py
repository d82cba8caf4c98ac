"""Steps of preprocessing that a user leaves out with ``--skip``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qmri_bidsapp.config import STEPS

if TYPE_CHECKING:
    from qmri_bidsapp.bids.inputs import InputGroup

#: Steps of diffusion series alone.
DIFFUSION_STEPS = {"distortion", "denoise", "noise-floor", "unring", "drift", "lost-slices"}


def skipped_of(group: InputGroup, skip: Sequence[str], *, has_t1w: bool) -> tuple[str, ...]:
    """Return the steps left out of the preprocessing of one series, in the order of `config.STEPS`.

    Parameters
    ----------
    group : InputGroup
        Series, or T1w.
    skip : sequence of str
        Steps that the user leaves out of the run.
    has_t1w : bool
        Whether mask and tissues come from a T1w.
    """
    if group.acquisition is None:
        own = {"bias-field"}
    else:
        own = {"align"} | ({"register"} if has_t1w else set())
        own |= DIFFUSION_STEPS if group.row.is_diffusion else set()
    return tuple(step for step in STEPS if step in own and step in skip)


def skip_notes(skipped: Sequence[str]) -> tuple[str, ...]:
    """Return the note on the steps left out, for plan, record and report; none without such steps."""
    return (f"Left out on request (--skip): {', '.join(STEPS[step] for step in skipped)}.",) if skipped else ()


def skip_fields(skipped: Sequence[str]) -> dict[str, list[str]]:
    """Return the sidecar field that names the steps left out; none without such steps."""
    return {"SkippedSteps": list(skipped)} if skipped else {}
