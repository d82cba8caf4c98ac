"""``qmri evaluate``: table, JSON and causes of failure."""

from __future__ import annotations

import json

import pytest
import torch
from matplotlib.image import imread

from qmri_bidsapp.cli import tools
from qmri_bidsapp.estimators.learned.mlp import MultilayerPerceptron
from qmri_bidsapp.estimators.learned.training import Training
from qmri_bidsapp.evaluation.lesion import phantom
from qmri_bidsapp.evaluation.speed import peers
from qmri_bidsapp.evaluation.table3 import healthy_brain
from qmri_bidsapp.registry import get_model, load_estimators


@pytest.fixture(autouse=True)
def same_threads():
    n_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(n_threads)


def run(*options: str) -> int:
    return tools.main(["evaluate", "speed", "--seconds", "0.01", "--threads", "1", "--device", "cpu", *options])


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_every_estimator_of_every_model(tmp_path, capsys):
    assert run("--models", "t2,tensor", "--json", "speed.json") == 0
    found = json.loads((tmp_path / "speed.json").read_text())
    assert list(found) == ["t2", "tensor"]
    for name, estimators in found.items():
        expected = [key for key, estimator in load_estimators().items() if estimator.supports(get_model(name))]
        assert list(estimators) == expected
        for result in estimators.values():
            assert set(result) == {"voxels_per_second", "peers"}
            assert result["voxels_per_second"] > 0
            assert result["peers"] == {}
    table = rows(capsys.readouterr().out)
    assert table[0] == ["model", "estimator", "measurements", "voxels", "voxels/s", "cores"]
    assert [(row[0], row[1]) for row in table[2:]] == [(name, key) for name in found for key in found[name]]
    assert {(row[0], row[2]) for row in table[2:]} == {("t2", "6"), ("tensor", "33")}


def test_peers(tmp_path, monkeypatch, capsys):
    def absent(_acquisition):
        raise ImportError("No module named 'absent'")

    missing = peers.Peer("other", "t2", "other-package", ("t2",), absent)
    monkeypatch.setattr(peers, "PEERS", (*peers.PEERS, missing))
    assert run("--models", "t2", "--peers", "--json", "speed.json") == 0
    result = json.loads((tmp_path / "speed.json").read_text())["t2"]["nlls"]
    assert list(result["peers"]) == ["scipy least_squares"]
    # A batched fit is faster than a loop over voxels.
    assert 0 < result["peers"]["scipy least_squares"] < result["voxels_per_second"]
    output = capsys.readouterr().out
    assert "Peer other was skipped: No module named 'absent' (package other-package)." in output
    assert [row[5] for row in rows(output) if "(peer)" in row[1]] == ["1"]


@pytest.mark.parametrize(
    ("options", "code", "cause"),
    [
        (["--models", "t9"], 64, "no model named 't9'; known: "),
        (["--models", "t2star"], 64, "Model t2star has no standard protocol; those that have one: t1, t2"),
        (["--models", "t2", "--threads", "0"], 64, "--threads must be at least 1"),
        (["--models", "t2", "--seconds", "inf"], 64, "--seconds positive"),
        (["--device", "gpu"], 64, "--device must be auto, cpu, cuda or cuda:n"),
        (["--json", "absent/speed.json"], 73, "the folder of absent/speed.json does not exist"),
        (["--json", "."], 73, "--json: . is a folder"),
    ],
    ids=["unknown model", "no protocol", "no thread", "no time", "unknown device", "no folder", "a folder"],
)
def test_code_and_cause_in_one_line(options, code, cause, capsys):
    assert run(*options) == code
    captured = capsys.readouterr()
    assert cause in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_table3(tmp_path, capsys):
    command = ["evaluate", "table3", "--estimators", "traditional,varpro", "--samples", "2", "--json", "table3.json"]
    assert tools.main(command) == 0
    found = json.loads((tmp_path / "table3.json").read_text())
    assert list(found) == ["traditional", "varpro"]
    for row in found.values():
        assert list(row) == ["rmse", "bias", "std"]
        assert all(len(row[kind]) == 2 for kind in ("rmse", "bias", "std"))
        # With two samples per point most of the mean of |bias| is noise.
        assert 0 < row["bias"][1] < row["rmse"][1] < 0.2
    table = rows(capsys.readouterr().out)
    assert {len(row) for row in table} == {7}
    assert table[2][:2] == ["Traditional fitting (paper)", "0.0883 / 0.1106"]
    assert [row[0] for row in table[-2:]] == ["traditional", "varpro"]
    assert table[-1][3] == " / ".join(f"{value:.4f}" for value in found["varpro"]["std"])


def test_table3_of_networks(tmp_path, monkeypatch, capsys):
    options = MultilayerPerceptron.__init__.__kwdefaults__
    monkeypatch.setitem(options, "training", Training(steps=200, batch_size=256))
    monkeypatch.setattr(MultilayerPerceptron, "default_combinations", 2**14)
    monkeypatch.setattr(healthy_brain, "VOXEL_SIZE", 8.0)
    monkeypatch.setattr(healthy_brain, "N_VOXELS", 2000)
    command = ["evaluate", "table3", "--estimators", "net-uniform,net-healthy", "--samples", "2", "--json", "t.json"]
    assert tools.main([*command, "--figures", "figures"]) == 0
    height, width, _ = imread(tmp_path / "figures" / "table3_bias.png").shape
    assert width > 1.5 * height
    found = json.loads((tmp_path / "t.json").read_text())
    assert [row[0] for row in rows(capsys.readouterr().out)[-2:]] == list(found)
    # What is trained on healthy tissue is wrong over the whole space, as in the paper.
    assert found["net-uniform"]["rmse"][0] < 0.1 < found["net-healthy"]["rmse"][0]


@pytest.mark.parametrize(
    ("options", "code", "cause"),
    [
        (["--estimators", "median"], 64, "no row named 'median'; known: traditional, grid, "),
        (["--samples", "1"], 64, "at least 2 samples per point, got 1"),
        (["--json", "absent/table3.json"], 73, "the folder of absent/table3.json does not exist"),
        (["--figures", "/dev/null"], 73, "--figures: /dev/null is not a folder"),
    ],
    ids=["unknown estimator", "one sample", "no folder", "figures into a file"],
)
def test_table3_code_and_cause_in_one_line(options, code, cause, capsys):
    assert tools.main(["evaluate", "table3", *options]) == code
    captured = capsys.readouterr()
    assert cause in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_out_of_distribution(tmp_path, capsys):
    options = ["--models", "t2", "--estimators", "varpro", "--voxels", "100", "--reference", "1000"]
    assert tools.main(["evaluate", "ood", *options, "--json", "ood.json"]) == 0
    found = json.loads((tmp_path / "ood.json").read_text())
    assert list(found) == ["t2:varpro", "false_positive_rates"]
    scores = set(found["false_positive_rates"]["t2:varpro"])
    assert scores == {"outlier", "misfit", "bound", "distance", "flag"}
    assert all(set(row) == scores for row in found["t2:varpro"].values())
    table = rows(capsys.readouterr().out)
    assert [row[0] for row in table[2:-1]] == list(found["t2:varpro"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--models", "ivim"], "no cases for model 'ivim'"),
        (["--models", "t2", "--estimators", "wls"], "supports model t2"),
        (["--models", "t2", "--estimators", "rim"], "estimates whole images"),
        (["--voxels", "5"], "at least 100"),
        (["--json", "missing/ood.json"], "does not exist"),
    ],
    ids=["model", "estimator", "spatial", "voxels", "json"],
)
def test_out_of_distribution_says_what_is_wrong(options, words, capsys):
    assert tools.main(["evaluate", "ood", *options]) != 0
    assert words in capsys.readouterr().err


def test_lesion(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(phantom, "VOXEL_SIZE", 4.0)
    options = ["--estimators", "nlls", "--voxels", "100", "--reference", "1000", "--figures", "figures"]
    assert tools.main(["evaluate", "lesion", *options, "--json", "lesion.json"]) == 0
    found = json.loads((tmp_path / "lesion.json").read_text())
    assert list(found) == ["25", "5"]
    high, low = (found[key]["nlls"]["auroc"]["lambda"] for key in ("25", "5"))
    assert low < high
    assert (tmp_path / "figures" / "lesion.png").stat().st_size > 10_000
    printed = rows(capsys.readouterr().out)
    assert [row[:2] for row in printed if row[1] == "nlls"] == 2 * [["25", "nlls"], ["5", "nlls"]]


def test_robustness(tmp_path, capsys):
    options = ["--models", "t2", "--estimators", "varpro", "--voxels", "100", "--reference", "1000"]
    assert tools.main(["evaluate", "robustness", *options, "--json", "robustness.json"]) == 0
    found = json.loads((tmp_path / "robustness.json").read_text())
    assert set(found["t2"]["varpro"]["none"]["t2"]) == {"off", "silent", "silent_outside", "no_std", "marked"}
    table = rows(capsys.readouterr().out)
    assert [row[0] for row in table[2:]] == list(found["t2"]["varpro"])


def test_robustness_through_images(tmp_path, capsys, monkeypatch):
    """Heads go through the app: one without a fault, and one that the app refuses."""
    from qmri_bidsapp.evaluation.flags import faulty_heads

    every = faulty_heads.image_faults
    chosen = ("none", "an image of zeros")
    monkeypatch.setattr(faulty_heads, "image_faults", lambda *what: {name: every(*what)[name] for name in chosen})
    options = ["--images", "--models", "t2", "--voxels", "400", "--json", "robustness.json"]
    assert tools.main(["evaluate", "robustness", *options]) == 0
    found = json.loads((tmp_path / "robustness.json").read_text())["t2"]["nlls"]
    assert found["an image of zeros"] is None
    # Other parameters are the amplitude and the rate 1 / t2.
    assert set(found["none"]) == {"t2"}
    assert found["none"]["t2"]["silent_outside"] < 0.02
    assert found["none"]["t2"]["marked"] < 0.2
    table = rows(capsys.readouterr().out)
    assert [row[0] for row in table[2:]] == list(chosen)
    assert table[3][1] == "refused"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["lesion", "--estimators", "mlp"], "mlp:healthy"),
        (["lesion", "--voxels", "5"], "at least 100"),
        (["lesion", "--json", "missing/lesion.json"], "does not exist"),
        (["robustness", "--models", "ivim"], "'ivim' is not measured"),
        (["robustness", "--models", "t2", "--estimators", "rim"], "single voxels of model t2"),
        (["robustness", "--reference", "5"], "1000"),
        (["robustness", "--images", "--reference", "2000"], "its own certificates"),
        (["robustness", "--json", "missing/robustness.json"], "does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_lesion_and_robustness_say_what_is_wrong(options, words, capsys):
    assert tools.main(["evaluate", *options]) != 0
    assert words in capsys.readouterr().err
