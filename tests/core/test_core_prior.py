"""Training distributions, against the distributions that they are to be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest

from qmri_bidsapp.core import prior
from qmri_bidsapp.core.prior import Empirical, Mixed, Uniform
from qmri_bidsapp.errors import PriorError
from qmri_bidsapp.registry import get_model

SMT = get_model("smt").parameters[1:]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def subjects(n: int, n_columns: int = 2, n_voxels: int = 20_000) -> list[np.ndarray]:
    """Two tissues: correlated pairs, and beta-distributed ones."""
    parts = []
    for seed in range(n):
        first = rng(seed).multivariate_normal([0.65, 2.2e-3], [[4e-3, 4e-6], [4e-6, 1e-8]], n_voxels // 2)
        second = rng(seed + 100).beta(2, 6, (n_voxels // 2, 2)) * [1, 3e-3]
        pair = np.concatenate([first, second]).clip(0, [1, 3e-3])
        parts.append(np.concatenate([pair, pair[:, :1] ** 2], axis=1)[:, :n_columns])
    return parts


def test_uniform_is_uniform_and_of_wide_ranges_in_the_logarithm():
    values = Uniform(SMT).draw(20_000, rng())
    assert kstest(values[:, 0], "uniform").pvalue > 0.01
    assert kstest(values[:, 1] / 3e-3, "uniform").pvalue > 0.01
    t2 = Uniform(get_model("t2").parameters[1:], {"t2": (0.02, 0.2)}).draw(20_000, rng())[:, 0]
    assert kstest(np.log(t2 / 0.02) / np.log(10), "uniform").pvalue > 0.01


@pytest.mark.parametrize("n_columns", [2, 3], ids=["histogram", "kernels"])
def test_healthy_has_the_density_of_the_subjects(n_columns):
    parameters = (*SMT, replace(SMT[0], name="third"))[:n_columns]
    given = subjects(4, n_columns)
    drawn = Empirical(parameters, given).draw(50_000, rng())
    pooled = np.concatenate(given)
    bins = [np.linspace(*p.bounds, 9) for p in parameters]
    expected, found = (np.histogramdd(part, bins)[0] / len(part) for part in (pooled, drawn))
    # Half of the absolute difference is the mass that is in the wrong place; two draws of the subjects differ by 0.02.
    assert 0.5 * np.abs(expected - found).sum() < (0.03 if n_columns == 2 else 0.06)
    assert 0.5 * np.abs(expected - np.histogramdd(Uniform(parameters).draw(50_000, rng()), bins)[0] / 5e4).sum() > 0.3
    for column, p in enumerate(parameters):
        assert p.bounds[0] <= drawn[:, column].min() < drawn[:, column].max() <= p.bounds[1]


def test_values_that_pile_up_on_a_bound_neither_stop_the_sampling_nor_are_lost(monkeypatch):
    monkeypatch.setattr(prior, "MAX_ROUNDS", 20)
    given = subjects(3)
    for part in given:
        part[::3] = [0.0, 3e-3]
    drawn = Empirical(SMT, given).draw(100_000, rng())
    near = (drawn[:, 0] < 0.02) & (drawn[:, 1] > 2.94e-3)
    assert near.mean() == pytest.approx(1 / 3, abs=0.04)
    # Elsewhere the density is that of the others.
    others = np.concatenate([part[1::3] for part in given])
    np.testing.assert_allclose(drawn[~near].mean(0), others.mean(0), rtol=0.05)
    np.testing.assert_allclose(drawn[~near].std(0), others.std(0), rtol=0.05)


def test_mixed_is_half_of_each():
    healthy = Empirical(SMT, [part[:10_000] for part in subjects(3)])
    values = Mixed(Uniform(SMT, {"intra_fraction": (0.0, 0.1)}), healthy).draw(20_000, rng())
    share = (values[:, 0] <= 0.1).mean()
    # Of the tissue of the first 10,000 voxels, with a mean of 0.65, next to nothing is there.
    assert share == pytest.approx(0.5, abs=0.01)
    # In no order: the training takes them as they come.
    assert (values[:10_000, 0] <= 0.1).mean() == pytest.approx(0.5, abs=0.02)


def test_the_seed_acts():
    prior = Empirical(SMT, subjects(3))
    first, again, other = (prior.draw(100, rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_description_tells_distributions_apart():
    few, more = Empirical(SMT, subjects(3)), Empirical(SMT, subjects(4))
    assert few.describe() == Empirical(SMT, subjects(3)).describe()
    assert few.describe() != more.describe()
    assert Uniform(SMT).describe() != Uniform(SMT, {"diffusivity": (1e-3, 2e-3)}).describe()


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda: Uniform(SMT, {"diffusivity": (0.0, 4e-3)}), "diffusivity must lie within 0 to 0.003 mm2/s"),
        (lambda: Uniform(SMT, {"diffusivity": (2e-3, 1e-3)}), "got 0.002 to 0.001"),
        (lambda: Uniform(SMT, {"t1": (0.1, 1.0)}), "has a range of t1, but the parameters are intra_fraction, diffus"),
        (lambda: Empirical(SMT, subjects(2)), "at least 3 subjects, got 2"),
        (lambda: Empirical(SMT, subjects(3, n_voxels=20)), "at least 2000 voxels, got 60"),
        (lambda: Empirical(SMT, [part * [1, 2] for part in subjects(3)]), "values of diffusivity beyond 0 to 0.003"),
        (lambda: Empirical(SMT, [part * [np.nan, 1] for part in subjects(3)]), "values of intra_fraction beyond"),
        (lambda: Mixed(Uniform(SMT), Uniform(SMT[:1])), "of the same parameters"),
    ],
    ids=["beyond bounds", "reversed", "unknown name", "subjects", "voxels", "fits beyond bounds", "NaN", "mixed"],
)
def test_bad_priors_are_refused(make, cause):
    with pytest.raises(PriorError, match=cause):
        make()
