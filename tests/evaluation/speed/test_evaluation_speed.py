"""Measuring speed: a fit of known length is measured right."""

from __future__ import annotations

import time

import numpy as np
import pytest

from qmri_bidsapp.evaluation.speed import speed


def draw(n_voxels: int) -> np.ndarray:
    return np.zeros((n_voxels, 3), dtype=np.float32)


def test_known_speed_without_the_first_call():
    calls = []

    def fit(signals):
        calls.append(len(signals))
        time.sleep(2e-4 * len(signals) + (0.2 if len(calls) == 1 else 0))

    found = speed.measure(fit, draw, 0.2)
    assert found.voxels_per_second == pytest.approx(5000, rel=0.1)
    assert 500 <= found.n_voxels <= 2000
    assert calls[-speed.REPETITIONS :] == [found.n_voxels] * speed.REPETITIONS


def test_best_repetition_counts():
    lengths = iter([0.0, 0.15, 0.12, 0.3])
    found = speed.measure(lambda _signals: time.sleep(next(lengths)), draw, 0.2)
    assert found.n_voxels / found.voxels_per_second == pytest.approx(0.12, rel=0.1)


def test_slow_fit_runs_once_after_the_warm_up():
    calls = []

    def fit(signals):
        calls.append(len(signals))
        time.sleep(0.1)

    assert speed.measure(fit, draw, 0.01).n_voxels == speed.FIRST
    assert calls == [speed.FIRST] * 2


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(speed, "MAX_BYTES", 12_000)
    assert speed.measure(lambda _signals: None, draw, 10.0).n_voxels == 1000
