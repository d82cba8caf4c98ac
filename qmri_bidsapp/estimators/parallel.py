"""Chunks of voxels, side by side in threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from qmri_bidsapp.core.maps import ParameterMaps
from qmri_bidsapp.models.base import SignalModel


def predict_chunks(
    model: SignalModel,
    std_kind: str,
    predict: Callable[[slice], ParameterMaps],
    n_voxels: int,
    *,
    largest: int,
    device: str,
    with_variance: bool = False,
) -> ParameterMaps:
    """Return the maps of all voxels from a function that returns those of a chunk; see `for_each_chunk`.

    `with_variance`: whether they hold the variance of residuals.
    """
    parameters = (*model.parameters, *model.derived)
    estimate, std = (np.empty((n_voxels, len(parameters)), dtype=np.float32) for _ in range(2))
    status = np.empty(n_voxels, dtype=np.uint8)
    variance = np.empty(n_voxels, dtype=np.float32) if with_variance else None
    maps = ParameterMaps(parameters, estimate, std, std_kind, status, variance=variance)
    for_each_chunk(lambda part: maps.fill(part, predict(part)), n_voxels, largest, device)
    return maps


def for_each_chunk(work: Callable[[slice], None], n_voxels: int, largest: int, device: str) -> None:
    """Do some work on all voxels, chunk by chunk, without gradients.

    A processor's threads are given a chunk each: torch would share single operations among them, and these are too
    short, on chunks that fit the cache, to be worth the hand-over. On other devices one chunk follows the other.

    Parameters
    ----------
    work : callable
        Takes the chunk as a slice of the voxels. Chunks must not influence each other.
    n_voxels : int
    largest : int
        Most voxels of a chunk.
    device : str
        Where the work is done.
    """
    n_threads = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
    # Equally many for every thread, and of one size, so that none waits long for the last.
    n_rounds = -(-n_voxels // (n_threads * largest))
    size = max(1, -(-n_voxels // (n_threads * max(1, n_rounds))))

    def run(first: int) -> None:
        with torch.no_grad():
            work(slice(first, first + size))

    starts = range(0, n_voxels, size)
    if min(n_threads, len(starts)) < 2:
        for first in starts:
            run(first)
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(run, starts))
    finally:
        torch.set_num_threads(n_threads)
