from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import SHAPE, write_image, write_sidecar


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[[], Path]:
    """A small valid data set: sub-01 with every kind of series, sub-02 with a T1w."""

    def make() -> Path:
        root = tmp_path / "bids"
        write_sidecar(root / "dataset_description.json", Name="test", BIDSVersion="1.10.0")
        anat, dwi = root / "sub-01" / "anat", root / "sub-01" / "dwi"
        for subject in ("01", "02"):
            head = np.diag([40.0, 40.0, 40.0, 1.0])
            write_image(root / f"sub-{subject}" / "anat" / f"sub-{subject}_T1w.nii.gz", affine=head)
        # Numbered against the order of time, and with the time in an inherited sidecar for the echoes.
        for number, time in ((1, 1.5), (2, 0.1), (3, 0.5)):
            write_image(anat / f"sub-01_inv-{number}_IRT1.nii.gz")
            write_sidecar(anat / f"sub-01_inv-{number}_IRT1.json", InversionTime=time)
        for number in (1, 2, 3):
            write_image(anat / f"sub-01_echo-{number}_MESE.nii.gz")
            write_sidecar(root / f"echo-{number}_MESE.json", EchoTime=0.01 * number)
        write_image(dwi / "sub-01_dwi.nii.gz", (*SHAPE, 8))
        write_sidecar(dwi / "sub-01_dwi.json", BigDelta=0.03, SmallDelta=0.01)
        (dwi / "sub-01_dwi.bval").write_text("0 0 1000 1000 1000 1000 1000 1000\n")
        vectors = np.zeros((3, 8))
        vectors[:, 2:] = np.hstack([np.eye(3), np.eye(3)])
        np.savetxt(dwi / "sub-01_dwi.bvec", vectors)
        return root

    return make


@pytest.fixture
def add_images() -> Callable[[Path, dict[str, dict]], None]:
    """Write images of sub-01, name without the subject -> sidecar."""

    def add(folder: Path, images: dict[str, dict]) -> None:
        for name, fields in images.items():
            write_image(folder / f"sub-01_{name}.nii.gz")
            write_sidecar(folder / f"sub-01_{name}.json", **fields)

    return add
