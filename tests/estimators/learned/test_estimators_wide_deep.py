"""The linear and the deep network together: what each part adds, and what is stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.estimators.learned.training import Training
from qmri_bidsapp.estimators.learned.wide_deep import WideDeep
from qmri_bidsapp.evaluation.standards import signals
from qmri_bidsapp.evaluation.table3 import table3
from qmri_bidsapp.models.smt import SphericalMeanTechnique

FIXED = Noise("gaussian", (25.0, 25.0))
SHORT = Training(steps=1500, batch_size=512)


@pytest.fixture(scope="module")
def trained() -> WideDeep:
    return WideDeep(SphericalMeanTechnique(), noise=FIXED, training=SHORT).fit(table3.PROTOCOL)


def test_errors_are_those_of_the_paper_after_little_training(trained):
    found, _ = table3.measure(
        table3.estimate(lambda signal: trained.predict(signal).estimate[:, 1:] / [1.0, 1e-3], table3.simulate(40))
    )
    paper = table3.PUBLISHED["Net-uniform-SNR25"]
    # An error below the exact posterior mean's (0.0628, 0.1048) would be noise.
    assert 0.06 < found.rmse[0] < 1.03 * paper.rmse[0]
    assert 0.10 < found.rmse[1] < 1.03 * paper.rmse[1]


def test_intervals_cover_the_truth(trained):
    rng = np.random.default_rng(1)
    theta = np.column_stack([np.full(20_000, 100.0), rng.random(20_000), 3e-3 * rng.random(20_000)])
    clean = signals(trained.model, theta, table3.PROTOCOL)
    noise = 4.0 / np.sqrt(table3.PROTOCOL.n_averages)
    maps = trained.predict(clean + noise * rng.standard_normal(clean.shape))
    covered = (np.abs(maps.estimate - theta) <= 1.96 * maps.std).mean(axis=0)
    assert np.all((covered > 0.93) & (covered < 0.97))


def test_both_parts_learn_each_by_its_own_optimiser(trained):
    assert trained._network.wide.weight.abs().max() > 0.01
    deep, wide = trained._optimisers()
    assert type(deep).__name__ == "Adam"
    assert type(wide).__name__ == "FTRL"
    assert {id(p) for p in wide.param_groups[0]["params"]} == {id(trained._network.wide.weight)}
    assert len(deep.param_groups[0]["params"]) == 8


def test_saved_weights_give_the_same_maps(trained, tmp_path):
    trained.save(tmp_path / "w")
    again = WideDeep(SphericalMeanTechnique(), weights=tmp_path / "w").fit(table3.PROTOCOL)
    assert again.options() == trained.options()
    signal = table3.simulate(2).reshape(-1, 5)
    first, second = trained.predict(signal), again.predict(signal)
    np.testing.assert_array_equal(first.estimate, second.estimate)
    np.testing.assert_array_equal(first.std, second.std)


def test_same_seed_same_weights():
    first, again, other = (
        WideDeep.brief(SphericalMeanTechnique()).fit(table3.PROTOCOL, seed=seed)._state()["wide.weight"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_unknown_optimiser_of_the_wide_part_is_refused():
    with pytest.raises(UsageError, match="no optimiser 'sdca'"):
        WideDeep(SphericalMeanTechnique(), wide_optimiser="sdca")
