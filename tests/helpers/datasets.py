"""Images and sidecars of small data sets."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (6, 6, 3)


def write_image(
    path: Path, shape: tuple[int, ...] = SHAPE, value: float = 1.0, affine: np.ndarray | None = None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.full(shape, value, dtype=np.float32)
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)


def write_sidecar(path: Path, **fields: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))
