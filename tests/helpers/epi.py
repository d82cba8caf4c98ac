"""Diffusion of a simple head as two EPI of opposite phase encoding show it."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

SHAPE = (36, 44, 20)
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
READOUT = 0.05
DIFFUSIVITY = 0.8e-3


def head() -> np.ndarray:
    """A bright ball with structure on a dark background, the signal at b = 0."""
    texture = gaussian_filter(np.random.default_rng(0).standard_normal(SHAPE), 1.5)
    return np.where(inside(), 1000 * (1 + 0.25 * texture / texture.std()).clip(0.3), 0.0)


def inside() -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    return np.sqrt(np.square(grid).sum(axis=0)) < 0.8


def field() -> np.ndarray:
    """A field of up to 60 Hz, three voxels of displacement, near the front of the head."""
    place = np.indices(SHAPE) - np.array([18, 32, 8])[:, None, None, None]
    return 60 * np.exp(-np.square(place / np.array([7, 8, 6])[:, None, None, None]).sum(axis=0) / 2)


def as_seen(image: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """Move magnetisation along the second axis, by shares of fine voxels."""
    n, fine = SHAPE[1], 16
    y = (np.arange(n * fine) + 0.5) / fine - 0.5
    seen = np.zeros_like(image)
    for i, k in np.ndindex(SHAPE[0], SHAPE[2]):
        values = np.interp(y, np.arange(n), image[i, :, k])
        to = y + np.interp(y, np.arange(n), displacement[i, :, k])
        total, _ = np.histogram(to, bins=np.arange(n + 1) - 0.5, weights=values / fine)
        seen[i, :, k] = total
    return seen


def write_pair(root: Path, *, noise_std: float = 10.0, names: tuple[str, str] = ("dir-AP", "dir-PA")) -> None:
    """Write a data set with one participant."""
    rng = np.random.default_rng(1)
    folder = root / "sub-01" / "dwi"
    folder.mkdir(parents=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "pair", "BIDSVersion": "1.10.0"}))
    b_value = np.array([0.0, 0.0, *[1000.0] * 10])
    for name, direction, sign in zip(names, ("j-", "j"), (-1, 1), strict=True):
        vectors = rng.standard_normal((3, 12))
        vectors /= np.linalg.norm(vectors, axis=0)
        seen = as_seen(head(), sign * READOUT * field())
        signal = seen[..., None] * np.exp(-b_value * DIFFUSIVITY)
        noisy = np.hypot(*(signal * part + noise_std * rng.standard_normal(signal.shape) for part in (1, 0)))
        stem = folder / f"sub-01_{name}_dwi"
        nib.save(nib.Nifti1Image(noisy.astype(np.float32), AFFINE), f"{stem}.nii.gz")
        Path(f"{stem}.json").write_text(json.dumps({"PhaseEncodingDirection": direction, "TotalReadoutTime": READOUT}))
        np.savetxt(f"{stem}.bval", b_value[None], fmt="%g")
        np.savetxt(f"{stem}.bvec", vectors)
