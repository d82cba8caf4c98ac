"""The scripts in ``benchmarks/`` run and measure what they say."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from qmri_bidsapp.evaluation.standards import standard

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_memory(tmp_path):
    options = ["--shape", "8", "7", "6", "--volumes", "5", "--voxels", "30", "336", "--threads", "1"]
    output = tmp_path / "memory.json"
    subprocess.run(
        [sys.executable, FOLDER / "memory.py", *options, "--folder", tmp_path, "--json", output],
        check=True,
        timeout=120,
    )
    rows = json.loads(output.read_text())
    assert [row["voxels"] for row in rows] == [30, 336]
    for row in rows:
        # PyTorch alone takes more than 0.1 GB; a resident set is never smaller than its private part.
        assert 0.1 < row["private_gb"] <= row["resident_gb"] < 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory.json"]


def test_exact_noddi_is_amicos():
    pytest.importorskip("amico", reason="needs dmri-amico, which is not installed")
    script, protocol = load("noddi_accuracy"), standard("noddi")
    truth, axes = script.draw(5, np.random.default_rng(0))
    exact, amico = script.exact_signals(protocol, truth, axes), script.amico_signals(protocol, truth, axes)
    # AMICO cuts the series of the Watson distribution off.
    np.testing.assert_allclose(exact, amico, atol=5e-4)
    assert exact.min() < 0.3 < exact.max() == pytest.approx(1)


def test_learned_directions(monkeypatch, capsys):
    module = load("learned_directions")
    monkeypatch.setattr(module, "N_VOXELS", 300)
    monkeypatch.setattr(module, "N_CLASSICAL", {"noddi": 200})
    options = ["noddi", "--steps", "20", "--combinations", "3000", "--snr", "50"]
    monkeypatch.setattr(sys, "argv", ["learned_directions.py", *options])
    module.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[1] for line in lines[1:]] == [" mlp", " mlp", " nlls"]
    # Half of the tissue hardly has a direction.
    assert float(lines[-1].rpartition(" ")[2]) < 20
