"""Chunks of voxels, side by side in threads.

Torch keeps two numbers of threads: that of each thread, for its own operations, and that which threads take over at
their first operation. `torch.set_num_threads` sets both. Workers here limit themselves to one thread, and the caller
then sets the second number to what it was; neither the caller nor any other thread that has used torch is affected.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock

import numpy as np
import torch

from qmri_bidsapp.core.maps import ParameterMaps
from qmri_bidsapp.models.base import SignalModel

#: Held while workers start, when a new thread would take over their number of threads.
_STARTING = Lock()
#: Seconds in which workers start; more means that the machine refuses threads.
_START_TIMEOUT = 60.0


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
    """Return the maps of all voxels, chunk by chunk; see `for_each_chunk`.

    Parameters
    ----------
    model, std_kind
        For the maps.
    predict : callable
        Returns the maps of a chunk.
    n_voxels, largest, device
        As for `for_each_chunk`.
    with_variance : bool
        Whether maps hold the noise variance from residuals.
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

    On a processor each thread gets a chunk. Torch would split single operations among threads instead, and these are
    too short, on chunks that fit the cache, to be worth it. On other devices chunks follow one another. Several calls
    may run at once, in threads of their own: none changes the results of another.

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
    with _STARTING:
        n_threads = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
    # Equally many for every thread, and of one size, so that none waits long for the last.
    n_rounds = -(-n_voxels // (n_threads * largest))
    size = max(1, -(-n_voxels // (n_threads * max(1, n_rounds))))

    def run(first: int) -> None:
        with torch.no_grad():
            work(slice(first, first + size))

    starts = range(0, n_voxels, size)
    n_workers = min(n_threads, len(starts))
    if n_workers < 2:
        for first in starts:
            run(first)
        return
    started = Barrier(n_workers + 1)

    def limit() -> None:
        # The first operation of a thread takes over the shared number: it must not come after the limit.
        torch.get_num_threads()
        torch.set_num_threads(1)
        started.wait(_START_TIMEOUT)

    with ThreadPoolExecutor(n_workers, initializer=limit) as pool:
        with _STARTING:
            results = pool.map(run, starts)
            started.wait(_START_TIMEOUT)
            # For threads that use torch for the first time.
            torch.set_num_threads(n_threads)
        for _ in results:
            pass
