"""Are as many typical voxels flagged as the level says, and others for the right reason?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.core.prior import Prior
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.errors import InputError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.learned.mlp import MultilayerPerceptron
from qmri_bidsapp.estimators.learned.training import Training
from qmri_bidsapp.evaluation.standards import shells, standard
from qmri_bidsapp.models.directions import even_directions
from qmri_bidsapp.models.rotation import real_harmonics
from qmri_bidsapp.registry import get_estimator, get_model
from qmri_bidsapp.uncertainty.certificate import Certificate, certify
from qmri_bidsapp.uncertainty.ood import Flags, OutOfDistribution, Reason, _share_as_extreme
from qmri_bidsapp.uncertainty.ood_directions import ShellFits, nominal_series
from qmri_bidsapp.uncertainty.ood_measures import Measures, Meter, measure
from qmri_bidsapp.uncertainty.simulation import SimulatedVoxels, simulate_voxels


def simulate(
    estimator: Estimator, protocol, noise: Noise, n: int, seed: int, prior: Prior | None = None
) -> SimulatedVoxels:
    values = (prior or estimator.model.default_prior()).draw(n, np.random.default_rng([seed, 1]))
    options = {"noise_is_known": True, "covariates_are_known": False, "by_volume": True}
    return simulate_voxels(estimator, protocol, values, noise, seed=seed, **options)


def fitted(name: str, kind: str):
    model = get_model(name)
    protocol, _ = model.adapt(standard(name))
    return get_estimator(kind)(model).fit(protocol), protocol


def network() -> tuple[Estimator, object]:
    protocol = standard("smt")
    training = Training(steps=600, batch_size=512)
    noise = Noise("gaussian", (5.0, 100.0))
    estimator = MultilayerPerceptron(get_model("smt"), noise=noise, training=training, n_combinations=2**14)
    return estimator.fit(protocol, seed=1), protocol


def known_of(estimator, protocol, snr: float, kind: str = "gaussian", n: int = 2**15) -> OutOfDistribution:
    voxels = simulate(estimator, protocol, Noise(kind, (snr / 4, snr * 4)), n, seed=21)
    is_uneven = any(p.is_scale for p in estimator.model.parameters[1:])
    return OutOfDistribution(measure(estimator, protocol, voxels), voxels.noise_std, is_uneven=is_uneven)


@pytest.mark.parametrize(
    ("name", "kind", "snr", "noise"),
    [
        ("smt", "nlls", 25.0, "gaussian"),
        ("smt", "mlp", 25.0, "gaussian"),
        ("noddi", "nlls", 25.0, "gaussian"),
        ("tensor", "wls", 25.0, "gaussian"),
        ("ivim", "varpro", 50.0, "gaussian"),
        ("t1", "nlls", 50.0, "rician"),
        ("t2", "varpro", 50.0, "rician"),
    ],
    ids=lambda value: str(value),
)
def test_as_many_typical_voxels_are_flagged_as_the_level_says(name, kind, snr, noise):
    estimator, protocol = network() if kind == "mlp" else fitted(name, kind)
    known = known_of(estimator, protocol, snr, noise, n=2**14 if name == "noddi" else 2**15)
    new = simulate(estimator, protocol, Noise(noise, (snr, snr)), 8000 if name == "noddi" else 16_000, seed=22)
    flags = known.flag(measure(estimator, protocol, new), new.noise_std)
    rates = {reason.name: (p <= 0.05).mean() for reason, p in flags.p_values.items()}
    # A parameter is at a bound or not: no part of the voxels in between can be flagged.
    assert rates.pop("BOUND") <= 0.06
    rates["all"] = (flags.reason > Reason.TYPICAL).mean()
    assert all(0.04 <= rate <= 0.06 for rate in rates.values()), rates
    expected = {"MISFIT", "DISTANCE", "OUTLIER", "all"}
    expected |= {"DIRECTIONS", "FLOOR"} if name in ("smt", "noddi", "tensor") else set()
    expected |= {"NETWORK"} if kind == "mlp" else set()
    assert set(rates) == expected


class Spherical:
    """Voxels of the spherical mean by least squares, whose series can be changed."""

    def __init__(self) -> None:
        self.estimator, self.protocol = fitted("smt", "nlls")
        self.series, self.matrix = nominal_series(self.estimator.model, self.protocol)
        self.known = known_of(self.estimator, self.protocol, 25.0, n=2**13)
        self.voxels = self.simulate(25.0)

    def simulate(self, snr: float) -> SimulatedVoxels:
        return simulate(self.estimator, self.protocol, Noise("gaussian", (snr, snr)), 1000, seed=13)

    def measure(self, series: np.ndarray) -> Measures:
        signals = series @ self.matrix
        maps = self.estimator.predict(signals, noise_std=self.voxels.noise_std)
        return Meter(self.estimator, self.protocol, self.series).measure(signals, maps, series=series)

    def flag(self, series: np.ndarray, factor: float = 1.0) -> Flags:
        return self.known.flag(self.measure(series), factor * self.voxels.noise_std)


@pytest.fixture(scope="module")
def spherical() -> Spherical:
    return Spherical()


def most_common(flags: Flags) -> tuple[str, float]:
    counts = flags.counts()
    name = max(counts, key=counts.__getitem__)
    return name, counts[name] / len(flags.reason)


def test_a_single_bad_volume_is_an_outlier(spherical):
    series = spherical.voxels.series.copy()
    series[:, 20] += 0.6
    assert most_common(spherical.flag(series)) == ("OUTLIER", pytest.approx(1, abs=0.05))


@pytest.mark.parametrize("factor", [0.5, 2.0], ids=["more", "less"])
def test_another_noise_is_seen_in_the_scatter_over_directions(spherical, factor):
    """The stated noise is half, or twice, the true one."""
    measures, noise_std = spherical.measure(spherical.simulate(25.0 * factor).series), spherical.voxels.noise_std
    name, part = most_common(spherical.known.flag(measures, noise_std))
    assert name == "DIRECTIONS"
    assert part > 0.8
    found = spherical.known.noise_in_use(measures, noise_std, np.mean) / noise_std
    np.testing.assert_allclose(found, min(1 / factor, 1.0), rtol=0.05)


@pytest.mark.parametrize("kind", ["gaussian", "rician"], ids=["floor", "no floor"])
def test_noise_of_the_other_kind_is_seen_in_low_signals(spherical, kind):
    """But not in denoised series: with less noise values are seldom negative anyway."""
    known = (
        spherical.known if kind == "gaussian" else known_of(spherical.estimator, spherical.protocol, 25.0, kind, 2**13)
    )
    voxels = spherical.simulate(8.0)
    real, imaginary = voxels.series, voxels.noise_std[:, None] * np.random.default_rng(0).standard_normal((1000, 140))
    magnitude = np.hypot(real, imaginary).astype(np.float32)
    usual, other = (real, magnitude) if kind == "gaussian" else (magnitude, np.maximum(real, 0))
    assert most_common(known.flag(spherical.measure(usual), voxels.noise_std)) == ("TYPICAL", pytest.approx(1, abs=0.1))
    measures = spherical.measure(other)
    counts = known.flag(measures, voxels.noise_std).counts()
    assert counts["FLOOR"] > max(300, *(n for name, n in counts.items() if name not in ("FLOOR", "TYPICAL")))
    relaxed = known.flag(measures, voxels.noise_std, less_is_fine=True)
    assert (relaxed.p_values[Reason.FLOOR] == 1).all()
    assert not (relaxed.reason == Reason.FLOOR).any()


def test_noise_in_use_is_right_at_every_signal_to_noise_ratio(spherical):
    for snr in (8.0, 25.0, 80.0):
        voxels = spherical.simulate(snr)
        measures = spherical.measure(voxels.series)
        found = spherical.known.noise_in_use(measures, voxels.noise_std, np.mean) / voxels.noise_std
        np.testing.assert_allclose(found, 1.0, rtol=0.02)


def test_a_signal_that_no_tissue_has_is_far_from_all(spherical):
    """The signal rises with the b-value."""
    signal = np.repeat(np.linspace(0.5, 1.0, 5), spherical.protocol.n_directions)
    series = spherical.voxels.series * 0 + signal + 0.02 * np.random.default_rng(0).standard_normal((1000, 140))
    flags = spherical.flag(series.astype(np.float32))
    assert (flags.p_values[Reason.DISTANCE] < 0.01).all()
    assert (flags.p_values[Reason.MISFIT] < 0.01).all()


def test_the_scale_of_the_signals_does_not_matter(spherical):
    first = spherical.flag(spherical.voxels.series)
    scaled = Spherical.measure(spherical, spherical.voxels.series)
    scaled = replace(
        scaled,
        size=300 * scaled.size,
        misfit=300**2 * scaled.misfit,
        directions=300**2 * scaled.directions,
        outlier=300 * scaled.outlier,
        others=300**2 * scaled.others,
    )
    second = spherical.known.flag(scaled, 300 * spherical.voxels.noise_std)
    np.testing.assert_allclose(first.p_value, second.p_value, atol=2e-3)


def test_without_usable_directions_the_other_scores_remain(spherical):
    """The series is not given, or each direction was measured several times."""
    voxels = spherical.voxels
    directions = (((0.0, 0.0, 0.0),) * 12, *((even_directions(8) * 4) for _ in range(4)))
    repeated = Diffusion(spherical.series.b_value, tuple(axis for part in directions for axis in part))
    for series, values in ((spherical.series, None), (None, voxels.series), (repeated, voxels.series)):
        meter = Meter(spherical.estimator, spherical.protocol, series)
        flags = spherical.known.flag(meter.measure(voxels.signals, voxels.maps, series=values), voxels.noise_std)
        assert np.isnan(flags.p_values[Reason.DIRECTIONS]).all()
        assert np.isnan(flags.p_values[Reason.FLOOR]).all()
        assert np.isnan(flags.p_values[Reason.OUTLIER]).all()
        assert np.isfinite(flags.p_value).all()


def test_a_voxel_without_an_estimate_or_noise_has_no_p_value(spherical):
    series, noise = spherical.voxels.series.copy(), spherical.voxels.noise_std.copy()
    series[3] = np.nan
    noise[5] = 0
    flags = spherical.known.flag(spherical.measure(series), noise)
    assert np.flatnonzero(np.isnan(flags.p_value)).tolist() == [3, 5]
    assert flags.reason[[3, 5]].tolist() == [Reason.NO_ESTIMATE] * 2
    np.testing.assert_array_equal(np.delete(flags.p_value, [3, 5]), np.delete(spherical.flag(series).p_value, [3, 5]))


def test_network_that_fits_worse_than_least_squares():
    """A network that was trained for next to nothing knows white matter only."""
    estimator, protocol = network()
    known = known_of(estimator, protocol, 25.0, n=2**13)
    voxels = simulate(estimator, protocol, Noise("gaussian", (25.0, 25.0)), 500, seed=14)
    estimate = voxels.maps.estimate.copy()
    estimate[:, 1] = 0.3 + 0.5 * (estimate[:, 1] < 0.5)
    nominal = nominal_series(estimator.model, protocol)
    meter = Meter(estimator, protocol, nominal[0])
    wrong = meter.measure(voxels.signals, replace(voxels.maps, estimate=estimate), series=voxels.series)
    flags = known.flag(wrong, voxels.noise_std)
    assert (flags.p_values[Reason.NETWORK] < 0.01).mean() > 0.8


def test_a_certificate_keeps_what_voxels_are_compared_with(tmp_path):
    estimator, protocol = fitted("t2", "varpro")
    certificate = certify(estimator, protocol, noise=Noise("rician", (50.0, 50.0)), n=2000)
    certificate.save(tmp_path / "one")
    loaded = Certificate.load(tmp_path / "one", estimator.model)
    new = simulate(estimator, protocol, Noise("rician", (50.0, 50.0)), 200, seed=15)
    measures = measure(estimator, protocol, new)
    first, second = (c.out_of_distribution.flag(measures, new.noise_std) for c in (certificate, loaded))
    np.testing.assert_array_equal(first.p_value, second.p_value)
    np.testing.assert_array_equal(first.reason, second.reason)


def test_a_score_that_some_simulated_voxels_lack_remains():
    """As of least squares that failed in a few of them."""
    estimator, protocol = fitted("t2", "varpro")
    voxels = simulate(estimator, protocol, Noise("rician", (12.5, 200.0)), 8000, seed=17)
    measures = measure(estimator, protocol, voxels)
    some = np.where(np.arange(8000) % 7 == 0, np.nan, measures.misfit).astype(np.float32)
    known = OutOfDistribution(replace(measures, network=some), voxels.noise_std)
    flags = known.flag(replace(measures, network=measures.misfit), voxels.noise_std)
    assert (flags.p_values[Reason.NETWORK] <= 0.05).mean() == pytest.approx(0.05, abs=0.01)
    assert np.isfinite(flags.p_value).all()


def test_too_few_voxels():
    estimator, protocol = fitted("t2", "varpro")
    with pytest.raises(InputError, match="at least"):
        known_of(estimator, protocol, 50.0, n=30)


@pytest.mark.parametrize("share", [1.0, 0.9, 0.5])
def test_p_values_are_ranks(share):
    rng = np.random.default_rng(0)
    known, values = np.sort(rng.standard_normal(400).round(1)), rng.standard_normal(100).round(1)
    above = np.array([(1 + (known >= value).sum()) / 401 / share for value in values])
    below = np.array([(1 + (known <= value).sum()) / 401 / (1 - share) if share < 1 else 1.0 for value in values])
    np.testing.assert_allclose(_share_as_extreme(known, values, share), np.minimum(np.minimum(above, below), 1))


def test_degrees_of_the_fits_follow_the_number_of_directions():
    assert ShellFits(shells(3, (1000.0, 6), (2000.0, 30), (3000.0, 64))).degrees == (0, 0, 4, 6)
    repeated = Diffusion((0.0,) * 3 + (1000.0,) * 30, ((0.0, 0.0, 0.0),) * 3 + even_directions(6) * 5)
    assert ShellFits(repeated).degrees == (0, 0)


def test_residuals_of_noise_have_a_chi_square_distribution_and_those_of_harmonics_vanish():
    series = shells(5, (1000.0, 30), (3000.0, 64))
    fits, rng = ShellFits(series), np.random.default_rng(0)
    assert fits.freedom == 5 - 1 + 30 - 15 + 64 - 28
    noise = rng.standard_normal((20_000, 99))
    squares, largest = fits.residuals(noise)
    np.testing.assert_allclose(
        np.quantile(squares, [0.1, 0.5, 0.9]), chi2.ppf([0.1, 0.5, 0.9], fits.freedom), rtol=0.02
    )
    # A studentised residual of a single volume has a variance of one; the largest of 99 is about 2.7.
    assert np.median(largest) == pytest.approx(2.7, abs=0.1)
    x, y, z = np.array(series.direction).T
    smooth = 1.0 + real_harmonics(np.arccos(z), np.arctan2(y, x), 4) @ rng.standard_normal(15)
    smooth[:5] = 1.0
    squares, _ = fits.residuals(smooth[None])
    assert squares[0] < 1e-20


def test_features_do_not_depend_on_how_tissue_is_turned():
    """Of a tensor the signal of which has next to nothing above degree four."""
    model, series = get_model("tensor"), shells(3, (1000.0, 60))
    tissue = np.diag([1.2e-3, 0.6e-3, 0.4e-3])
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((50, 3, 3)))[0]
    turned = axes @ tissue @ axes.transpose(0, 2, 1)
    elements = np.stack([turned[:, i, j] for i, j in ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2))], axis=1)
    signals = model.signal(torch.tensor(np.insert(elements, 0, 1.0, axis=1)), series).numpy()
    features = ShellFits(series).features(signals)
    assert features.shape == (50, 4)
    np.testing.assert_allclose(features, np.broadcast_to(features.mean(axis=0), features.shape), atol=2e-3)
    assert features[0, 2] > 0.1


def test_powder_average_of_a_nominal_series():
    """Whatever the fibres, and as closely as the directions are even."""
    model, protocol = get_model("smt"), standard("smt")
    series, matrix = nominal_series(model, protocol)
    estimator = get_estimator("nlls")(model).fit(protocol)
    voxels = simulate(estimator, protocol, Noise("gaussian", (1e6, 1e6)), 200, seed=16)
    expected = model.signal(voxels.theta, protocol).numpy()
    np.testing.assert_allclose(voxels.signals, expected, atol=0.01)
    np.testing.assert_allclose(matrix.sum(axis=0), 1)
    assert series.n_measurements == 140
    assert nominal_series(model, replace(protocol, n_directions=(1, 6, 6, 6, 6))) is None


def test_tissue_of_the_brain_is_not_far_from_a_wide_prior():
    """T1 over decades and any inversion: simulated voxels are thinly spread where brains are."""
    estimator, protocol = fitted("t1", "nlls")
    noise, rng = Noise("rician", (50.0, 50.0)), np.random.default_rng(3)
    values = np.column_stack([rng.uniform(1.8, 2.0, 3000), rng.uniform(0.8, 1.6, 3000)])
    options = {"noise_is_known": False, "covariates_are_known": False}
    voxels = simulate_voxels(estimator, protocol, values, noise, seed=3, **options)
    flags = certify(estimator, protocol, noise=noise).out_of_distribution.flag(
        measure(estimator, protocol, voxels), voxels.noise_std
    )
    assert (flags.reason == Reason.DISTANCE).mean() < 0.05
    assert (flags.reason > Reason.TYPICAL).mean() < 0.1
