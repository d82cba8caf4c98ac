"""Models take low b-values as they are: signals simulated with them are fitted without bias."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qmri_bidsapp.core.acquisition import Diffusion, reference_limit
from qmri_bidsapp.models.directions import even_directions
from qmri_bidsapp.registry import get_estimator, get_model

DIRECTIONS = even_directions(30)
TENSOR = (1000.0, 1.7e-3, 0.0, 0.3e-3, 0.0, 0.0, 0.3e-3)


def protocol(lowest: float) -> Diffusion:
    """Four volumes of the lowest b-value, with directions, and two shells."""
    return Diffusion((lowest,) * 4 + (1000.0,) * 30 + (2000.0,) * 30, DIRECTIONS[:4] + DIRECTIONS * 2)


@pytest.mark.parametrize("lowest", [5.0, 10.0, 50.0, 51.0])
def test_mean_diffusivity_does_not_depend_on_the_lowest_b_value(lowest: float) -> None:
    acquisition = protocol(lowest)
    theta = torch.tensor([TENSOR], dtype=torch.float64)
    signals = get_model("tensor").signal(theta, acquisition).numpy()
    for name, at in (("tensor", None), ("kurtosis", "mk")):
        model = get_model(name)
        reduced, matrix = model.adapt(acquisition)
        estimator = get_estimator("wls")(model)
        estimator.fit(reduced)
        found = estimator.predict(signals if matrix is None else signals @ matrix)
        derived = model.derive(torch.tensor(np.asarray(found.estimate, dtype=np.float64)[:, : len(model.parameters)]))
        values = dict(zip([p.name for p in model.derived], derived[0].tolist(), strict=True))
        assert values["md"] == pytest.approx(2.3e-3 / 3, rel=2e-3)
        assert at is None or values[at] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("lowest", [5.0, 50.0])
def test_powder_averages_use_the_lowest_b_value(lowest: float) -> None:
    model = get_model("smt")
    reduced, _ = model.adapt(protocol(lowest))
    assert reduced.b_value == (lowest, 1000.0, 2000.0)
    model.check(reduced)


def test_high_b_values_alone_are_said() -> None:
    """The tensor then takes all: mean diffusivity of tissue comes out too low."""
    zeros = ((0.0, 0.0, 0.0),) * 4
    high = Diffusion((0.0,) * 4 + (6000.0,) * 30, zeros + DIRECTIONS)
    assert "tensor: volumes up to b = 6000 s/mm2 are used" in get_model("tensor").caution(high)
    both = Diffusion((0.0,) * 4 + (1000.0,) * 30 + (6000.0,) * 30, zeros + DIRECTIONS * 2)
    assert get_model("tensor").caution(both) is None
    assert "kurtosis: volumes up to b = 6000" in get_model("kurtosis").caution(both)
    assert get_model("smt").caution(both) is None


def test_no_higher_b_values_are_used_than_needed() -> None:
    """With b = 0, 3000 and 6000 the tensor comes from 3000, and says so."""
    rows = np.random.default_rng(0).standard_normal((61, 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    protocol = Diffusion((0.0, *(3000.0,) * 30, *(6000.0,) * 30), tuple(map(tuple, rows.tolist())))
    used, matrix = get_model("tensor").adapt(protocol)
    assert max(used.b_value) == 3000
    assert matrix.shape == (61, 31)
    assert "volumes up to b = 3000 s/mm2 are used" in get_model("tensor").caution(protocol)
    assert get_model("kurtosis").adapt(protocol)[0] == protocol


@pytest.mark.parametrize(
    ("b_values", "limit"),
    [((0, 1000), 50), ((60, 64, 1000), 64), ((60, 250), 50), ((120, 1000), 50), ((20, 60, 1000), 50), ((60,), 50)],
    ids=["usual", "hcp-7t", "near", "high", "lower-one", "alone"],
)
def test_the_lowest_shell_is_a_reference_if_far_below_the_next(b_values: tuple[float, ...], limit: float) -> None:
    assert reference_limit(b_values) == limit


@pytest.mark.parametrize("name", ["smt", "noddi"])
def test_hcp_7t_is_fitted_without_bias(name: str) -> None:
    """Its b0 volumes are recorded as b = 56 to 64."""
    acquisition = Diffusion((64.0, 56.0, 56.0, 60.0) + (1000.0,) * 30 + (2000.0,) * 30, DIRECTIONS[:4] + DIRECTIONS * 2)
    model = get_model(name)
    reduced, _ = model.adapt(acquisition)
    model.check(reduced)
    truth = {"smt": [1000.0, 0.6, 1.9e-3], "noddi": [1000.0, 0.05, 0.5, 0.3, 60.0, 40.0]}[name]
    signals = model.signal(torch.tensor([truth], dtype=torch.float64), reduced).numpy()
    estimator = get_estimator("nlls")(model)
    estimator.fit(reduced)
    found = estimator.predict(signals).estimate[0]
    assert found[:3] == pytest.approx(truth[:3], rel=0.02)
