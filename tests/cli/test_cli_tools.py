"""``qmri``: its commands, and the same exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from qmri_bidsapp.cli import tools
from qmri_bidsapp.registry import load_estimators, load_models


def test_models_and_estimators_are_listed(capsys):
    assert tools.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in (*load_models(), *load_estimators()):
        assert any(line.startswith(f"{name}: ") for line in lines), name
    assert "t1: T1 by inversion recovery" in lines
    assert "  needs       3 distinct inversion times" in lines
    assert any("needs" in line and "SmallDelta" in line for line in lines)
    assert any(line.split()[:1] == ["T1map"] and line.endswith("[s]") for line in lines)
    assert "  --range     inversion_factor 0.5 to 3, t1 0.02 to 8 (of qmri train)" in lines
    assert "  --range     fwf 0 to 1, ndi 0 to 1, odi 0.01 to 0.99 (of qmri train)" in lines


def test_help_of_train_lists_every_model_and_network(capsys):
    with pytest.raises(SystemExit):
        tools.main(["train", "--help"])
    words = capsys.readouterr().out.replace(",", " ").split()
    assert {*load_models(), "motion", "qc-head"} <= set(words)


def test_a_training_of_something_unknown_names_the_known_ones(capsys):
    assert tools.main(["train", "t3", "weights"]) == 64
    error = capsys.readouterr().err
    assert "invalid choice: 't3'" in error
    assert all(f"'{name}'" in error for name in (*load_models(), "motion", "qc-head"))


@pytest.mark.parametrize("name", load_models())
def test_ranges_that_are_listed_can_be_set(name):
    model = load_models()[name]()
    for item in tools._ranges(model).split(", "):
        parameter, low, _, high = item.split()
        described = model.default_prior({parameter: (float(low), float(high))}).describe()
        assert [float(low), float(high)] in described["ranges"].values()


def test_a_reader_that_leaves_early_is_no_error_to_be_explained():
    command = [sys.executable, "-m", "qmri_bidsapp.cli.tools", "models"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_descriptor_is_printed(capsys):
    assert tools.main(["boutiques"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "qmri_bidsapp"


def test_demo(monkeypatch, tmp_path, capsys):
    calls = []
    monkeypatch.setattr("qmri_bidsapp.demo.dataset.write_demo", lambda folder, *, seed: calls.append((folder, seed)))
    assert tools.main(["demo", str(tmp_path / "demo"), "--seed", "3"]) == 0
    assert calls == [(tmp_path / "demo", 3)]
    assert str(tmp_path / "demo") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "cause"),
    [
        ([], 64, "required: COMMAND. See qmri --help"),
        (["cook"], 64, "invalid choice: 'cook'"),
        (["demo"], 64, "needs a new folder for the data set, or --check OUT. See qmri demo --help"),
        (["demo", "{full}"], 73, "is not empty; name a new folder"),
    ],
    ids=["nothing", "unknown", "no folder", "full folder"],
)
def test_code_and_cause_in_one_line(arguments, code, cause, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    assert tools.main([word.format(full=tmp_path / "full") for word in arguments]) == code
    error = capsys.readouterr().err
    assert error.startswith("qmri: error: ")
    assert cause in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "code", "cause"),
    [
        (KeyboardInterrupt(), 130, "qmri: interrupted"),
        (ValueError("x"), 1, "unexpected error: ValueError: x"),
    ],
    ids=["interrupted", "unexpected"],
)
def test_other_ends(monkeypatch, tmp_path, capsys, error, code, cause):
    def raising(*_args, **_options):
        raise error

    monkeypatch.setattr("qmri_bidsapp.demo.dataset.write_demo", raising)
    assert tools.main(["demo", str(tmp_path)]) == code
    assert cause in capsys.readouterr().err.splitlines()[-1]
