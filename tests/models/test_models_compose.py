"""What holds for every composition: derivatives, bundles, directions, protocols."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.models.activeax import ActiveAx
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.compartments import PARALLEL_DIFFUSIVITY, Ball, Stick, Watson
from qmri_bidsapp.models.compose import Composition
from qmri_bidsapp.models.directions import angles_of, unit_vector
from qmri_bidsapp.models.noddi import Noddi
from qmri_bidsapp.models.zcd import ZeppelinCylinderDot


class BallAndStick(Composition):
    name = "ballstick"
    title = "Ball and stick"
    reference = "Behrens et al. 2003"
    compartments = (Stick(), Ball(PARALLEL_DIFFUSIVITY))


MODELS = {cls.name: cls for cls in (BallAndStick, Noddi, ActiveAx, ZeppelinCylinderDot)}


def directions(n: int, seed: int = 0) -> tuple[tuple[float, ...], ...]:
    vectors = np.random.default_rng(seed).standard_normal((n, 3))
    return tuple(map(tuple, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)))


def protocol() -> Diffusion:
    """Two shells and two pulse timings, shuffled."""
    order = np.random.default_rng(2).permutation(50)
    b_value = np.r_[np.zeros(2), np.full(24, 1000.0), np.full(24, 2800.0)]
    direction = np.r_[np.zeros((2, 3)), np.array(directions(48))]
    large_delta = np.where(np.arange(50) % 2, 0.03, 0.045)
    table = Diffusion(tuple(b_value), tuple(map(tuple, direction)), 0.02, tuple(large_delta))
    return table.select(order)


def theta(model: SignalModel, n: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """(n, n_parameters) over the middle nine tenths of the bounds, amplitude 10."""
    low, high = torch.tensor([p.bounds for p in model.parameters], dtype=torch.float64).T
    position = 0.05 + 0.9 * torch.rand((n, len(low)), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    values = low + position * (high - low)
    values[:, 0] = 10.0
    return values.to(dtype)


@pytest.fixture(params=[(name, n) for name in MODELS for n in range(4)], ids=lambda p: f"{p[0]}-{p[1]}")
def model(request: pytest.FixtureRequest) -> Composition:
    name, n_bundles = request.param
    return MODELS[name].with_bundles(n_bundles)()


def test_jacobian_agrees_with_automatic_differentiation(model: Composition) -> None:
    values = theta(model, 12).reshape(3, 4, -1)
    closed = model.jacobian(values, protocol())
    automatic = SignalModel.jacobian(model, values, protocol())
    assert closed.shape == (3, 4, 50, len(model.parameters))
    torch.testing.assert_close(closed, automatic, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(closed[..., 0] * values[..., :1], model.signal(values, protocol()))


def test_single_precision_is_close(model: Composition) -> None:
    values = theta(model, 30)
    scale = torch.tensor([p.scale for p in model.parameters], dtype=torch.float64)
    for function, unit in ((model.signal, torch.ones(1)), (model.jacobian, scale)):
        single = function(values.float(), protocol())
        assert single.dtype == torch.float32
        torch.testing.assert_close(
            single * unit, function(values, protocol()) * unit, rtol=0, atol=5e-4, check_dtype=False
        )


@pytest.mark.parametrize("cls", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_bundles_are_a_mixture_of_single_fibres(cls: type[Composition], n: int) -> None:
    model = cls.with_bundles(n)()
    values = theta(model, 5)
    single = type(model).with_bundles(1)()
    n_tissue = len(single.parameters) - 3
    shares = values[:, 1 + n_tissue : n_tissue + n]
    fractions = [shares[:, 0], (1 - shares[:, 0]) * shares[:, 1], (1 - shares).prod(-1)] if n == 3 else []
    fractions = fractions or ([shares[:, 0], 1 - shares[:, 0]] if n == 2 else [torch.ones(5, dtype=torch.float64)])
    expected = torch.zeros(5, 50, dtype=torch.float64)
    for k, fraction in enumerate(fractions):
        angles = values[:, n_tissue + n + 2 * k : n_tissue + n + 2 * k + 2]
        alone = torch.cat([values[:, : 1 + n_tissue], angles], dim=-1)
        expected += fraction[:, None] * single.signal(alone, protocol())
        torch.testing.assert_close(model.direction(values)[:, k], unit_vector(angles))
    torch.testing.assert_close(model.signal(values, protocol()), expected)
    if n > 1:
        torch.testing.assert_close(model.derive(values)[:, 1 - n :], torch.stack(fractions[1:], dim=-1))


@pytest.mark.parametrize("cls", MODELS.values(), ids=MODELS)
def test_no_bundle_is_the_mean_over_all_directions(cls: type[Composition]) -> None:
    """Gauss's rule in the polar angle, equal steps in azimuth."""
    model, single = cls.with_bundles(0)(), cls()
    values = theta(model, 4)
    cosine, weight = np.polynomial.legendre.leggauss(24)
    polar, azimuth = np.meshgrid(np.rad2deg(np.arccos(cosine)), np.arange(48) * 7.5, indexing="ij")
    angles = torch.tensor(np.stack([polar.ravel(), azimuth.ravel()], axis=-1))
    tissue = [values[:, i] for i in range(1, values.shape[1])]
    if cls is Noddi:
        tissue.append(torch.ones(4, dtype=torch.float64))
    everywhere = torch.stack([values[:, 0], *tissue], dim=-1)[:, None].expand(-1, len(angles), -1)
    signal = single.signal(torch.cat([everywhere, angles.expand(4, -1, -1)], dim=-1), protocol())
    mean = (signal * torch.tensor(np.repeat(weight, 48) / 96)[:, None]).sum(1)
    torch.testing.assert_close(model.signal(values, protocol()), mean, rtol=1e-5, atol=1e-5)
    assert model.direction(values).shape == (4, 0, 3)


def test_bundles_are_reported_by_descending_fraction(model: Composition) -> None:
    values = theta(model, 20)
    ordered = model.canonical(values)
    torch.testing.assert_close(model.signal(ordered, protocol()), model.signal(values, protocol()))
    torch.testing.assert_close(model.canonical(ordered), ordered)
    if model.n_bundles > 1:
        first = ordered[:, len(model.parameters) - 3 * model.n_bundles + 1].unsqueeze(-1)
        fractions = torch.cat([first, model.derive(ordered)[:, 1 - model.n_bundles :]], dim=-1)
        assert (fractions.diff(dim=-1) <= 0).all()
        alone = ordered.clone()
        alone[:, len(model.parameters) - 3 * model.n_bundles + 1] = 1.0
        assert model.canonical(alone).isfinite().all()


def test_dispersion_is_no_parameter_without_a_direction() -> None:
    assert [p.name for p in Noddi.with_bundles(0).parameters] == ["s0", "fwf", "ndi"]
    assert [p.name for p in BallAndStick.with_bundles(0).parameters] == [p.name for p in BallAndStick.parameters[:-2]]


def test_ball_and_stick_in_closed_form() -> None:
    acquisition = protocol()
    values = torch.tensor([2.0, 0.6, 1.4e-3, 70.0, 25.0], dtype=torch.float64)
    b, g = np.array(acquisition.b_value), np.array(acquisition.direction)
    x = g @ BallAndStick().direction(values)[0].numpy()
    expected = 2 * (0.6 * np.exp(-b * 1.4e-3 * x**2) + 0.4 * np.exp(-b * 1.4e-3))
    np.testing.assert_allclose(BallAndStick().signal(values, acquisition), expected, atol=4e-6)


def test_parameters_of_a_composition() -> None:
    assert [p.name for p in ActiveAx.parameters] == [
        *("s0", "csf_fraction", "dot_share", "intra_share", "diameter", "theta", "phi")
    ]
    assert [p.name for p in ActiveAx.derived] == ["dot_fraction", "intra_fraction", "extra_fraction"]
    assert [p.name for p in ZeppelinCylinderDot.with_bundles(2).parameters] == [
        *("s0", "dot_fraction", "intra_share", "parallel_diffusivity", "diameter", "perpendicular_diffusivity"),
        *("bundle1_fraction", "theta1", "phi1", "theta2", "phi2"),
    ]
    values = theta(ActiveAx(), 9)
    fractions = torch.cat([values[:, 1:2], ActiveAx().derive(values)], dim=-1)
    torch.testing.assert_close(fractions.sum(-1), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(fractions[:, 2], (1 - values[:, 1]) * (1 - values[:, 2]) * values[:, 3])


def test_the_edges_of_parameter_space_are_finite(model: Composition) -> None:
    low, high = torch.tensor([p.bounds for p in model.parameters]).T
    corners = torch.where(torch.rand((200, len(low)), generator=torch.Generator().manual_seed(4)) < 0.5, low, high)
    corners[:, 0] = 1.0
    assert model.jacobian(corners, protocol()).isfinite().all()
    signal = model.signal(corners, protocol())
    assert signal.min() > -1e-5
    assert signal.max() < 1 + 1e-5


def test_angles_describe_axes() -> None:
    vectors = torch.tensor(directions(50), dtype=torch.float64)
    back = unit_vector(angles_of(vectors))
    torch.testing.assert_close(back, torch.where(vectors[:, 2:] < 0, -vectors, vectors))


def test_no_voxel_at_all(model: Composition) -> None:
    nothing = theta(model, 0)
    assert model.signal(nothing, protocol()).shape == (0, 50)
    assert model.jacobian(nothing, protocol()).shape == (0, 50, len(model.parameters))


class Renamed(Noddi):
    name = "renamed"


def test_pickles() -> None:
    assert Noddi.with_bundles(2).with_bundles(1) is Noddi
    for cls in (Noddi, Noddi.with_bundles(0), Noddi.with_bundles(2), Renamed, Renamed.with_bundles(3)):
        copy = pickle.loads(pickle.dumps(cls()))
        assert type(copy) is cls


def test_bad_compositions_are_refused() -> None:
    with pytest.raises(ValueError, match="distinct names"):
        type("Twice", (Composition,), {"compartments": (Stick(), Stick())})
    with pytest.raises(ValueError, match="with an orientation"):
        type("Round", (Composition,), {"compartments": (Ball(),)})
    other = replace(PARALLEL_DIFFUSIVITY, bounds=(0.0, 2e-3))
    with pytest.raises(ValueError, match="two different parameters named parallel_diffusivity"):
        type("Clash", (Composition,), {"compartments": (Stick(), Ball(other))})
    with pytest.raises(ValueError, match="needs 1 shares"):
        type("Shares", (Composition,), {"compartments": (Ball(), Watson(Stick())), "shares": Noddi.shares})
    with pytest.raises(ValueError, match="0 to 3 bundles"):
        Noddi.with_bundles(4)


def table(*shells: tuple[float, int]) -> Diffusion:
    b_value = tuple(b for b, n in shells for _ in range(n))
    return Diffusion(b_value, directions(len(b_value)))


@pytest.mark.parametrize(
    ("acquisition", "message"),
    [
        (table((0, 4), (1000, 20)), r"at least 6 directions on each of two shells.*got b = 0 and 20 at b = 1000"),
        (table((0, 4), (1000, 60), (2000, 3)), "3 at b = 2000"),
        (table((1000, 30), (2000, 30)), "needs b = 0 .* got 30 at b = 1000"),
        (replace(table((0, 1), (1000, 30), (2000, 30)), direction=(directions(1)) * 61), "1 at b = 1000, 1 at"),
        (table((0, 2), (1000, 3)), "at least 6 measurements"),
    ],
    ids=["one-shell", "small-shell", "no-b0", "one-direction", "few"],
)
def test_unfit_protocols_are_refused(acquisition: Diffusion, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        Noddi().check(acquisition)


def test_shells_or_many_b_values_will_do() -> None:
    assert Noddi().check(table((0, 1), (700, 12), (2000, 12))) is None
    assert Noddi().check(table((0, 1), *((float(b), 2) for b in range(500, 4500, 500)))) is None


@pytest.mark.parametrize("name", ["activeax", "zcd"])
def test_pulse_timings_are_asked_for(name: str) -> None:
    acquisition = table((0, 1), (1000, 20), (2000, 20))
    model = MODELS[name]()
    with pytest.raises(ProtocolError, match=f"Model {name} needs duration.*SmallDelta and BigDelta .s. missing"):
        model.check(acquisition)
    with pytest.raises(ProtocolError, match="unknown: BigDelta"):
        model.check(replace(acquisition, small_delta=0.01))
    with pytest.raises(ProtocolError, match="pulses overlap"):
        model.check(replace(acquisition, small_delta=0.03, large_delta=0.01))
    model.check(replace(acquisition, small_delta=0.01, large_delta=0.03))
    model.check(protocol())


def test_timing_per_volume_must_fit_the_series() -> None:
    with pytest.raises(ProtocolError, match="41 b-values but 2 values of SmallDelta"):
        replace(table((0, 1), (1000, 20), (2000, 20)), small_delta=(0.01, 0.02))
