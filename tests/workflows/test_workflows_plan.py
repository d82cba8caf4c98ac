from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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


def two_shells(n_directions: int) -> InputGroup:
    vectors = np.random.default_rng(1).standard_normal((n_directions, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    b_value = (0.0, *(1000.0 if i < n_directions // 2 else 2500.0 for i in range(n_directions)))
    acquisition = Diffusion(b_value, ((0.0, 0.0, 0.0), *map(tuple, vectors.tolist())))
    return InputGroup("dwi", "01", (), ("/raw/sub-01/dwi/sub-01_dwi.nii.gz",), acquisition)


@pytest.mark.parametrize(
    ("n_directions", "n_fibres", "bundles", "note"),
    [(60, "1", (), None), (60, "auto", (("noddi", "nlls"),), None), (14, "auto", (), "15 directions, got 14")],
    ids=["one", "auto", "few-directions"],
)
def test_bundles_by_voxel(
    n_directions: int, n_fibres: str, bundles: tuple[tuple[str, str], ...], note: str | None
) -> None:
    config = Config(
        Path("/raw"), Path("/out"), "participant", "run", Path("/work"), models=("noddi", "smt"), n_fibres=n_fibres
    )
    (found,) = plan(config, (SubjectInputs("01", (two_shells(n_directions),)),))
    (item,) = found.series
    assert [model for model, _ in item.fits] == ["noddi", "smt"]
    assert item.bundle_fits == bundles
    assert ("noddi by nlls with 0 to 3 bundles" in "".join(found.describe())) == bool(bundles)
    assert any(note in text for text in item.notes) if note else not item.notes
