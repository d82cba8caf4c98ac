"""The table of suffixes agrees with the acquisitions, the models and the command's help."""

from __future__ import annotations

from dataclasses import fields

import pytest

from qmri_bidsapp.bids.derivatives import ENTITY_ORDER
from qmri_bidsapp.bids.kinds import ENTITIES, load_kinds
from qmri_bidsapp.cli.app.parser import build_parser
from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.registry import load_models

KINDS = load_kinds()


@pytest.mark.parametrize("suffix", [suffix for suffix, kind in KINDS.items() if kind.acquisition is not None])
def test_rows_fit_their_acquisitions(suffix: str) -> None:
    kind = KINDS[suffix]
    assert kind.acquisition is not None
    known = {item.name for item in fields(kind.acquisition)}
    assert {item.attribute for item in kind.fields} <= known
    assert set(kind.sort_by) <= {item.attribute for item in kind.fields}
    assert ("signed" in known) == kind.restores_polarity
    # The noise floor is removed by the denoising of diffusion series, and by nothing else.
    assert kind.acquisition.noise_floor_removed == kind.is_diffusion
    assert set(kind.within) <= set(ENTITY_ORDER)
    assert kind.ndim == (3 if kind.axis else 4)


def test_entities_are_in_the_order_of_bids() -> None:
    assert [key for key in ENTITY_ORDER if key in ENTITIES] == list(ENTITIES)


@pytest.mark.parametrize("model", load_models().values(), ids=list(load_models()))
def test_models_name_known_suffixes_and_their_maps_have_names(model: type[SignalModel]) -> None:
    for suffix in model.bids_suffixes:
        kind = KINDS[suffix]
        assert kind.acquisition is not None
        saved: list[Parameter] = [item for item in (*model.parameters, *model.derived) if item.saved]
        assert kind.map_suffix or all(item.bids_suffix for item in saved)


def test_help_lists_every_suffix() -> None:
    text = " ".join(build_parser().format_help().split())
    assert all(suffix in text for suffix in KINDS)
