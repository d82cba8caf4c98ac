"""Examples on the pages of the documentation run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from qmri_bidsapp.cli import tools
from qmri_bidsapp.cli.app.parser import parse
from qmri_bidsapp.estimators.learned.mlp import MultilayerPerceptron
from qmri_bidsapp.estimators.learned.training import Training

PAGES = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    """Return the code of a page in one language."""
    text = (PAGES / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_example_of_learned_estimators(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(MultilayerPerceptron.__init__.__kwdefaults__, "training", Training(steps=1000, batch_size=256))
    monkeypatch.setattr(MultilayerPerceptron, "default_combinations", 2**15)
    (example,) = blocks("explanation/learned.md", "python")
    names: dict[str, object] = {}
    exec(compile(example, "learned.md", "exec"), names)
    assert (tmp_path / "weights-t2" / "card.json").is_file()
    maps = names["maps"]
    np.testing.assert_allclose(maps.estimate[:, 1], [0.08, 0.11], rtol=0.2)
    assert (maps.std > 0).all()


def test_commands_with_learned_estimators_can_be_parsed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("weights", "networks"):
        (tmp_path / folder).mkdir()
    commands = [
        line.partition("  #")[0].split()
        for page in (
            "explanation/learned.md",
            "how-to/usage.md",
            "explanation/spatial_networks.md",
            "explanation/motion_correction.md",
        )
        for block in blocks(page, "console")
        for line in block.splitlines()
    ]
    programs = {"qmri": tools.build_parser().parse_args, "qmri-bids": parse}
    tried = [programs[name](words) for name, *words in commands if name in programs]
    assert len(tried) > 10
