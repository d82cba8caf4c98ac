from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of more real data, which cannot be redistributed: most users do not have it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data, which is absent")
    return folder


@pytest.fixture(scope="session")
def crops() -> Path:
    """Crops of real images that come with the tests; their README names sources and licences."""
    return REPOSITORY / "tests" / "data" / "real"


@pytest.fixture(scope="session")
def real(shared: Path) -> Path:
    """BIDS data set of real series with references made by others."""
    return shared / "bids-real"
