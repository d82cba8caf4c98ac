"""The same maps on a GPU as on the CPU, to the rounding of single precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contracts.test_contracts import PAIRS, fitted, tissue

from qmri_bidsapp.estimators.learned.base import LearnedEstimator
from qmri_bidsapp.evaluation.truncation import ellipses, truncated
from qmri_bidsapp.preprocess.mppca import mppca
from qmri_bidsapp.preprocess.unringing import remove_ringing
from qmri_bidsapp.registry import get_estimator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use")


@pytest.mark.parametrize(("model_name", "estimator_name"), PAIRS)
def test_maps_agree_with_those_of_the_cpu(model_name: str, estimator_name: str) -> None:
    """Where the data hardly determine a parameter, to a small part of its standard deviation."""
    case = tissue(model_name, 2000)
    signal = case.signals(2000, noise=1.0)
    if issubclass(get_estimator(estimator_name), LearnedEstimator):
        pytest.skip("chance differs between devices, and the training with it")
    maps = [
        fitted(model_name, estimator_name, device).predict(signal, noise_std=1.0, covariates=case.covariates)
        for device in ("cpu", "cuda:0")
    ]
    first, second = (item.estimate for item in maps)
    tolerance = 2e-3 * np.abs(first) + 0.05 * np.nan_to_num(maps[0].std) + 1e-6
    assert (np.abs(first - second) <= tolerance).mean() > 0.995
    assert (maps[0].status == maps[1].status).mean() > 0.995


def test_unringing_agrees_with_that_of_the_cpu() -> None:
    image = np.abs(truncated(ellipses(360, 2), 5)).astype(np.float32)[..., None]
    first, second = (remove_ringing(image, device=device) for device in ("cpu", "cuda:0"))
    assert (np.abs(first - second) <= 1e-3 * image.max()).mean() > 0.995


def test_denoising_agrees_with_that_of_the_cpu() -> None:
    rng = np.random.default_rng(0)
    signal = rng.uniform(50, 100, (10, 10, 10, 1)) * np.exp(-rng.uniform(0, 1, (1, 1, 1, 40)))
    series = (signal + rng.standard_normal((10, 10, 10, 40))).astype(np.float32)
    first, second = (mppca(series, np.ones(series.shape[:3], bool), device=device) for device in ("cpu", "cuda:0"))
    assert (np.abs(first.series - second.series) <= 0.01).mean() > 0.995
    np.testing.assert_allclose(second.noise_std, first.noise_std, rtol=1e-3)
