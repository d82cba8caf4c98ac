"""Input and output of the published model of the motion score, a TorchScript file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qmri_bidsapp.errors import InputError, WeightsError
from qmri_bidsapp.motion.displacement import Floats
from qmri_bidsapp.motion.network import N_BINS
from qmri_bidsapp.motion.network_input import Grid, find_head, reorient, resample

#: Input of the published model.
PUBLISHED_GRID = Grid(1.0, (160, 192, 160), ((0, 0), (0, 0), (0, 0)))


def make_input(volume: Tensor, affine: Floats) -> Tensor:
    """Return the input of the published model: the head on its grid, scaled to [0, 1]."""
    turned, size = reorient(volume, affine)
    voxel_size, grid = size.tolist(), PUBLISHED_GRID
    centre = find_head(turned, voxel_size, grid)
    image = resample(turned, voxel_size, centre.tolist(), grid.shape, grid.spacing).clamp_min(0)
    return (image - image.min()) / (image.max() - image.min()).clamp_min(1e-12)


def log_probability(model: Callable[[Tensor], Any], image: Tensor) -> Tensor:
    """Return log-probabilities; the model may output log-probabilities, probabilities or logits."""
    try:
        output = model(image[:, None].float())
    except RuntimeError as error:
        raise WeightsError(
            f"The model does not accept 160 x 192 x 160 voxels ({str(error).splitlines()[-1]})."
        ) from error
    if not isinstance(output, Tensor):
        raise WeightsError(f"The model returns a {type(output).__name__}, not a tensor of {N_BINS} bins.")
    output = output.flatten(1)
    if output.shape[1] != N_BINS:
        raise WeightsError(f"The model returns {output.shape[1]} numbers, not {N_BINS} bins.")
    if not torch.isfinite(output).all():
        raise InputError("The output of the model for this image is not finite: exclude the image.")
    if bool((output >= 0).all()) and abs(float(output.sum()) - len(output)) < 1e-3:
        return output.clamp_min(1e-12).log()
    return torch.log_softmax(output, dim=1)
