from __future__ import annotations

import json

import numpy as np
import pytest

from qmri_bidsapp.core.acquisition import (
    Acquisition,
    Diffusion,
    InversionRecovery,
    MultiEcho,
    SphericalMean,
    SpoiledGradientEcho,
    T2Preparation,
)
from qmri_bidsapp.errors import ProtocolError

AXES = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
PROTOCOLS = {
    "inversion-recovery": InversionRecovery((0.1, 0.5, 2.0)),
    "multi-echo": MultiEcho((0.01, 0.02)),
    "t2-preparation": T2Preparation((0.0, 0.03, 0.06)),
    "spoiled-gradient-echo": SpoiledGradientEcho((6.0, 20.0), (0.028, 0.018), (True, False)),
    "diffusion": Diffusion((0.0, 1000.0, 995.0), ((0.0, 0.0, 0.0), *AXES[:2]), small_delta=0.01),
    "spherical-mean": SphericalMean((0.0, 1000.0), (1, 30)),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_survives_json_and_is_its_own_identity(name: str) -> None:
    protocol = PROTOCOLS[name]
    copy = Acquisition.from_dict(json.loads(json.dumps(protocol.to_dict())))
    assert copy == protocol
    assert hash(copy) == hash(protocol)
    assert len(copy.n_averages) == copy.n_measurements


def test_unknown_type_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"Unknown acquisition type 'Spiral'.*MultiEcho"):
        Acquisition.from_dict({"type": "Spiral"})


@pytest.mark.parametrize("time", [0.0, -0.1, float("nan"), float("inf")])
def test_times_must_be_positive(time: float) -> None:
    with pytest.raises(ProtocolError, match="InversionTime"):
        InversionRecovery((0.1, time))
    with pytest.raises(ProtocolError, match="EchoTime"):
        MultiEcho((0.1, time))


def test_steady_states_are_checked() -> None:
    assert SpoiledGradientEcho((5, 20), (0.01, 0.01)).mt_pulse == (False, False)
    with pytest.raises(ProtocolError, match="2 flip angles, 1 repetition times and 2 MT states"):
        SpoiledGradientEcho((5, 20), (0.01,))
    with pytest.raises(ProtocolError, match="between 0 and 180 degrees, got 0"):
        SpoiledGradientEcho((0, 20), (0.01, 0.01))
    with pytest.raises(ProtocolError, match="radian"):
        SpoiledGradientEcho((0.05, 0.35), (0.01, 0.01))
    with pytest.raises(ProtocolError, match="milliseconds"):
        SpoiledGradientEcho((5, 20), (15, 15))


@pytest.mark.parametrize(("factor", "unit"), [(1e3, "milliseconds"), (1e6, "microseconds")])
def test_other_units_of_times_are_noticed(factor: float, unit: str) -> None:
    with pytest.raises(ProtocolError, match=unit):
        InversionRecovery((0.05 * factor, 0.4 * factor))
    with pytest.raises(ProtocolError, match=unit):
        MultiEcho((0.005 * factor, 0.03 * factor))


def of_table(factor: float, n_directions: int = 30) -> Diffusion:
    """Shells of 1000 and 3000 s/mm2, in another unit."""
    vectors = np.random.default_rng(0).standard_normal((n_directions, 3))
    rows = [(0.0, 0.0, 0.0), *map(tuple, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).tolist())]
    b_value = np.array([0.0, *[1000.0, 3000.0] * (n_directions // 2)]) * factor
    return Diffusion(tuple(b_value.tolist()), tuple(rows))


@pytest.mark.parametrize(
    ("acquisition", "doubt"),
    [
        (MultiEcho((0.4, 0.8, 1.6, 3.2)), "got 0.4 for the first echo, when no signal is left: is it in milliseconds"),
        (MultiEcho((5e-6, 3e-5)), "EchoTime must be in seconds, got 3e-05 at most: was it divided by 1000 twice"),
        (InversionRecovery((3.5e-4, 1.7e-3)), "InversionTime must be in seconds, got 0.0017 at most: was it divided"),
        (SpoiledGradientEcho((3.0, 15.0), (4.9, 4.9)), "got 4.9 with flip angles of at most 15 degrees"),
        (SpoiledGradientEcho((3.0, 15.0), (4.9e-6, 4.9e-6)), "got 4.9e-06 at most: was it divided by 1000 twice"),
        (SpoiledGradientEcho((0.1, 1.05), (0.0049, 0.0049)), "FlipAngle must be in degrees, got 1.05 at most with a"),
        (of_table(1e6), "b-values must be in s/mm2, got 3e+09: are they in s/m2"),
        (of_table(1e2), "b-values must be in s/mm2, got 300000: are they in s/cm2"),
        (of_table(1e-3), "b-values must be in s/mm2, got 3 at most in many directions: are they in ms/um2"),
    ],
    ids=["te-ms", "te-ks", "ti-ks", "tr-ms", "tr-ks", "radian", "s-m2", "s-cm2", "ms-um2"],
)
def test_implausible_values_are_named_with_the_likely_unit(acquisition: Acquisition, doubt: str) -> None:
    assert doubt in str(acquisition.doubt_about_units())


@pytest.mark.parametrize(
    "acquisition",
    [
        # Ultra-short and very long echoes, zero echo time, saturation in 2-D, post-mortem diffusion, low b only.
        MultiEcho((7e-5, 1e-3)),
        MultiEcho((0.03, 1.0, 3.0)),
        InversionRecovery((0.02, 0.1)),
        InversionRecovery((2.0, 15.0)),
        SpoiledGradientEcho((1.0, 3.0), (0.001, 0.001)),
        SpoiledGradientEcho((20.0, 90.0), (2.0, 2.0)),
        SpoiledGradientEcho((2.0, 10.0), (0.0022, 0.0022)),
        of_table(14.0),
        Diffusion((0.0, 5.0, 5.0), ((0.0,) * 3, AXES[0], AXES[1])),
        T2Preparation((0.0, 0.05)),
    ],
    ids=["ute", "csf", "short-t1", "long-t1", "zte", "saturation", "fast", "post-mortem", "b0-only", "prepared"],
)
def test_unusual_protocols_are_not_doubted(acquisition: Acquisition) -> None:
    assert acquisition.doubt_about_units() is None


def test_gradient_tables_are_checked() -> None:
    with pytest.raises(ProtocolError, match="2 b-values but 1 directions"):
        Diffusion((0.0, 1000.0), (AXES[0],))
    with pytest.raises(ProtocolError, match=r"volume 1 .*norm 0"):
        Diffusion((0.0, 1000.0), ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)))
    with pytest.raises(ProtocolError, match="not negative"):
        Diffusion((-1.0,), (AXES[0],))


def test_shells_gather_what_scanners_scatter() -> None:
    b_value = (0.0, 1005.0, 5.0, 2950.0, 995.0, 3010.0)
    protocol = Diffusion(b_value, (AXES[0],) * 6)
    assert [part.tolist() for part in protocol.shells()] == [[0, 2], [1, 4], [3, 5]]


def test_shells_may_be_told_apart_more_finely() -> None:
    protocol = Diffusion((0.0, 10.0, 20.0, 0.5, 20.5, 990.0, 1000.0), (AXES[0],) * 7)
    assert [part.tolist() for part in protocol.shells(1.0)] == [[0, 3], [1], [2, 4], [5, 6]]
    means, _ = SphericalMean.from_diffusion(protocol, 1.0)
    assert means == SphericalMean((0.0, 10.0, 20.25, 995.0), (2, 1, 2, 2))


def test_volumes_up_to_a_b_value_can_be_selected() -> None:
    protocol = Diffusion((0.0, 3000.0, 1000.0), ((0.0, 0.0, 0.0), *AXES[:2]), small_delta=0.01)
    kept, matrix = protocol.up_to(1000.0)
    assert kept == Diffusion((0.0, 1000.0), ((0.0, 0.0, 0.0), AXES[1]), small_delta=0.01)
    np.testing.assert_array_equal(np.array([[1.0, 2.0, 3.0]]) @ matrix, [[1.0, 3.0]])


def test_powder_average_is_the_mean_of_each_shell() -> None:
    protocol = Diffusion((0.0, 1005.0, 5.0, 2950.0, 995.0, 3010.0), (AXES[0],) * 6)
    means, matrix = SphericalMean.from_diffusion(protocol)
    assert means == SphericalMean((2.5, 1000.0, 2980.0), (2, 2, 2))
    signals = np.array([[10.0, 4.0, 12.0, 1.0, 6.0, 3.0]])
    np.testing.assert_allclose(signals @ matrix, [[11.0, 5.0, 2.0]])


def test_low_b_values_without_a_direction_are_zero() -> None:
    protocol = Diffusion((5.0, 10.0, 1000.0), ((0.0, 0.0, 0.0), *AXES[:2]))
    np.testing.assert_array_equal(protocol.effective_b_value, [0.0, 10.0, 1000.0])
    assert SphericalMean.from_diffusion(protocol)[0] == SphericalMean((5.0, 1000.0), (2, 1))


@pytest.mark.parametrize(
    ("name", "summary", "rows"),
    [
        (
            "inversion-recovery",
            "3 inversion times, 100 to 2000 ms",
            [("Inversion times", "100, 500, 2000 ms"), ("Polarity", "not known, magnitude")],
        ),
        ("multi-echo", "2 echoes, 10 to 20 ms", [("Echo times", "10, 20 ms")]),
        ("t2-preparation", "3 preparation times, 0 to 60 ms", [("Preparation times", "0, 30, 60 ms")]),
        (
            "spoiled-gradient-echo",
            "2 images, flip angles 6, 20 degree, the last 1 with MT pulse",
            [("Flip angles", "6, 20 degree"), ("Repetition times", "28, 18 ms"), ("MT pulse", "on, off")],
        ),
        (
            "diffusion",
            "3 volumes (1 at b = 0, 2 at b = 998 (995 to 1000) s/mm²)",
            [("Volumes", "1 at b = 0 s/mm²; 2 at b = 998 (995 to 1000) s/mm²")],
        ),
        ("spherical-mean", "2 measurements", [("Measurements", "2")]),
    ],
    ids=list(PROTOCOLS),
)
def test_describes_itself_for_plans_and_reports(name: str, summary: str, rows: list[tuple[str, str]]) -> None:
    assert PROTOCOLS[name].summary() == summary
    assert PROTOCOLS[name].rows() == rows


@pytest.mark.parametrize(("n", "smaller"), [(24, 4), (64, 5)])
def test_powder_averages_of_uneven_directions(n: int, smaller: float) -> None:
    """A plain mean of few directions depends on the fibre; an average of even functions hardly does."""
    rng = np.random.default_rng(0)
    direction, fibres = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.standard_normal((2, 500, 3)))
    direction = direction[:n]
    protocol = Diffusion((0.0,) + (2000.0,) * n, ((0.0, 0.0, 0.0), *map(tuple, direction.tolist())))
    mean, matrix = SphericalMean.from_diffusion(protocol)
    signals = np.exp(-2 * 1.7 * (direction @ fibres.T) ** 2)
    weighted, plain = matrix[1:, 1] @ signals, signals.mean(axis=0)
    # sqrt(pi) erf(sqrt(x)) / (2 sqrt(x)) at x = 3.4.
    exact = 0.47622
    assert np.sqrt(np.mean((plain - exact) ** 2)) > smaller * np.sqrt(np.mean((weighted - exact) ** 2))
    assert matrix.sum(axis=0) == pytest.approx(1)
    assert mean.n_directions[1] == pytest.approx(1 / np.square(matrix[:, 1]).sum(), abs=0.5)
    assert n / 2 < mean.n_directions[1] <= n


def test_few_or_planar_directions_are_averaged_plainly() -> None:
    """Nothing can be known out of the plane of the directions."""
    angle = np.linspace(0, np.pi, 12, endpoint=False)
    planar = [(float(np.cos(a)), float(np.sin(a)), 0.0) for a in angle]
    for direction in (planar, [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]):
        n = len(direction)
        mean, matrix = SphericalMean.from_diffusion(Diffusion((1000.0,) * n, tuple(direction)))
        np.testing.assert_allclose(matrix[:, 0], 1 / n)
        assert mean.n_directions == (n,)


def test_angular_fit_is_a_projection_onto_each_shell() -> None:
    rng = np.random.default_rng(1)
    direction = rng.standard_normal((40, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    rows = ((0.0, 0.0, 0.0),) * 3 + tuple(map(tuple, direction.tolist()))
    protocol = Diffusion((0.0,) * 3 + (1000.0,) * 16 + (2000.0,) * 24, rows)
    fit = protocol.angular_fit()
    np.testing.assert_allclose(fit @ fit, fit, atol=1e-10)
    # The mean of b = 0; orders 2 and 4.
    assert np.trace(fit) == pytest.approx(1 + 6 + 15)
    tensor = direction @ np.diag([1.0, 2.0, 3.0])
    shape = np.r_[[5.0] * 3, (direction * tensor).sum(axis=1)]
    np.testing.assert_allclose(shape @ fit, shape, atol=1e-10)
    np.testing.assert_array_equal(Diffusion((1000.0,) * 4, rows[3:7]).angular_fit(), np.eye(4))
