"""The experiments on virtual heads: against scenes and estimates whose answer is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from scipy.special import expit

from qmri_bidsapp.cli import tools
from qmri_bidsapp.cli.evaluate import relaxometry as evaluate_relaxometry
from qmri_bidsapp.estimators.likelihood.varpro import VariableProjection
from qmri_bidsapp.estimators.spatial.estimators import RecurrentInference
from qmri_bidsapp.estimators.spatial.trials import PROTOCOLS, draw_scene, measure, per_voxel
from qmri_bidsapp.estimators.spatial.virtual_heads import crop, label_phantom, structures_of
from qmri_bidsapp.evaluation.relaxometry.experiments import (
    CONTRASTS,
    LINE_LENGTH,
    UNIT_WIDTH,
    ExperimentSettings,
    edge_scene,
    find_sites,
    repeat,
    sigmoid_width,
    small_structures,
    spread_of,
)
from qmri_bidsapp.models.relaxometry import SpinEchoT2

MODEL, ECHOES = SpinEchoT2(), PROTOCOLS["t2"]["6"]
SHAPE = (64, 72, 64)


@pytest.fixture(scope="module")
def scene():
    return draw_scene(MODEL, [crop(structures_of(label_phantom(SHAPE)))], np.random.default_rng(1))


def test_bias_and_variation_are_those_of_the_definition():
    truth = np.array([1.0, 2.0])
    bias, cv = per_voxel(np.array([[1.1, 2.0], [1.3, np.nan]]), truth)
    np.testing.assert_allclose(bias, [0.2, np.inf])
    np.testing.assert_allclose(cv, [np.sqrt(0.02) / 1.2, np.inf])


def test_biases_of_both_signs_do_not_cancel_in_their_size():
    truth = np.full(100, 2.0)
    found = spread_of(truth * np.where(np.arange(100) % 2, 0.9, 1.1) * np.array([[0.99], [1.01]]), truth)
    assert found.bias[2] in (pytest.approx(-0.1), pytest.approx(0.1))
    assert found.absolute_bias[2] == pytest.approx(0.1)
    assert found.cv[2] == pytest.approx(0.01 * np.sqrt(2))


@pytest.mark.parametrize("slope", [0.7, 2.0])
def test_the_width_of_a_sigmoid_is_found_despite_outliers(slope):
    x = np.linspace(-6, 6, 400)
    values = 0.8 + 0.6 * expit(slope * (x - 0.3))
    values[::20] = 8.0
    assert sigmoid_width(x, values) == pytest.approx(2 * np.log(9) / slope, rel=0.1)


def test_blurring_widens_the_edge():
    scene, distance = edge_scene(MODEL)
    sharp = scene.theta[0, ..., -1].astype(float)
    widths = [sigmoid_width(distance.ravel(), part.ravel()) for part in (sharp, gaussian_filter1d(sharp, 1.0, axis=1))]
    assert widths[0] < 0.3
    # From 10 to 90 % a Gaussian of standard deviation 1 takes 2.56.
    assert widths[1] == pytest.approx(2.56, rel=0.1)
    assert sigmoid_width(np.array([-2.0, -1, 1, 2]), np.array([1.0, 1, 2, 2])) >= UNIT_WIDTH / 50


def test_structures_lie_in_one_tissue_and_apart(scene):
    sites = find_sites(scene)
    assert {"point", "horizontal line", "vertical line"} <= set(sites)
    tissue = scene.structures == scene.structures[sites["point"]][0]
    for kind, places in sites.items():
        assert kind == "point in grey matter" or tissue[places].all()
    assert sites["horizontal line"].sum() % LINE_LENGTH == 0
    together = np.sum(list(sites.values()), axis=0)
    assert together.max() == 1


def test_a_neighbours_mean_keeps_a_ninth_of_a_point(scene, monkeypatch):
    """The measure of blurring, on a truth blurred by three by three voxels."""
    from scipy.ndimage import uniform_filter

    from qmri_bidsapp.evaluation.relaxometry import experiments

    def blurred(setting, estimator, scene, acquisition, snr, what):
        return np.stack([uniform_filter(scene.theta[..., -1], (1, 3, 3))[scene.brain].astype(float)] * 2)

    monkeypatch.setattr(experiments, "repeat", blurred)
    found = small_structures(ExperimentSettings(MODEL, 2), {"mean": None}, scene, ECHOES)
    for by_factor in found["point"].values():
        assert by_factor["mean"]["kept"] == pytest.approx(1 / 9, rel=0.01)
    assert list(found["point"]) == [f"{factor:g}" for factor in CONTRASTS]
    assert found["vertical line"]["2"]["mean"]["kept"] == pytest.approx(1 / 3, rel=0.1)


def test_noise_is_paired_and_variation_falls_with_it(scene):
    estimator = VariableProjection(MODEL).fit(ECHOES)
    first, again = (repeat(ExperimentSettings(MODEL, 3), estimator, scene, ECHOES, 50, "") for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = repeat(ExperimentSettings(MODEL, 3, seed=1), estimator, scene, ECHOES, 100, "")
    low, high = (spread_of(found, scene.truth).cv[2] for found in (other, first))
    assert high / low == pytest.approx(2, rel=0.1)


def test_rician_noise_raises_the_background(scene):
    rng = np.random.default_rng(0)
    trial = measure(MODEL, scene, ECHOES, 10, rng, is_rician=True)
    air = trial.signals[0][scene.structures == 0]
    assert air.mean() == pytest.approx(np.sqrt(np.pi / 2) * trial.noise_std, rel=0.02)


def test_the_command_writes_tables_results_and_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate_relaxometry, "PHANTOM_SHAPE", (40, 46, 40))
    options = ["--json", str(tmp_path / "r.json"), "--figures", str(tmp_path / "figures"), "--repetitions", "2"]
    assert tools.main(["evaluate", "relaxometry", "--model", "t2", *options]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {snr} | rim |" in printed for snr in (3, 100))
    results = json.loads((tmp_path / "r.json").read_text())
    assert {"noise", "structures", "protocols", "edge"} <= set(results)
    card = json.loads((RecurrentInference.shipped(MODEL) / "card.json").read_text())
    assert results["weights"] == {"rim": card["sha256"]}
    assert len(list((tmp_path / "figures").glob("relaxometry_t2_*.png"))) == 4


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--map-repetitions", "1"], 64),
        (["--repetitions", "1"], 64),
        (["--json", "absent/r.json"], 73),
        (["--rim-weights", "absent"], 64),
    ],
    ids=["one of map", "one repetition", "no folder", "no weights"],
)
def test_what_cannot_be_measured(options, code, capsys):
    assert tools.main(["evaluate", "relaxometry", *options]) == code
