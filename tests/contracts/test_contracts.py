"""What every registered model and estimator must do."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import combinations_with_replacement

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
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.trained import TrainedEstimator
from qmri_bidsapp.evaluation.standards import even_directions
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.registry import get_estimator, get_model, load_estimators, load_models
from qmri_bidsapp.testing import ESTIMATOR_CHECKS, MODEL_CHECKS, EstimatorCase, ModelCase
from qmri_bidsapp.uncertainty.certificate import certify
from qmri_bidsapp.uncertainty.inverse import Trust
from qmri_bidsapp.uncertainty.moderation import moderate
from qmri_bidsapp.uncertainty.simulation import simulate_pairs

MODELS = sorted(load_models())
PAIRS = [(m, e) for m in MODELS for e, cls in sorted(load_estimators().items()) if cls.supports(get_model(m))]


def directions(n: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def protocol(model: SignalModel) -> Acquisition:
    """A protocol that identifies the model well."""
    own = {
        "ivim": SphericalMean((0.0, 10, 20, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800, 1000), (32,) * 14),
        "kurtosis": Diffusion(
            (0.0,) * 6 + (1000.0,) * 30 + (2000.0,) * 60,
            ((0.0, 0.0, 0.0),) * 6 + tuple(map(tuple, directions(90))),
        ),
        "noddi": Diffusion(
            (0.0,) * 6 + (700.0,) * 32 + (2000.0,) * 64,
            ((0.0, 0.0, 0.0),) * 6 + tuple(map(tuple, directions(96))),
        ),
        "mtsat": SpoiledGradientEcho((3, 6, 6, 10, 15, 20) * 2, (0.028,) * 12, ((False,) * 3 + (True,) * 3) * 2),
    }
    if model.name in own:
        return own[model.name]
    if model.name in ("activeax", "zcd"):
        # Gradients of 300 mT/m; of several timings, so that cylinders and their surroundings cannot be exchanged.
        shells = ((0.0, 0.0056, 0.0121), (2067.0, 0.0056, 0.0121), (5683.0, 0.0056, 0.03), (11743.0, 0.0056, 0.06))
        table = np.repeat((*shells, (9516.0, 0.0105, 0.0169)), (6, 40, 40, 40, 40), axis=0).T
        axes = ((0.0, 0.0, 0.0),) * 6 + even_directions(40) * 4
        return Diffusion(tuple(table[0]), axes, tuple(table[1]), tuple(table[2]))
    table = {
        SpoiledGradientEcho: SpoiledGradientEcho((2, 3, 5, 8, 12, 16, 20, 25), (0.015,) * 8),
        InversionRecovery: InversionRecovery((0.05, 0.2, 0.4, 0.7, 1.1, 1.6, 2.3, 3.2, 5.0)),
        T2Preparation: T2Preparation((0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5)),
        MultiEcho: MultiEcho(tuple(0.01 * (i + 1) for i in range(16))),
        SphericalMean: SphericalMean((0.0, 700.0, 1500.0, 2500.0, 4000.0), (12, 32, 32, 32, 32)),
        Diffusion: Diffusion((0.0,) * 4 + (1000.0,) * 30, ((0.0, 0.0, 0.0),) * 4 + tuple(map(tuple, directions(30)))),
    }
    return table[model.acquisition_type]


def parameters(model: SignalModel, n: int, seed: int = 0) -> np.ndarray:
    """(n, n_parameters) in the middle of the plausible range, amplitude 100."""
    rng = np.random.default_rng(seed)
    ranges = {
        "inversion_factor": (1.7, 2.0),
        "t1": (0.4, 2.5),
        "mtsat": (0.5, 4.0),
        "t2": (0.03, 0.15),
        "offset": (0.02, 0.2),
        "t2star": (0.02, 0.08),
        "intra_fraction": (0.2, 0.8),
        "diffusivity": (0.8e-3, 2.4e-3),
        "perfusion_fraction": (0.1, 0.3),
        # Closer to the diffusivity the two decays merge, and their standard deviations are not those of the bound.
        "pseudodiffusivity": (0.015, 0.05),
        "fwf": (0.05, 0.4),
        "ndi": (0.3, 0.7),
        "odi": (0.1, 0.5),
        "csf_fraction": (0.05, 0.3),
        "dot_fraction": (0.05, 0.2),
        "dot_share": (0.05, 0.2),
        "intra_share": (0.4, 0.7),
        "parallel_diffusivity": (1.2e-3, 2.2e-3),
        "diameter": (4e-3, 8e-3),
        "perpendicular_diffusivity": (0.4e-3, 0.9e-3),
        "theta": (20.0, 70.0),
        "phi": (-150.0, 150.0),
    }
    columns = [np.full(n, 100.0)]
    if model.name in ("tensor", "kurtosis"):
        root = rng.normal(0, 0.6e-3**0.5 * 0.5, (2, n, 3, 3))
        compartments = root @ root.transpose(0, 1, 3, 2) + 0.4e-3 * np.eye(3)
        tensor = compartments.mean(axis=0) if model.name == "kurtosis" else compartments[0]
        columns += [tensor[:, i, j] for i, j in ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2))]
    if model.name == "kurtosis":
        # Two Gaussian compartments of equal size: V(g) is three times the variance of their diffusivities.
        half = (compartments[0] - compartments[1]) / 2
        columns += [
            half[:, i, j] * half[:, k, m] + half[:, i, k] * half[:, j, m] + half[:, i, m] * half[:, j, k]
            for i, j, k, m in combinations_with_replacement(range(3), 4)
        ]
    elif model.name != "tensor":
        columns += [rng.uniform(*ranges[p.name], n) for p in model.parameters[1:]]
    return np.stack(columns, axis=1)


def covariates(model: SignalModel, n: int, seed: int = 0) -> np.ndarray:
    """(n, n_covariates) around the neutral values."""
    scale = np.array([p.scale for p in model.covariates])
    return scale * np.random.default_rng(seed + 2).uniform(0.8, 1.2, (n, len(scale)))


@cache
def tissue(model_name: str, n: int = 500) -> ModelCase:
    """A model, its protocol and n voxels that the protocol identifies well."""
    model = get_model(model_name)
    return ModelCase(model, protocol(model), parameters(model, n), covariates(model, n))


def number(model: SignalModel, n: int) -> int:
    """Number of voxels for a test: fewer for opt-in models, whose fits take far longer."""
    return n // 10 if model.opt_in else n


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("check_part", MODEL_CHECKS, ids=lambda part: part.__name__)
def test_model(name: str, check_part: Callable[[ModelCase], None]) -> None:
    check_part(tissue(name))


@cache
def fitted(model_name: str, estimator_name: str, device: str = "cpu") -> Estimator:
    """An estimator of the model's protocol; learned ones learn for a moment only."""
    model, kind = get_model(model_name), get_estimator(estimator_name)
    make = kind.brief if issubclass(kind, TrainedEstimator) else kind
    return make(model, device=device).fit(protocol(model))


def in_reasonable_time(pair: tuple[str, str], *, certified: bool = False) -> object:
    """Leave to `make test-all` what takes longest: opt-in models, and sums over four axes."""
    opt_in = get_model(pair[0]).opt_in and (pair[1] != "nlls" or certified)
    return pytest.param(*pair, marks=pytest.mark.slow) if opt_in or pair == ("ivim", "grid") else pair


@pytest.mark.parametrize(("model_name", "estimator_name"), [*map(in_reasonable_time, PAIRS)])
@pytest.mark.parametrize("check_part", ESTIMATOR_CHECKS, ids=lambda part: part.__name__)
def test_estimator(model_name: str, estimator_name: str, check_part: Callable[[EstimatorCase], None]) -> None:
    estimator = fitted(model_name, estimator_name)
    check_part(EstimatorCase(estimator, tissue(model_name, number(estimator.model, 500))))


@pytest.mark.parametrize(("model_name", "estimator_name"), [in_reasonable_time(pair, certified=True) for pair in PAIRS])
def test_can_be_certified(model_name: str, estimator_name: str) -> None:
    model, estimator = get_model(model_name), fitted(model_name, estimator_name)
    noise = Noise("gaussian", (50.0, 50.0))
    if estimator.is_spatial:
        with pytest.raises(UsageError, match="works on images"):
            certify(estimator, protocol(model), noise=noise)
        return
    # Slow fits are simulated less often. Of 200 voxels a range is uncertain by itself.
    is_slow = estimator_name == "mix" or (model.opt_in and not isinstance(estimator, TrainedEstimator))
    n = 200 if is_slow else 1500
    options = {"noise_is_known": True, "covariates_are_known": True}
    certificate = certify(estimator, protocol(model), noise=noise, n=n, **options)
    assert len(certificate.pairs) + certificate.pairs.n_failed == n
    json.dumps(certificate.summary(), allow_nan=False)
    values = model.default_prior().draw(n, np.random.default_rng(1))
    new = simulate_pairs(estimator, protocol(model), values, noise, seed=1, **options)
    snr, known = np.exp(new.conditions[:, 0]), new.conditions[:, 1:]
    reading = certificate.reader.read(new.estimate, new.std, snr=snr, covariates=known)
    given = np.isin(reading.trust, (Trust.RANGE_GIVEN, Trust.WIDE))
    assert given.mean() > 0.95
    assert np.isfinite(reading.bias[given]).all()
    held = (new.truth >= reading.lower) & (new.truth <= reading.upper)
    assert (np.abs(held[given].mean(axis=0) - 0.9) < 0.05 + 4 * np.sqrt(0.09 / given.sum())).all()


@pytest.mark.parametrize(("model_name", "estimator_name"), [*map(in_reasonable_time, PAIRS)])
@pytest.mark.parametrize("known_noise", [False, True], ids=["residual-noise", "known-noise"])
def test_standard_deviation_matches_the_empirical_one(model_name: str, estimator_name: str, known_noise: bool) -> None:
    """Within 10 %, and 95 % intervals cover 93 to 97 %, at high SNR, where the Cramer-Rao bound applies.

    Where residuals estimate the noise, those of the whole series do.
    """
    model = get_model(model_name)
    estimator = fitted(model_name, estimator_name)
    if isinstance(estimator, TrainedEstimator):
        pytest.skip(
            "its standard deviation is that of the posterior; see test_estimators_mlp, test_estimators_error_head"
        )
    acquisition = protocol(model)
    n_free = acquisition.n_measurements - len(model.parameters)
    if not known_noise and not estimator.std_from_residuals and n_free < 6:
        pytest.skip("too few residuals to estimate the noise of a single voxel")
    middle, known = parameters(model, 1, seed=5), covariates(model, 1, seed=5)
    theta = ModelCase(model, acquisition, middle, known).columns(1)
    clean = model.signal(theta, acquisition).numpy()
    # As many as a few seconds allow.
    n = 1_500 if model.opt_in or estimator_name == "mix" else 5_000
    noise = 0.005 * clean.max()
    averages = np.sqrt(np.array(acquisition.n_averages))
    signal = clean + noise / averages * np.random.default_rng(8).standard_normal((n, acquisition.n_measurements))
    maps = estimator.predict(
        signal,
        noise_std=np.full(n, noise) if known_noise else None,
        covariates=np.repeat(known, n, axis=0),
    )
    assert (maps.variance is not None) == estimator.std_from_residuals
    maps = moderate(maps, model, acquisition)
    truth = np.concatenate([middle, model.derive(theta).numpy()], axis=1)
    empirical = maps.estimate.std(axis=0)
    stated = np.sqrt(np.nanmean(maps.std.astype(float) ** 2, axis=0))
    if estimator.has_posterior and not known_noise:
        # Of unknown noise the posterior is Student's t, whose variance is larger than that of the estimate.
        stated *= np.sqrt((n_free - 2) / n_free)
    np.testing.assert_allclose(stated, empirical, rtol=0.1)
    if known_noise or estimator.std_from_residuals:
        covered = np.abs(maps.estimate - truth) <= 1.96 * maps.std
        assert np.all((covered.mean(axis=0) > 0.93) & (covered.mean(axis=0) < 0.97))
