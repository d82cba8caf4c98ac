"""Examples on the pages of the documentation run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest

from qmri_bidsapp.cli import tools
from qmri_bidsapp.cli.app.parser import parse
from qmri_bidsapp.estimators.learned.mlp import MultilayerPerceptron
from qmri_bidsapp.estimators.learned.training import Training
from qmri_bidsapp.registry import load_estimators

PAGES = Path(__file__).resolve().parents[2] / "docs"
FOLDERS = ("tutorials", "how-to", "reference", "explanation", "validation")
NAMES = sorted(path.relative_to(PAGES).as_posix() for folder in FOLDERS for path in (PAGES / folder).glob("*.md"))

#: Entry-point groups, which are no modules.
GROUPS = {f"qmri_bidsapp.{group}" for group in ("estimators", "kinds", "models")}


def blocks(page: str, language: str) -> list[str]:
    """Return the code of a page in one language."""
    text = (PAGES / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    """Return the words of each shell command of a page."""
    code = "".join(blocks(page, "console")).replace("\\\n", " ").replace("3f0c...", 16 * "3f0c")
    return [line.partition("  #")[0].split() for line in code.splitlines()]


def test_the_example_of_learned_estimators(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(MultilayerPerceptron.__init__.__kwdefaults__, "training", Training(steps=1000, batch_size=256))
    monkeypatch.setattr(MultilayerPerceptron, "default_combinations", 2**15)
    (example,) = blocks("how-to/train.md", "python")
    names: dict[str, object] = {}
    exec(compile(example, "train.md", "exec"), names)
    assert (tmp_path / "weights-t2" / "card.json").is_file()
    maps = names["maps"]
    np.testing.assert_allclose(maps.estimate[:, 1], [0.08, 0.11], rtol=0.2)
    assert (maps.std > 0).all()


def test_the_tutorial_of_the_python_face(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in blocks("tutorials/python.md", "python"):
        exec(compile(example, "python.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "Maps of t2 by nlls: s0, t2, r2; 864 voxels" in printed
    maps, mask = names["maps"], names["mask"]
    assert maps.flag[6, 6, 3] > 1
    assert not maps.usable[6, 6, 3]
    assert maps.usable[mask].mean() > 0.9
    assert 0.86 < names["inside"].mean() < 0.94
    assert names["low"] < 80 < names["high"]
    assert (tmp_path / "maps" / "sub-01_T2map.nii.gz").is_file()


@pytest.mark.parametrize("page", NAMES)
def test_python_examples_are_valid(page):
    for example in blocks(page, "python"):
        assert compile(example, page, "exec")


@pytest.mark.parametrize("page", [name for name in NAMES if any(c and c[0].startswith("qmri") for c in commands(name))])
def test_commands_can_be_parsed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("weights", "networks", "head", "RUN/weights"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "sfcn.pt").touch()
    for name, *words in commands(page):
        if name == "qmri-bids" and words != ["--version"]:
            assert parse(words).output_dir
        elif name == "qmri":
            assert callable(tools.build_parser().parse_args(words).run)


def test_every_page_is_in_the_index():
    listed = set(re.findall(r"^([a-z-]+/\w+)$", (PAGES / "index.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == {name.removesuffix(".md") for name in NAMES if not name.startswith("tutorials/")}


def test_every_estimator_is_described():
    text = (PAGES / "reference/estimators.md").read_text(encoding="utf-8")
    assert set(load_estimators()) <= set(re.findall(r"`([\w-]+)`", text))


@pytest.mark.parametrize("page", NAMES)
def test_names_and_files_on_a_page_exist(page):
    text = (PAGES / page).read_text(encoding="utf-8")
    for name in set(re.findall(r"\bqmri_bidsapp(?:\.(?!json)\w+)+", text)) - GROUPS:
        resolve_name(name)
    for path in set(re.findall(r"\b(?:tests|benchmarks|training|qmri_bidsapp)/[\w/]+\.\w+", text)):
        assert (PAGES.parent / path).exists(), path


def test_the_architecture_names_every_folder():
    text = (PAGES / "explanation/architecture.md").read_text(encoding="utf-8")
    package = PAGES.parent / "qmri_bidsapp"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert {name for name in folders if f"`{name}/`" not in text} == set()
    assert {name for name in modules if f"`{name}`" not in text} == set()
