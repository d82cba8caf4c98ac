"""Polynomial regression, against closed forms, scikit-learn and the errors of the paper's network."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch
from sklearn.linear_model import BayesianRidge

from qmri_bidsapp.core.acquisition import MultiEcho
from qmri_bidsapp.core.prior import Uniform
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.estimators.learned.monomials import MAX_COMPONENTS, MAX_MONOMIALS, Monomials
from qmri_bidsapp.estimators.learned.polynomial import PolynomialRegression, evidence_regression
from qmri_bidsapp.estimators.learned.scaling import Scaling
from qmri_bidsapp.evaluation.standards import signals
from qmri_bidsapp.evaluation.table3 import table3
from qmri_bidsapp.models.smt import SphericalMeanTechnique
from qmri_bidsapp.registry import get_model

FIXED = Noise("gaussian", (25.0, 25.0))


@pytest.fixture(scope="module")
def trained() -> PolynomialRegression:
    return PolynomialRegression(SphericalMeanTechnique(), noise=FIXED, degree=6, n_combinations=2**16).fit(
        table3.PROTOCOL
    )


def test_errors_are_near_those_of_the_papers_network(trained):
    found, _ = table3.measure(
        table3.estimate(lambda signal: trained.predict(signal).estimate[:, 1:] / [1.0, 1e-3], table3.simulate(20))
    )
    paper = table3.PUBLISHED["Net-uniform-SNR25"]
    # An error below the exact posterior mean's (0.0628, 0.1048) would be noise.
    assert 0.06 < found.rmse[0] < 1.03 * paper.rmse[0]
    assert 0.10 < found.rmse[1] < 1.1 * paper.rmse[1]


def test_intervals_cover_the_truth(trained):
    rng = np.random.default_rng(1)
    theta = np.column_stack([np.full(20_000, 100.0), rng.random(20_000), 3e-3 * rng.random(20_000)])
    clean = signals(trained.model, theta, table3.PROTOCOL)
    noise = 4.0 / np.sqrt(table3.PROTOCOL.n_averages)
    maps = trained.predict(clean + noise * rng.standard_normal(clean.shape))
    covered = (np.abs(maps.estimate - theta) <= 1.96 * maps.std).mean(axis=0)
    assert np.all((covered > 0.93) & (covered < 0.97))
    assert (maps.std > 0).all()
    assert (maps.estimate[:, 1:] > 0).all()
    assert (maps.estimate[:, 1:] < np.float32([1, 3e-3])).all()


def test_noise_that_is_told_sets_the_spread():
    model = SphericalMeanTechnique()
    told = Noise("gaussian", (10.0, 50.0))
    estimator = PolynomialRegression(model, noise=told, degree=4, n_combinations=2**16).fit(table3.PROTOCOL)
    rng = np.random.default_rng(1)
    for snr in (12.0, 45.0):
        theta = np.insert(Uniform(model.parameters[1:]).draw(20_000, rng), 0, 100.0, axis=1)
        clean = signals(model, theta, table3.PROTOCOL)
        noisy = clean + 100 / snr * rng.standard_normal(clean.shape) / np.sqrt(table3.PROTOCOL.n_averages)
        maps = estimator.predict(noisy, noise_std=np.full(20_000, 100 / snr))
        covered = (np.abs(maps.estimate - theta)[:, 1:] <= 1.96 * maps.std[:, 1:]).mean(axis=0)
        assert np.all((covered > 0.92) & (covered < 0.98))
    assert (estimator.predict(noisy).std[:, 1] > maps.std[:, 1]).mean() > 0.6


@pytest.mark.parametrize("optimiser", ["exact", "sdca"])
def test_a_polynomial_and_its_spread_are_found(optimiser):
    """Features of a known cubic, and noise whose standard deviation is known."""
    estimator = PolynomialRegression(SphericalMeanTechnique(), n_combinations=2**16, degree=3, optimiser=optimiser)
    estimator._scaling = Scaling(torch.zeros(2), torch.ones(2), torch.zeros(2), torch.ones(2))

    def truth(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, 0] ** 3 - x[:, 0] * x[:, 1], x[:, 1]], dim=1)

    def spread(x: torch.Tensor) -> torch.Tensor:
        return 0.3 * (0.5 * x[:, 0] - 0.3 * x[:, 1]).exp()

    def examples(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = (2 * torch.rand(n, 2, generator=generator) - 1) @ torch.tensor([[2.0, 0.4], [0.0, 1.0]])
        return x, truth(x) + spread(x).unsqueeze(1) * torch.randn(n, 2, generator=generator)

    estimator._learn(examples, torch.Generator().manual_seed(0), None, None)
    x = torch.tensor([[0.5, -0.5], [1.0, 1.0], [-1.5, 0.2]])
    mean, std = estimator._regress(x)
    torch.testing.assert_close(mean[:, 0], truth(x)[:, 0], atol=0.04, rtol=0)
    torch.testing.assert_close(mean[:, 1], truth(x)[:, 1], atol=0.04, rtol=0)
    torch.testing.assert_close(std, spread(x).unsqueeze(1).expand(-1, 2), atol=0, rtol=0.06)


def test_evidence_is_that_of_scikit_learn():
    """Few examples of many useless features: the prior matters."""
    rng = np.random.default_rng(0)
    design = rng.standard_normal((40, 20))
    response = design[:, :3] @ [0.5, -0.3, 0.2] + rng.standard_normal(40)
    flat = {"alpha_1": 0, "alpha_2": 0, "lambda_1": 0, "lambda_2": 0}
    expected = BayesianRidge(fit_intercept=False, tol=1e-12, max_iter=1000, **flat).fit(design, response).coef_
    x, y = torch.tensor(design), torch.tensor(response).unsqueeze(1)
    found = evidence_regression(x.T @ x, x.T @ y, y.square().sum(0), 40).squeeze(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.linalg.norm(found) < 0.8 * np.linalg.norm(np.linalg.lstsq(design, response, rcond=None)[0])


def test_monomials_are_all_products_of_the_components():
    features = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monomials = Monomials.of(features, 3)
    components = (features @ monomials.basis).numpy()
    np.testing.assert_allclose(np.cov(components.T), np.eye(3), atol=1e-12)
    products = [
        np.prod(components[:, list(factors)], axis=1)
        for degree in range(4)
        for factors in combinations_with_replacement(range(3), degree)
    ]
    expected = np.stack(products, axis=1)
    expected /= np.sqrt((expected**2).mean(axis=0))
    np.testing.assert_allclose(monomials(features).numpy(), expected, atol=1e-12)
    # Beyond the training the components stay where they were.
    torch.testing.assert_close(monomials(1e3 * features[:1]), monomials(1e6 * features[:1]))


def test_saved_coefficients_give_the_same_maps(trained, tmp_path):
    trained.save(tmp_path / "w")
    again = PolynomialRegression(SphericalMeanTechnique(), weights=tmp_path / "w").fit(table3.PROTOCOL)
    signal = table3.simulate(2).reshape(-1, 5)
    first, second = trained.predict(signal), again.predict(signal)
    np.testing.assert_array_equal(first.estimate, second.estimate)
    np.testing.assert_array_equal(first.std, second.std)


def test_same_seed_same_coefficients():
    first, again, other = (
        PolynomialRegression.brief(SphericalMeanTechnique()).fit(table3.PROTOCOL, seed=seed)._mean for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_many_measurements_are_reduced_and_still_tell_t2():
    model, protocol = get_model("t2"), MultiEcho(tuple(0.003 * (i + 1) for i in range(100)))
    estimator = PolynomialRegression(model, n_combinations=2**14).fit(protocol)
    assert estimator._monomials.basis.shape == (102, MAX_COMPONENTS)
    assert len(estimator._mean) <= MAX_MONOMIALS
    assert estimator.notes_["validation"]["t2"]["relative_rmse"] < 0.06


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="at least 1, got 0"):
        PolynomialRegression(SphericalMeanTechnique(), degree=0)
    with pytest.raises(UsageError, match="polynomial has no optimiser 'adam'; known: exact, sdca"):
        PolynomialRegression(SphericalMeanTechnique(), optimiser="adam")
