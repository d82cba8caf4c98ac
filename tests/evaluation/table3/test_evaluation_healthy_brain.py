"""Simulated healthy brains: what goes in comes out of a fit, and partial volume is a mixture of signals."""

from __future__ import annotations

import numpy as np
import pytest

from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.evaluation.table3.healthy_brain import NEURITE_DISTRIBUTIONS, brain_signals
from qmri_bidsapp.evaluation.table3.table3 import PROTOCOL
from qmri_bidsapp.models.smt import SphericalMeanTechnique

MODEL = SphericalMeanTechnique()
N = 4000


def signals_of(**weights: float) -> np.ndarray:
    every = {name: np.full(N, weights.get(name, 0.0)) for name in NEURITE_DISTRIBUTIONS}
    return brain_signals(every, MODEL, PROTOCOL, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["gm", "wm"])
def test_fits_of_a_tissue_have_its_means_spread_and_correlation(name):
    found = NonLinearLeastSquares(MODEL).fit(PROTOCOL).predict(signals_of(**{name: 0.7})).estimate[:, 1:3]
    tissue = NEURITE_DISTRIBUTIONS[name]
    # Subjects differ by 1.3 %; the bounds cut off 2 % of grey matter's fractions.
    np.testing.assert_allclose(found.mean(0), tissue.mean, rtol=0.05)
    np.testing.assert_allclose(found.std(0), tissue.std, rtol=0.08)
    assert np.corrcoef(found.T)[0, 1] == pytest.approx(tissue.correlation, abs=0.05)


def test_fluid_is_free_water_and_mixes_as_signals_do():
    b_value = np.array(PROTOCOL.b_value)
    alone, mixed = signals_of(wm=1.0), signals_of(wm=1.0, csf=0.5)
    # The same tissue, for the same seed; without diffusion weighting the mean of tissue is one.
    water = np.exp(-b_value * NEURITE_DISTRIBUTIONS["csf"].mean[1])
    np.testing.assert_allclose(mixed[:, 0], 1, rtol=1e-12)
    difference = mixed * 1.5 - alone
    assert np.abs(difference / difference[:, :1] - water).max() < 0.03
