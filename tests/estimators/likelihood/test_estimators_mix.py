"""The parts of the global search on problems with known answers, and the whole on compositions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import differential_evolution, least_squares, nnls

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.estimators.likelihood.bundles import BundlesByVoxel
from qmri_bidsapp.estimators.likelihood.interior_point import InteriorPoint
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.estimators.likelihood.mix import Mix
from qmri_bidsapp.evaluation.standards import even_directions
from qmri_bidsapp.models.activeax import ActiveAx
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.noddi import Noddi
from qmri_bidsapp.models.relaxometry import SpinEchoT2
from qmri_bidsapp.models.smt import SphericalMeanTechnique
from qmri_bidsapp.models.zcd import ZeppelinCylinderDot
from qmri_bidsapp.solvers.differential_evolution import evolve
from qmri_bidsapp.solvers.nonnegative import nonnegative_least_squares
from qmri_bidsapp.solvers.problem import Bounds


def strong_gradients() -> Diffusion:
    """300 mT/m (Dyrby et al. 2013, Magn Reson Med 70:711)."""
    b_value = np.repeat([0.0, 2067.0, 3084.0, 9516.0], (9, 40, 40, 40))
    small, large = (
        np.repeat(times, (9, 40, 40, 40)) for times in ((7e-3, 5.6e-3, 7e-3, 10.5e-3), (0.02, 0.0121, 0.0204, 0.0169))
    )
    return Diffusion(tuple(b_value), ((0.0, 0.0, 0.0),) * 9 + even_directions(40) * 3, tuple(small), tuple(large))


def test_amounts_agree_with_scipy_nnls() -> None:
    rng = np.random.default_rng(0)
    for n_columns in (1, 2, 4):
        columns, vectors = rng.standard_normal((60, n_columns, 9)), rng.standard_normal((60, 9)) + 0.5
        found = nonnegative_least_squares(torch.tensor(columns), torch.tensor(vectors)).numpy()
        expected = np.array([nnls(matrix.T, vector)[0] for matrix, vector in zip(columns, vectors, strict=True)])
        np.testing.assert_allclose(found, expected, atol=1e-3)
        assert (expected == 0).any()


def test_evolution_finds_the_deepest_of_many_minima() -> None:
    """Rastrigin's function in two dimensions has 121 minima; scipy's own search agrees on the deepest."""
    centre = torch.tensor([[1.3, -2.1], [-3.7, 0.4]]).double()

    def cost(points: torch.Tensor) -> torch.Tensor:
        offset = points - centre[:, None]
        return (offset.square() - 10 * torch.cos(2 * np.pi * offset) + 10).sum(-1)

    bound = torch.full((2,), 5.0).double()
    bounds = Bounds(-bound, bound, torch.zeros(2, dtype=torch.bool))
    members, costs = evolve(cost, 2, bounds, population=40, generations=80, seed=0)
    assert members.shape == (2, 40, 2)
    assert (costs.diff(dim=1) >= 0).all()
    torch.testing.assert_close(costs, cost(members))
    for i in range(2):
        single = differential_evolution(
            lambda x, i=i: cost(torch.tensor(x)[None, None].expand(2, 1, 2))[i, 0].item(), [(-5, 5)] * 2, seed=1
        )
        np.testing.assert_allclose(members[i, 0].numpy(), single.x, atol=1e-2)
    again, _ = evolve(cost, 2, bounds, population=40, generations=80, seed=0)
    other, _ = evolve(cost, 2, bounds, population=40, generations=80, seed=1)
    torch.testing.assert_close(again, members)
    assert not torch.equal(other, members)


def test_noddi_agrees_with_scipy() -> None:
    """A local search by scipy from the truth, in double precision, finds no lower cost."""
    model, protocol = Noddi(), strong_gradients()
    rng = np.random.default_rng(2)
    theta = np.array(
        [[1.0, 0.2, 0.5, 0.2, 40.0, 70.0], [1.0, 0.1, 0.7, 0.1, 75.0, -160.0], [1.0, 0.3, 0.4, 0.3, 15.0, 20.0]]
    )
    signal = model.signal(torch.tensor(theta), protocol).numpy() + rng.standard_normal((3, 129)) / 50
    maps = Mix(model).fit(protocol).predict(signal)
    scale = np.array([p.scale for p in model.parameters])
    low, high = np.array([p.bounds for p in model.parameters]).T

    def residual(scaled: np.ndarray, target: np.ndarray) -> np.ndarray:
        return model.signal(torch.tensor(scaled * scale), protocol).numpy() - target

    for truth, target, found in zip(theta, signal, maps.estimate, strict=True):
        expected = least_squares(
            residual, truth / scale, bounds=(low / scale, high / scale), args=(target,), xtol=1e-12
        )
        reached = (residual(found[:6] / scale, target) ** 2).sum()
        assert reached <= 2 * expected.cost * (1 + 1e-5)


def test_two_crossing_bundles_are_recovered() -> None:
    """No other start is needed; the bundles may be exchanged."""
    model, protocol = Noddi.with_bundles(2)(), strong_gradients()
    truth = torch.tensor([[100.0, 0.1, 0.6, 0.06, 0.6, 90.0, 0.0, 90.0, 80.0]], dtype=torch.float64)
    maps = Mix(model).fit(protocol).predict(model.signal(truth, protocol).numpy())
    names = [p.name for p in maps.parameters]
    found = dict(zip(names, maps.estimate[0], strict=True))
    assert found["ndi"] == pytest.approx(0.6, abs=5e-3)
    assert found["odi"] == pytest.approx(0.06, abs=5e-3)
    assert sorted([found["bundle1_fraction"], found["bundle2_fraction"]]) == pytest.approx([0.4, 0.6], abs=5e-3)
    axes = model.direction(torch.tensor(maps.estimate[:, : len(model.parameters)]).double())[0]
    overlap = (axes @ model.direction(truth)[0].T).abs()
    torch.testing.assert_close(overlap.amax(-1), torch.ones(2, dtype=torch.float64), atol=1e-3, rtol=0)


#: Ranges of the parameters but the amplitude and the angles.
TISSUE = {
    Noddi: [(0.05, 0.4), (0.3, 0.7), (0.1, 0.5)],
    ActiveAx: [(0.05, 0.3), (0.05, 0.2), (0.4, 0.7), (4e-3, 8e-3)],
    ZeppelinCylinderDot: [(0.05, 0.2), (0.3, 0.7), (1e-3, 2.2e-3), (3e-3, 1e-2), (0.3e-3, 0.9e-3)],
}


@pytest.mark.parametrize(
    ("kind", "model", "n"),
    [
        (Mix, Noddi(), 200),
        (Mix, ActiveAx(), 100),
        (InteriorPoint, Noddi(), 500),
        (InteriorPoint, ActiveAx(), 300),
        (InteriorPoint, ZeppelinCylinderDot(), 200),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_costs_are_no_higher_than_those_of_nlls(kind: type[NonLinearLeastSquares], model: SignalModel, n: int) -> None:
    protocol, rng = strong_gradients(), np.random.default_rng(3)
    ranges = [*TISSUE[type(model)], (0.0, 90.0), (-180.0, 180.0)]
    theta = np.stack([np.ones(n), *(rng.uniform(*limits, n) for limits in ranges)], axis=1)
    signal = model.signal(torch.tensor(theta), protocol).numpy() + rng.standard_normal((n, 129)) / 50

    def cost(estimate: np.ndarray) -> np.ndarray:
        values = torch.tensor(estimate[:, : theta.shape[1]]).double()
        return (model.signal(values, protocol) - torch.tensor(signal)).square().sum(-1).numpy()

    local, found = (cost(each(model).fit(protocol).predict(signal).estimate) for each in (NonLinearLeastSquares, kind))
    assert (found <= (1 + 1e-4) * local).mean() >= 0.99


@pytest.mark.parametrize("kind", [Mix, InteriorPoint])
def test_every_voxel_may_have_its_own_number_of_bundles(kind: type[NonLinearLeastSquares]) -> None:
    tissue, protocol = [100.0, 0.1, 0.6, 0.1], strong_gradients()
    angles = {0: [], 1: [30.0, 40.0], 2: [90.0, 0.0, 90.0, 80.0]}
    shares = {0: [], 1: [], 2: [0.6]}
    signals, directions = [], np.full((3, 3, 3), np.nan)
    for n in range(3):
        model = Noddi.with_bundles(n)()
        theta = torch.tensor([*tissue[: 4 if n else 3], *shares[n], *angles[n]], dtype=torch.float64)
        signals.append(model.signal(theta, protocol).numpy())
        directions[n, :n] = model.direction(theta).numpy() + 0.02
    maps = BundlesByVoxel(Noddi(), kind).fit(protocol).predict(np.array(signals), directions=directions)
    found = {p.name: column for p, column in zip(maps.parameters, maps.estimate.T, strict=True)}
    assert (maps.status == Status.OK).all()
    np.testing.assert_allclose(found["ndi"], 0.6, atol=5e-3)
    np.testing.assert_allclose(found["bundle1_fraction"], [np.nan, 1.0, 0.6], atol=5e-3)
    np.testing.assert_allclose(found["odi"], [np.nan, 0.1, 0.1], atol=5e-3)
    assert np.isnan(found["theta3"]).all()


def test_it_is_for_models_that_mix_signals() -> None:
    assert Mix.supports(ZeppelinCylinderDot())
    assert Mix.supports(Noddi.with_bundles(3)())
    # Tortuosity makes the only fraction of SMT non-linear.
    assert not Mix.supports(SphericalMeanTechnique())
    assert not Mix.supports(SpinEchoT2())
