"""The tutorial on plug-ins does what it says: its package installs, passes its tests and fits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tutorials" / "plugin.md"
FILE = re.compile(r"^```\w+\n# (?P<name>[\w.]+\.(?:py|toml))\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the page, installed into its folder ``site``."""
    folder = tmp_path_factory.mktemp("qmri-decay")
    for found in FILE.finditer(PAGE.read_text(encoding="utf-8")):
        (folder / found["name"]).write_text(found["text"], encoding="utf-8")
    # Without network: what the package needs is installed.
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--target", "site")
    run(folder, "-m", "pip", "install", *offline, ".")
    return folder


def run(folder: Path, *arguments: str) -> str:
    """Return what a Python command prints in the folder, with the package and this project on its path."""
    paths = os.pathsep.join((str(folder / "site"), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": paths}
    finished = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_the_page_has_one_file_per_part(package: Path) -> None:
    files = {path.name for path in package.iterdir() if path.is_file()}
    assert files == {"pyproject.toml", "qmri_decay_model.py", "qmri_decay_estimator.py", "test_contracts.py", "fit.py"}


def test_its_contract_tests_pass(package: Path) -> None:
    assert "3 passed" in run(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_contracts.py")


def test_model_and_estimator_are_listed(package: Path) -> None:
    listed = run(package, "-m", "qmri_bidsapp.cli.tools", "models")
    assert "t2offset: T2 with an offset\n  from        MESE, opt-in\n" in listed
    assert "loglinear" in listed.partition("\nt2: ")[2].partition("\nt2offset: ")[0]


def test_both_fit_and_are_described(package: Path) -> None:
    errors = re.findall(r"largest error of T2: (\S+) s", run(package, "fit.py"))
    assert len(errors) == 2
    assert max(map(float, errors)) < 1e-6
    code = (
        "from pathlib import Path\n"
        "from qmri_bidsapp.config import Config\n"
        "from qmri_bidsapp.reports.citation import resolve\n"
        "from qmri_bidsapp.workflows.methods import bibliography, describe_methods\n"
        "options = {'models': ('t2', 't2offset'), 'estimators': ('t2:loglinear',)}\n"
        "config = Config(Path('/in'), Path('/out'), 'participant', 'run', Path('/work'), **options)\n"
        "text, references = resolve(describe_methods(config), bibliography(config))\n"
        "print(text, *references, sep='\\n')\n"
    )
    printed = run(package, "-c", code)
    assert "an exponential decay with an offset [" in printed
    assert "With the estimator loglinear" in printed
    assert "Milford D" in printed
    assert "Salvador R" in printed
