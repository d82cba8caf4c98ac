from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def restored_process(monkeypatch, tmp_path):
    """Run in an empty folder; give back environment and logger, which the program sets."""
    variables = dict(os.environ)
    logger = logging.getLogger("qmri_bidsapp")
    level, propagate = logger.level, logger.propagate
    monkeypatch.chdir(tmp_path)
    yield
    os.environ.clear()
    os.environ.update(variables)
    logger.setLevel(level)
    logger.propagate = propagate


@pytest.fixture
def bids_dir(tmp_path) -> Path:
    """Return the folder of a data set without any series."""
    folder = tmp_path / "raw"
    folder.mkdir()
    description = {"Name": "test", "BIDSVersion": "1.10.0"}
    (folder / "dataset_description.json").write_text(json.dumps(description))
    return folder
