"""Does the orientation of a head match its header? Compare its coarse image with training heads in all orientations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations, product

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from qmri_bidsapp.motion.displacement import Floats

#: Voxels of the network's input per coarse voxel along each axis: coarse voxels have 12 mm.
BLOCK = 10


def mean_heads(images: Sequence[Tensor], domains: Sequence[str]) -> Tensor:
    """Return the coarse mean image of each domain.

    Parameters
    ----------
    images : sequence of Tensor
        (x, y, z) inputs of the network, without simulated motion.
    domains : sequence of str
        (image,).

    Returns
    -------
    Tensor
        (domain, x / BLOCK, y / BLOCK, z / BLOCK).
    """
    coarse = [_coarse(image) for image in images]
    means = [
        torch.stack([image for image, other in zip(coarse, domains, strict=True) if other == domain]).mean(0)
        for domain in sorted(set(domains))
    ]
    return torch.stack(means)


def is_misoriented(image: Tensor, heads: Tensor) -> bool:
    """Return whether a head correlates better with a rotated or mirrored training head than with an upright one.

    An exchange of left and right goes unnoticed: heads are too symmetric.

    Parameters
    ----------
    image : Tensor
        (x, y, z) input of the network.
    heads : Tensor
        From `mean_heads`.
    """
    seen = _cube(_coarse(image).double().numpy())
    known = [_cube(head) for head in heads.double().numpy()]
    upright = max(_correlation(seen, head) for head in known)
    return any(_correlation(seen, turned) > upright for head in known for turned in _turned(head))


def _coarse(image: Tensor) -> Tensor:
    return avg_pool3d(image[None].float(), min(BLOCK, min(image.shape)))[0].cpu()


def _cube(image: Floats) -> Floats:
    """Return the central cube."""
    n = min(image.shape)
    return image[tuple(slice((m - n) // 2, (m - n) // 2 + n) for m in image.shape)]


def _turned(cube: Floats) -> Iterator[Floats]:
    """Yield a cube with its axes permuted and flipped in all ways, but for the identity and the left-right flip."""
    for order, steps in product(permutations(range(3)), product((1, -1), repeat=3)):
        if order != (0, 1, 2) or steps[1:] != (1, 1):
            yield cube.transpose(order)[:: steps[0], :: steps[1], :: steps[2]]


def _correlation(one: Floats, other: Floats) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
