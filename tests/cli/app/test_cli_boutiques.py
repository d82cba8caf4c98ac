"""The Boutiques descriptor is made from the parser."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import qmri_bidsapp
from qmri_bidsapp.cli.app.boutiques import NOT_INPUTS, build_descriptor, descriptor_text
from qmri_bidsapp.cli.app.parser import build_parser


def test_version_is_that_of_the_program():
    assert json.loads(descriptor_text())["tool-version"] == qmri_bidsapp.__version__ == version("qmri-bidsapp")


def test_inputs_are_the_options():
    inputs = {item["id"]: item for item in json.loads(descriptor_text())["inputs"]}
    actions = {action.dest: action for action in build_parser()._actions if action.dest not in NOT_INPUTS}
    assert list(inputs) == list(actions)
    for name, action in actions.items():
        assert inputs[name].get("command-line-flag") == (action.option_strings[-1] if action.option_strings else None)
        assert inputs[name]["optional"] == bool(action.option_strings)
        assert inputs[name].get("list", False) == (action.nargs == "+")


def test_steps_to_skip_are_listed():
    (skip,) = (item for item in build_descriptor()["inputs"] if item["id"] == "skip")
    steps = ["join", "distortion", "denoise", "noise-floor", "unring", "align", "drift", "lost-slices"]
    steps += ["bias-field", "register"]
    assert skip["value-choices"] == steps


def test_command_line_names_every_input():
    descriptor = build_descriptor()
    keys = [item["value-key"] for item in descriptor["inputs"]]
    assert descriptor["command-line"].split() == ["qmri-bids", *keys]
    # Options that take several values would swallow positional arguments behind them.
    assert keys[:3] == ["[BIDS_DIR]", "[OUTPUT_DIR]", "[ANALYSIS_LEVEL]"]


def test_only_one_of_the_short_cuts():
    assert [group["members"] for group in build_descriptor()["groups"]] == [["reports_only", "boilerplate_only"]]


def test_bosh_accepts_it(tmp_path):
    bosh = Path(sys.executable).parent / "bosh"
    if not bosh.exists():
        pytest.skip("needs bosh (the lint extra)")
    descriptor = tmp_path / "qmri_bidsapp.json"
    descriptor.write_text(descriptor_text(), encoding="utf-8")
    finished = subprocess.run([bosh, "validate", descriptor], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "OK" in finished.stdout
