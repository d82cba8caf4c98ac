from __future__ import annotations

from pathlib import Path

import pytest

from qmri_bidsapp.demo.dataset import write_demo

#: Voxel sizes (mm) that make a demo in a few seconds.
COARSE = {"t1w_voxel": 6.0, "series_voxel": 8.0}


@pytest.fixture(scope="session")
def coarse_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo") / "data", **COARSE)
