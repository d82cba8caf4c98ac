"""As many bundles as directions: against simulated crossings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.estimators.likelihood.bundles import BundlesByVoxel
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.estimators.likelihood.varpro import VariableProjection
from qmri_bidsapp.models.compartments import PARALLEL_DIFFUSIVITY, Ball, Stick
from qmri_bidsapp.models.compose import Composition
from qmri_bidsapp.models.directions import angles_of, unit_vector
from qmri_bidsapp.models.noddi import Noddi
from qmri_bidsapp.models.smt import SphericalMeanTechnique


class BallAndStick(Composition):
    name = "ballstick"
    title = "Ball and stick"
    reference = "Behrens et al. 2003"
    compartments = (Stick(), Ball(PARALLEL_DIFFUSIVITY))


def protocol() -> Diffusion:
    vectors = np.random.default_rng(0).standard_normal((96, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Diffusion((0.0,) * 6 + (1000.0,) * 32 + (2500.0,) * 64, ((0.0, 0.0, 0.0),) * 6 + tuple(map(tuple, vectors)))


#: s0, fwf, ndi, odi; fractions and directions of the bundles, lowest polar angle first.
TISSUE = (100.0, 0.05, 0.6, 0.1)
FRACTIONS = {0: [], 1: [1.0], 2: [0.65, 0.35], 3: [0.5, 0.3, 0.2]}
ANGLES = np.array([[25.0, 40.0], [75.0, 150.0], [70.0, -110.0]])


def simulate(n_bundles: int, n: int, noise: float, seed: int = 0) -> np.ndarray:
    model = Noddi.with_bundles(n_bundles)()
    fractions = FRACTIONS[n_bundles]
    shares = [f / sum(fractions[i:]) for i, f in enumerate(fractions[:-1])]
    tissue = TISSUE if n_bundles else TISSUE[:3]
    theta = torch.tensor([*tissue, *shares, *ANGLES[:n_bundles].ravel()], dtype=torch.float64)
    clean = model.signal(theta, protocol()).numpy()
    return clean + noise * np.random.default_rng(seed).standard_normal((n, len(clean)))


def peaks(n_bundles: int, n: int, seed: int = 1) -> np.ndarray:
    """(n, 3, 3) true directions turned by some 5 degrees, all of one length."""
    found = np.full((n, 3, 3), np.nan)
    mu = unit_vector(torch.tensor(ANGLES[:n_bundles])).numpy()
    found[:, :n_bundles] = mu + 0.06 * np.random.default_rng(seed).standard_normal((n, n_bundles, 3))
    return found


def column(maps: ParameterMaps, name: str, *, std: bool = False) -> np.ndarray:
    index = [p.name for p in maps.parameters].index(name)
    return (maps.std if std else maps.estimate)[:, index]


@pytest.fixture(scope="module")
def estimator() -> BundlesByVoxel:
    return BundlesByVoxel(Noddi()).fit(protocol())


@pytest.mark.parametrize("n_bundles", [0, 1, 2, 3])
def test_recovery_and_standard_deviations(estimator: BundlesByVoxel, n_bundles: int) -> None:
    """Means within 3 % of the scale, standard deviations within 15 % of the empirical ones, at SNR 100.

    Both spreads are those of the voxels that state a standard deviation. A voxel on a bound states none: with three
    bundles one or two of 500 lose the weakest bundle, and which ones depends on the rounding of the processor.
    """
    n = 500
    maps = estimator.predict(simulate(n_bundles, n, noise=1.0), directions=peaks(n_bundles, n))
    assert (maps.status == Status.OK).mean() > 0.97
    names = ["fwf", "ndi"] + ["odi"] * (n_bundles > 0)
    expected = dict(zip(names, TISSUE[1:], strict=False))
    for k in range(n_bundles):
        expected |= {f"theta{k + 1}": ANGLES[k, 0], f"phi{k + 1}": ANGLES[k, 1]}
        if n_bundles > 1:
            expected[f"bundle{k + 1}_fraction"] = FRACTIONS[n_bundles][k]
    for name, truth in expected.items():
        values, std = column(maps, name), column(maps, name, std=True)
        scale = 60.0 if name[:3] in ("the", "phi") else 1.0
        assert abs(np.median(values) - truth) < 0.03 * scale, name
        is_stated = np.isfinite(std)
        assert is_stated.mean() > 0.97, name
        stated, empirical = np.sqrt((std[is_stated].astype(float) ** 2).mean()), values[is_stated].std()
        assert stated == pytest.approx(empirical, rel=0.15), name
    if n_bundles == 1:
        np.testing.assert_array_equal(column(maps, "bundle1_fraction"), 1.0)
        assert np.isnan(column(maps, "bundle1_fraction", std=True)).all()


def test_what_a_voxel_does_not_have_is_undefined(estimator: BundlesByVoxel) -> None:
    n = 5
    counts = np.repeat([0, 1, 2, 3], n)
    order = np.random.default_rng(0).permutation(4 * n)
    signals = np.concatenate([simulate(k, n, noise=1.0) for k in range(4)])[order]
    toward = np.concatenate([peaks(k, n) for k in range(4)])[order]
    maps = estimator.predict(signals, noise_std=1.0, directions=toward)
    assert maps.estimate.shape == (20, len(estimator.model.parameters) + len(estimator.model.derived))
    for k in (1, 2, 3):
        has = counts[order] >= k
        for name in (f"theta{k}", f"phi{k}", f"bundle{k}_fraction"):
            np.testing.assert_array_equal(np.isfinite(column(maps, name)), has, err_msg=name)
    np.testing.assert_array_equal(np.isfinite(column(maps, "odi")), counts[order] > 0)
    assert np.isfinite(column(maps, "ndi")).all()
    fractions = np.stack([column(maps, f"bundle{k}_fraction") for k in (1, 2, 3)])
    np.testing.assert_allclose(np.nansum(fractions, axis=0)[counts[order] > 0], 1.0, atol=1e-5)


def test_bad_voxels_are_flagged(estimator: BundlesByVoxel) -> None:
    signals = simulate(2, 4, noise=1.0)
    signals[1, 3], signals[2] = np.nan, 0.0
    maps = estimator.predict(signals, directions=peaks(2, 4))
    assert maps.status[[1, 2]].tolist() == [Status.INVALID_INPUT, Status.NO_SIGNAL]
    assert np.isnan(maps.estimate[[1, 2]]).all()
    assert np.isfinite(maps.estimate[[0, 3], :3]).all()


def test_fits_begin_close_to_the_minimum() -> None:
    """Fractions and tissue are estimated with known directions and unknown fractions."""
    fitted = NonLinearLeastSquares(Noddi.with_bundles(2)()).fit(protocol())
    toward = unit_vector(torch.tensor(ANGLES[:2]).float())
    start = fitted.search.starts(torch.tensor(simulate(2, 1, noise=0.0)).float(), toward.unsqueeze(0))[0, 0]
    assert start[4].item() == pytest.approx(0.65, abs=0.03)
    assert start[2].item() == pytest.approx(0.6, abs=0.06)
    torch.testing.assert_close(start[5:].reshape(2, 2), angles_of(toward), atol=1e-3, rtol=0)


def test_directions_are_needed_and_checked(estimator: BundlesByVoxel) -> None:
    with pytest.raises(ValueError, match=r"Directions must have shape \(2, 3, 3\), got None"):
        estimator.predict(simulate(1, 2, noise=1.0))
    with pytest.raises(ValueError, match=r"got \(2, 1, 3\)"):
        estimator.predict(simulate(1, 2, noise=1.0), directions=np.ones((2, 1, 3)))
    with pytest.raises(ValueError, match="2 bundles needs their directions"):
        NonLinearLeastSquares(Noddi.with_bundles(2)()).fit(protocol()).predict(simulate(2, 2, noise=1.0))


def test_any_composition_will_do() -> None:
    model = BallAndStick.with_bundles(2)()
    theta = torch.tensor([80.0, 0.6, 1.5e-3, 0.6, *ANGLES[:2].ravel()], dtype=torch.float64)
    signals = model.signal(theta, protocol()).numpy()[None]
    maps = BundlesByVoxel(BallAndStick()).fit(protocol()).predict(signals, directions=peaks(2, 1))
    found = [column(maps, name)[0] for name in ("stick_fraction", "bundle1_fraction", "theta2")]
    np.testing.assert_allclose(found, [0.6, 0.6, 75.0], rtol=1e-2)
    assert BundlesByVoxel.supports(BallAndStick())
    assert not BundlesByVoxel.supports(SphericalMeanTechnique())
    assert not VariableProjection.supports(BallAndStick())
