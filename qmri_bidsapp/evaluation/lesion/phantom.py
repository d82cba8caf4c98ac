"""Brain with a lesion in white matter, from a simulated head of the demo."""

from __future__ import annotations

import numpy as np

from qmri_bidsapp.demo.phantom import make_head
from qmri_bidsapp.evaluation.lesion.lesion import Brain

#: The head: voxel size (mm), seed, and minimum fraction of white matter in a white-matter voxel.
VOXEL_SIZE = 2.0
SEED = 0
WHITE = 0.9


def make_brain() -> Brain:
    """Return the slab of a simulated head that contains the lesion."""
    head = make_head(2, VOXEL_SIZE, seed=SEED)
    levels = np.flatnonzero(head.lesion.any(axis=(0, 1)))
    slab = np.s_[..., levels[0] : levels[-1] + 1]
    values = np.stack([head.parameters[name][slab] for name in ("fraction", "diffusivity")], axis=-1)
    is_white = (head.fractions["wm"] >= WHITE) & ~(head.lesion | head.unmodelled)
    return Brain(values, head.brain[slab], is_white[slab], head.lesion[slab])
