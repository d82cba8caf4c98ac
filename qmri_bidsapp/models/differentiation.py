"""Automatic derivatives of functions that treat one voxel like the other."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

import torch

#: The level of forward differentiation is the process's, not the thread's: one thread at a time.
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
