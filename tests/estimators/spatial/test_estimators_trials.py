"""Errors on virtual heads: against what was put in."""

from __future__ import annotations

import numpy as np
import pytest

from qmri_bidsapp.estimators.likelihood.varpro import VariableProjection
from qmri_bidsapp.estimators.spatial.trials import PROTOCOLS, SNR_SIGNAL, errors_of, estimate_with, simulate_trial
from qmri_bidsapp.estimators.spatial.virtual_heads import crop, label_phantom, structures_of
from qmri_bidsapp.models.relaxometry import SpinEchoT2

MODEL, ECHOES = SpinEchoT2(), PROTOCOLS["t2"]["6"]
HEADS = [crop(structures_of(label_phantom(shape))) for shape in ((30, 36, 30), (30, 36, 34))]


def test_protocols_are_those_of_the_paper() -> None:
    times = {name: protocol.inversion_time for name, protocol in PROTOCOLS["t1"].items()}
    assert {name: len(values) for name, values in times.items()} == {"23": 23, "25": 25, "31": 31}
    assert (times["31"][0], times["31"][-1], times["23"][-1], times["25"][-1]) == (0.139, 0.937, 0.893, 0.958)


def test_errors_are_those_that_were_put_in() -> None:
    trial = simulate_trial(MODEL, HEADS, ECHOES, 10, n_repetitions=2)
    truth = trial.truth[trial.brain].astype(float)
    errors = errors_of(np.stack([1.1 * truth, 1.3 * truth]), trial)
    assert errors.error == pytest.approx(0.2, abs=0.11)
    assert errors.bias == pytest.approx(0.2)
    assert errors.cv == pytest.approx(np.sqrt(0.02) / 1.2)
    assert errors_of(np.full((2, len(truth)), np.nan), trial).error == np.inf


def test_least_squares_finds_the_truth_without_noise_in_the_order_of_the_voxels() -> None:
    trial = simulate_trial(MODEL, HEADS, ECHOES, 1e6)
    found = estimate_with(VariableProjection(MODEL).fit(ECHOES), trial)
    np.testing.assert_allclose(found[0], trial.truth[trial.brain], rtol=1e-2)


def test_noise_is_relative_to_white_matter_and_the_tissue_depends_on_the_seed_alone() -> None:
    first, second = (simulate_trial(MODEL, HEADS, ECHOES, snr, n_repetitions=4) for snr in (10, 50))
    np.testing.assert_array_equal(first.truth, second.truth)
    spread = np.diff(first.signals, axis=0).std() / np.sqrt(2)
    assert spread == pytest.approx(SNR_SIGNAL / 10, rel=0.03)
    assert not np.array_equal(first.truth, simulate_trial(MODEL, HEADS, ECHOES, 10, seed=1).truth)
