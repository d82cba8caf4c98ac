"""Planes of the simulated images of a training, made by parallel processes and kept in files."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qmri_bidsapp.artifacts.atomic import atomic_file
from qmri_bidsapp.motion.network import plane_range
from qmri_bidsapp.motion.network_input import BRIGHTEST, GRID, Grid
from qmri_bidsapp.motion.training.samples import Head, draw_samples

#: Folder of the files, within that of a training.
FOLDER = "samples"
#: Planes kept of each orientation of an image.
N_PLANES = 12

Planes: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class PlaneSet:
    """Planes of simulated images, with their scores.

    Attributes
    ----------
    x, y, z : ndarray
        (image, plane, height, width) planes across each axis, from `to_bytes`.
    scores : ndarray
        (image,) mm.
    profiles : ndarray
        (image, value) see `samples.profile_of`.
    """

    x: Planes
    y: Planes
    z: Planes
    scores: npt.NDArray[np.float32]
    profiles: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scores)


def to_bytes(planes: Tensor) -> Planes:
    """Return planes as bytes of their square root: finer steps where they are dark, to preserve ghosts in air."""
    return (255 * (planes / BRIGHTEST).sqrt()).round().to(torch.uint8).cpu().numpy()


class Simulator:
    """Simulated images of the rounds of a training; those of a round depend only on the seed and its number.

    Parameters
    ----------
    heads : sequence of Head
    directory : Path
        Folder of the training.
    seed : int
    heads_per_round, samples_per_head : int
        Number of new images in a round: their product.
    kept : int
        Number of latest rounds whose images are used; older files are deleted.
    n_processes : int
        Processes on the CPU; only this process uses a GPU.
    grid : Grid
    """

    def __init__(
        self,
        heads: Sequence[Head],
        directory: Path,
        *,
        seed: int,
        heads_per_round: int = 16,
        samples_per_head: int = 8,
        kept: int = 96,
        n_processes: int = 1,
        grid: Grid = GRID,
    ) -> None:
        self._heads, self._grid, self._folder, self._seed = heads, grid, directory / FOLDER, seed
        self._heads_per_round, self._samples_per_head, self._kept = heads_per_round, samples_per_head, kept
        self._n_processes = 1 if heads[0].volume.is_cuda else n_processes
        self._parts: dict[int, PlaneSet] = {}

    @contextmanager
    def running(self) -> Iterator[Callable[[int], list[PlaneSet]]]:
        """Provide a function: number of a round -> images used in it; processes run meanwhile."""
        self._folder.mkdir(exist_ok=True)
        arguments = (self._heads, self._grid)
        if self._n_processes == 1:
            _begin(*arguments)
            yield lambda number: self._up_to(number, map)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self._n_processes, context, initializer=_begin_process, initargs=arguments) as others:
            yield lambda number: self._up_to(number, others.map)

    def _up_to(self, number: int, apply: Callable[..., Any]) -> list[PlaneSet]:
        first = max(0, number + 1 - self._kept)
        for old in [key for key in self._parts if key < first]:
            del self._parts[old]
            self._file(old).unlink(missing_ok=True)
        for key in range(first, number + 1):
            if key not in self._parts:
                part = self._read(key)
                self._parts[key] = self._make(key, apply) if part is None else part
        return list(self._parts.values())

    def _read(self, number: int) -> PlaneSet | None:
        path = self._file(number)
        if not path.exists():
            return None
        with np.load(path) as stored:
            return PlaneSet(**stored)

    def _make(self, number: int, apply: Callable[..., Any]) -> PlaneSet:
        seeds = [[self._seed, number, i] for i in range(self._heads_per_round)]
        parts = list(apply(_simulate, seeds, [self._samples_per_head] * len(seeds)))
        whole = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(PlaneSet)
        }
        with atomic_file(self._file(number)) as temporary:
            np.savez(temporary, **whole)
        return PlaneSet(**whole)

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:05d}.npz"


_SHARED: dict[str, Any] = {}


def _begin(heads: Sequence[Head], grid: Grid) -> None:
    """Set what all simulations of a process need."""
    _SHARED.update(heads=heads, grid=grid)


def _begin_process(heads: Sequence[Head], grid: Grid) -> None:
    torch.set_num_threads(1)
    _begin(heads, grid)


def _simulate(seed: Sequence[int], n: int) -> PlaneSet:
    rng = np.random.default_rng(seed)
    planes: list[list[Planes]] = [[], [], []]
    scores, profiles = [], []
    for image, score, profile in draw_samples(_SHARED["heads"], n, rng, _SHARED["grid"]):
        for axis, kept in enumerate(planes):
            first, end = plane_range(image.shape[axis])
            # One random plane of each of `N_PLANES` equal parts.
            places = first + (np.arange(N_PLANES) + rng.uniform(size=N_PLANES)) * (end - first) / N_PLANES
            kept.append(to_bytes(image.movedim(axis, 0)[places.astype(int).tolist()]))
        scores.append(score)
        profiles.append(profile)
    x, y, z = (np.stack(kept) for kept in planes)
    return PlaneSet(x, y, z, np.array(scores, dtype=np.float32), np.stack(profiles).astype(np.float32))
