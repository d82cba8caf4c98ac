"""Variable projection against the bounded search, and its pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.estimators.likelihood import varpro
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.estimators.likelihood.varpro import VariableProjection
from qmri_bidsapp.evaluation.standards import simulate, standard
from qmri_bidsapp.registry import get_model


@pytest.mark.parametrize("name", ["t1", "t2", "smt", "ivim"])
def test_costs_are_no_higher_than_those_of_the_bounded_search(name: str) -> None:
    """In nearly all voxels: signs that a magnitude has lost, and valleys, lead either of them astray now and then."""
    model = get_model(name)
    acquisition, _ = model.adapt(standard(name))
    signals = simulate(model, acquisition, 3000).astype(np.float64)
    weights = np.array(acquisition.n_averages)
    costs = []
    for method in (VariableProjection, NonLinearLeastSquares):
        theta = method(model).fit(acquisition).predict(signals).estimate[:, : len(model.parameters)]
        residual = model.signal(torch.tensor(theta, dtype=torch.float64), acquisition).numpy() - signals
        costs.append((weights * residual**2).sum(axis=1))
    assert (costs[0] <= (1 + 1e-4) * costs[1]).mean() > 0.995


def test_a_parameter_beyond_its_bound_is_found_on_it() -> None:
    """A signal that does not decay: the projected minimum lies beyond the longest T2."""
    model, acquisition = get_model("t2"), standard("t2")
    signals = np.linspace(100, 110, acquisition.n_measurements)[None]
    maps = VariableProjection(model).fit(acquisition).predict(signals)
    assert maps.status.tolist() == [Status.AT_BOUND]
    assert maps.estimate[0, 1] == pytest.approx(model.parameters[1].bounds[1], rel=1e-4)
    assert np.isnan(maps.std[0, 1])


def test_the_peak_of_a_parabola_is_found_between_entries() -> None:
    x, y = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    heights = 5 - 0.3 * (x - 4.3) ** 2 - 0.2 * (y - 2.8) ** 2
    value, position = varpro._interpolate(heights.unsqueeze(0), heights.argmax()[None])
    torch.testing.assert_close(position[:, 0], torch.tensor([4.3, 2.8]))
    torch.testing.assert_close(value, torch.tensor([5.0]))
