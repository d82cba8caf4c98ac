"""A made-up T1w of a head: skull, grey shell, white matter, ventricles, and a neck, on voxels of any size."""

from __future__ import annotations

import numpy as np
import torch


def made_up_head(voxel_size: float = 2.4, *, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Return a head of 152 x 192 mm, towards right, anterior and superior, and its affine."""
    axes = [(np.arange(round(length / voxel_size)) + 0.5) * voxel_size - length / 2 for length in (192, 232, 240)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    z = z - 10
    rng = np.random.default_rng(seed)

    def ball(a: float, b: float, c: float, y0: float = 0.0, z0: float = 0.0) -> np.ndarray:
        return (x / a) ** 2 + ((y - y0) / b) ** 2 + ((z - z0) / c) ** 2 < 1

    image = np.zeros(x.shape)
    image[(x**2 + (y + 10) ** 2 < 55**2) & (z < -40)] = 40  # neck
    image[ball(40, 40, 60, 60, -60)] = 50  # face
    image[ball(76, 96, 90)] = 90  # scalp
    image[ball(70, 90, 84)] = 8  # skull
    image[ball(66, 86, 80)] = 60  # grey
    image[ball(56, 76, 70)] = 100  # white
    image[ball(30, 24, 22, -45, -25)] = 65  # cerebellum
    image[ball(50, 8, 60, 20, 10) & (np.abs(x) > 18)] = 62  # sulci
    for side in (-1, 1):
        image[((x - 10 * side) / 7) ** 2 + (y / 28) ** 2 + ((z - 12) / 10) ** 2 < 1] = 20  # ventricles
        image[((x - 24 * side) / 9) ** 2 + (y / 18) ** 2 + ((z - 2) / 12) ** 2 < 1] = 70  # deep grey
    image = np.abs(image + rng.normal(0, 1.5, image.shape))
    affine = np.diag([voxel_size, voxel_size, voxel_size, 1.0])
    return torch.from_numpy(image.astype(np.float32)), affine
