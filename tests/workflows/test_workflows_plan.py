from __future__ import annotations

from pathlib import Path

import numpy as np

from qmri_bidsapp.bids.queries import InputGroup, SubjectInputs
from qmri_bidsapp.config import Config
from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.workflows.plan import plan


def series(*entities: tuple[str, str]) -> InputGroup:
    """A series that determines the tensor, and not the spherical mean technique."""
    directions = np.random.default_rng(0).standard_normal((12, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rows = ((0.0, 0.0, 0.0), *map(tuple, directions.tolist()))
    return InputGroup(
        "dwi", "01", entities, ("/raw/sub-01/dwi/sub-01_dwi.nii.gz",), Diffusion((0.0,) + (1000.0,) * 12, rows)
    )


def plan_with(*models: str):
    config = Config(Path("/raw"), Path("/out"), "participant", "run", Path("/work"), models=models)
    (found,) = plan(config, (SubjectInputs("01", (series(),)),))
    return found


def test_a_model_that_cannot_be_fitted_does_not_stop_others() -> None:
    for models in (("smt", "tensor"), ("tensor", "smt")):
        found = plan_with(*models)
        assert [item.fits for item in found.series] == [(("tensor", "wls"),)]
        (error,) = found.errors
        assert "at least 2 shells" in error


def test_a_series_without_any_model_left_is_no_work() -> None:
    found = plan_with("smt")
    assert found.is_empty
    assert len(found.errors) == 1


def test_auto_leaves_models_out_with_a_note() -> None:
    found = plan_with("auto")
    assert not found.errors
    assert [item.fits for item in found.series] == [(("tensor", "wls"),)]
    assert any("at least 2 shells" in note for note in found.series[0].notes)
