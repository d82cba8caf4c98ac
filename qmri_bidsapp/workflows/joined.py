"""Models that diffusion series would determine together, if they were joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.errors import ProtocolError

if TYPE_CHECKING:
    from qmri_bidsapp.bids.inputs import InputGroup


def advice_to_join(groups: Sequence[InputGroup], models: Sequence[str]) -> dict[str, str]:
    """Return name of a series -> which models could be fitted to it and others together, and what to do.

    Parameters
    ----------
    groups : sequence of InputGroup
        All series of a subject. Those of diffusion of one session and one ``dir-`` may belong together, as where each
        run has a shell.
    models : sequence of str
        Models that no series determines alone.
    """
    together: dict[tuple[str | None, str | None], list[InputGroup]] = {}
    for group in groups:
        if isinstance(group.acquisition, Diffusion):
            labels = dict(group.entities)
            together.setdefault((labels.get("ses"), labels.get("dir")), []).append(group)
    found: dict[str, str] = {}
    for members in together.values():
        joined = _join([group.acquisition for group in members if isinstance(group.acquisition, Diffusion)])
        possible = [name for name in models if _determines(joined, name)]
        if len(members) > 1 and possible:
            names = [group.name for group in members]
            advice = (
                f"{', '.join(possible)} could be fitted to {' and '.join(names)} together, but they "
                "differ in more than dir- or run- and are not joined: if they were acquired alike, name them so."
            )
            found |= dict.fromkeys(names, advice)
    return found


def _join(parts: Sequence[Diffusion]) -> Diffusion:
    """Return the protocol of series one after the other, without the timing of pulses."""
    b_value = tuple(value for part in parts for value in part.b_value)
    return Diffusion(b_value, tuple(row for part in parts for row in part.direction))


def _determines(acquisition: Diffusion, model_name: str) -> bool:
    from qmri_bidsapp.registry import get_model

    model = get_model(model_name)
    if "dwi" not in model.bids_suffixes:
        return False
    try:
        model.check(model.adapt(acquisition)[0])
    except ProtocolError:
        return False
    return True
