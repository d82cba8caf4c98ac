"""Automatic derivatives of functions that treat all voxels alike."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

import torch

#: Forward differentiation keeps its nesting level per process, not per thread: only one thread may use it.
_FORWARD = Lock()


def derivatives(
    function: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a function's values, (n, ...), and its derivatives by its arguments, (n, ..., k).

    Parameters
    ----------
    function : callable
        Takes the (k,) arguments of one voxel.
    values : Tensor
        (n, k).
    """

    def single(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        result = function(value)
        return result, result

    with _FORWARD:
        slopes, results = torch.func.vmap(torch.func.jacfwd(single, has_aux=True))(values)
    return results, slopes
