"""Standard protocols and simulated voxels."""

from __future__ import annotations

import numpy as np
import pytest

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.evaluation.standards import (
    AMPLITUDE,
    EIGENVALUES,
    SNR,
    STANDARDS,
    even_directions,
    simulate,
    standard,
    tissue,
)
from qmri_bidsapp.registry import get_model, load_models

MODELS = [name for name in STANDARDS if name in load_models()]


@pytest.mark.parametrize(
    ("name", "n_measurements"), [("t1", 31), ("t2", 6), ("smt", 5), ("ivim", 14), ("noddi", 105), ("tensor", 33)]
)
def test_size(name: str, n_measurements: int):
    assert standard(name).n_measurements == n_measurements


@pytest.mark.parametrize("name", MODELS)
class TestModel:
    def protocol(self, name: str) -> Acquisition:
        return get_model(name).adapt(standard(name))[0]

    def test_protocol_identifies_the_model(self, name: str):
        assert get_model(name).check(self.protocol(name)) is None

    def test_tissue_is_within_bounds(self, name: str):
        model = get_model(name)
        theta = tissue(model, 200, np.random.default_rng(0))
        assert (theta[:, 0] == AMPLITUDE).all()
        for column, parameter in zip(theta.T[1:], model.parameters[1:], strict=True):
            assert parameter.bounds[0] <= column.min() < column.max() <= parameter.bounds[1], parameter.name

    def test_seed_acts(self, name: str):
        model, protocol = get_model(name), self.protocol(name)
        first, again, other = (simulate(model, protocol, 10, seed=seed) for seed in (0, 0, 1))
        assert first.dtype == np.float32
        np.testing.assert_array_equal(first, again)
        assert not np.allclose(first, other)


@pytest.mark.parametrize(("name", "n_averages"), [("tensor", 1), ("smt", 12)])
def test_noise_of_the_unweighted_values(name: str, n_averages: int):
    values = simulate(get_model(name), standard(name), 20_000)[:, 0]
    assert values.std() == pytest.approx(AMPLITUDE / SNR / np.sqrt(n_averages), rel=0.03)
    assert values.mean() == pytest.approx(AMPLITUDE, rel=2e-3)


def test_tensors_have_the_eigenvalues_asked_for():
    xx, xy, yy, xz, yz, zz = tissue(get_model("tensor"), 500, np.random.default_rng(0)).T[1:]
    values = np.linalg.eigvalsh(np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=1).reshape(-1, 3, 3))
    assert values.min() > EIGENVALUES[0] - 1e-12
    assert values.max() < EIGENVALUES[1] + 1e-12


@pytest.mark.parametrize("n", [30, 64])
def test_directions_are_even(n: int):
    directions = np.array(even_directions(n))
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    np.testing.assert_allclose(directions.T @ directions / n, np.eye(3) / 3, atol=0.02)
