"""b-values that jitter are one shell for whatever uses shells; shells that differ stay apart."""

import numpy as np
import pytest

from qmri_bidsapp.core.acquisition import Diffusion, SphericalMean, reference_limit
from qmri_bidsapp.core.acquisition.shells import group_b_values
from qmri_bidsapp.evaluation.standards import even_directions
from qmri_bidsapp.models.ivim import IntravoxelIncoherentMotion
from qmri_bidsapp.models.kurtosis import DiffusionKurtosis
from qmri_bidsapp.models.tensor import DiffusionTensor
from qmri_bidsapp.preprocess.fibre_directions import refusal
from qmri_bidsapp.uncertainty.ood_directions import ShellFits


def spread(b_value: float, n: int, width: float) -> list[float]:
    """Return b-values that scatter evenly, in no order."""
    return np.random.default_rng(0).permutation(np.linspace(b_value - width, b_value + width, n)).tolist()


def series(*shells: list[float]) -> Diffusion:
    """Return a protocol of shells with even directions."""
    direction = [row for b_value in shells for row in even_directions(len(b_value))]
    return Diffusion(tuple(b for b_value in shells for b in b_value), tuple(direction))


@pytest.mark.parametrize(
    ("shells", "sizes"),
    [
        ([[0.0, 5.0, 10.0], spread(700, 16, 8), spread(1000, 30, 15), spread(1200, 30, 15)], [3, 16, 30, 30]),
        ([spread(60, 7, 4), spread(1000, 30, 5), spread(2000, 30, 10)], [7, 30, 30]),
        ([[5.0] * 6, spread(995, 30, 5), spread(2000, 30, 15), spread(3000, 30, 20)], [6, 30, 30, 30]),
        ([spread(50, 6, 6), spread(1000, 30, 5)], [6, 30]),
        ([[0.0], spread(3000, 64, 120)], [1, 64]),
        ([[0.0], spread(1000, 64, 80)], [1, 64]),
        ([[0.0], spread(100, 6, 4), spread(150, 6, 4), spread(200, 6, 4)], [1, 6, 6, 6]),
        ([[0.0], *(spread(b, 12, 10) for b in (1000, 1060, 1120, 1180))], [1, 12, 12, 12, 12]),
        ([[0.0], *([b] * 3 for b in range(1000, 2001, 50))], [1] + [3] * 21),
        ([[0.0], *([float(b)] for b in range(300, 3000, 10))], [1] * 271),
    ],
    ids=["close", "hcp-7t", "hcp-3t", "about-the-threshold", "wide", "wider", "low", "chain", "steps", "no-shells"],
)
def test_shells_are_neither_split_nor_merged(shells: list[list[float]], sizes: list[int]) -> None:
    protocol = series(*shells)
    found = protocol.shells()
    assert [len(shell) for shell in found] == sizes
    bounds = np.cumsum([0, *map(len, shells)])
    if len(found) == len(shells):
        for shell, first, last in zip(found, bounds[:-1], bounds[1:], strict=True):
            assert set(shell.tolist()) == set(range(first, last))


@pytest.mark.parametrize(
    ("b_value", "limit"),
    [
        ((0, 5, 1000), 50),
        ((56, 64, 1000), 64),
        ((0, 45, 56, 1000), 56),
        ((0, 60, 1000), 50),
        ((0, 10, 20, 30, 40, 50, 60, 1000), 50),
        ((60, 200), 50),
    ],
    ids=["low", "all-above", "about-the-threshold", "another-shell", "perfusion", "next-is-near"],
)
def test_references(b_value: tuple[float, ...], limit: float) -> None:
    assert reference_limit(b_value) == limit


def test_scattered_b_values_give_the_same_groups_in_any_order() -> None:
    b_value = np.array(spread(1000, 20, 15) + spread(2000, 20, 15))
    shells = group_b_values(b_value)
    assert [shell.tolist() for shell in shells] == [list(range(20)), list(range(20, 40))]


def test_plans_and_reports_state_the_range_of_a_shell() -> None:
    protocol = series([0.0, 5.0, 10.0], [995.0, 1005.0], [2000.0] * 3)
    assert protocol.summary() == ("8 volumes (3 at b = 5 (0 to 10), 2 at b = 1000 (995 to 1005), 3 at b = 2000 s/mm²)")
    assert SphericalMean.from_diffusion(protocol)[0].b_value == (5.0, 1000.0, 2000.0)


@pytest.mark.parametrize(
    ("model", "kept", "left"),
    [(DiffusionTensor, spread(1500, 30, 70), 2500.0), (DiffusionKurtosis, spread(3000, 30, 80), 5000.0)],
    ids=["tensor", "kurtosis"],
)
def test_a_shell_at_the_limit_of_a_model_is_used_as_a_whole(model: type, kept: list[float], left: float) -> None:
    protocol = series([0.0] * 3, [1000.0] * 30, kept, [left] * 30)
    used, _ = model().adapt(protocol)
    assert used.b_value == protocol.b_value[:-30]
    assert model().caution(protocol) is None


def test_ivim_takes_b_values_that_scatter_about_its_limits() -> None:
    for b_value in (195.0, 205.0):
        protocol = series([0.0], [100.0] * 6, [b_value] * 6, [800.0] * 6)
        used, _ = IntravoxelIncoherentMotion().adapt(protocol)
        IntravoxelIncoherentMotion().check(used)
        assert b_value in {round(value) for value in used.b_value}


def test_references_above_the_threshold_serve_everywhere() -> None:
    protocol = series(spread(60, 7, 4), spread(1000, 45, 5), spread(2000, 45, 10))
    assert refusal(protocol) is None
    assert ShellFits(protocol).degrees[0] == 0
    assert np.trace(protocol.angular_fit()[:7, :7]) == pytest.approx(1)
