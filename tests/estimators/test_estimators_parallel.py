"""Chunks of voxels in threads, and the numbers of threads that torch keeps."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, current_thread, main_thread

import numpy as np
import pytest
import torch

from qmri_bidsapp.estimators.likelihood.varpro import VariableProjection
from qmri_bidsapp.estimators.parallel import for_each_chunk
from qmri_bidsapp.evaluation.standards import simulate, standard
from qmri_bidsapp.registry import get_model


@pytest.fixture(params=[1, 3])
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("n_voxels", [0, 1, 2, 7, 100, 101])
def test_every_voxel_is_worked_on_once_in_chunks_of_like_size(n_threads: int, n_voxels: int) -> None:
    visits, sizes = np.zeros(n_voxels, dtype=int), []

    def work(part: slice) -> None:
        visits[part] += 1
        sizes.append(len(visits[part]))

    for_each_chunk(work, n_voxels, 20, "cpu")
    assert (visits == 1).all()
    assert max(sizes, default=0) <= 20
    if n_voxels >= n_threads:
        assert len(sizes) >= n_threads
    assert torch.get_num_threads() == n_threads


def test_an_error_is_passed_on_and_threads_are_given_back(n_threads: int) -> None:
    def work(part: slice) -> None:
        raise ArithmeticError(str(part.start))

    with pytest.raises(ArithmeticError, match="0"):
        for_each_chunk(work, 100, 10, "cpu")
    assert torch.get_num_threads() == n_threads


def test_no_chunk_computes_gradients_and_threads_are_used(n_threads: int) -> None:
    seen = []

    def work(part: slice) -> None:
        seen.append((torch.is_grad_enabled(), torch.get_num_threads(), current_thread() is main_thread()))

    for_each_chunk(work, 100, 10, "cpu")
    assert set(seen) == {(False, 1, n_threads == 1)}


def test_maps_do_not_depend_on_the_number_of_threads(n_threads: int) -> None:
    """Up to rounding, which depends on how many voxels are multiplied at a time."""
    model, acquisition = get_model("t1"), standard("t1")
    signals = simulate(model, acquisition, 500)
    maps = VariableProjection(model).fit(acquisition).predict(signals)
    parts = [VariableProjection(model).fit(acquisition).predict(part) for part in np.split(signals, 10)]
    np.testing.assert_allclose(maps.estimate, np.concatenate([part.estimate for part in parts]), rtol=1e-3)
    assert (maps.status == np.concatenate([part.status for part in parts])).all()


def threads_of_a_new_thread() -> int:
    """The number of threads that torch uses in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_no_other_thread_is_limited_while_chunks_are_worked_on(n_threads: int) -> None:
    """The pool of the test is one of the callers; its numbers of threads, and those of new threads, stay."""
    inside, checked = Barrier(n_threads + 1), Barrier(n_threads + 1)
    limits = []

    def work(part: slice) -> None:
        inside.wait(30)
        limits.append(torch.get_num_threads())
        checked.wait(30)

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(for_each_chunk, work, n_threads, 1, "cpu")
        inside.wait(30)
        seen = (torch.get_num_threads(), threads_of_a_new_thread())
        checked.wait(30)
        call.result()
        assert pool.submit(torch.get_num_threads).result() == n_threads
    assert seen == (n_threads, n_threads)
    assert limits == [1] * n_threads
    assert (torch.get_num_threads(), threads_of_a_new_thread()) == (n_threads, n_threads)


def test_predictions_that_run_at_once_are_those_that_run_alone(n_threads: int) -> None:
    model, acquisition = get_model("t2"), standard("t2")
    estimator = VariableProjection(model).fit(acquisition)
    parts = np.split(simulate(model, acquisition, 2000), 8)
    alone = [estimator.predict(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(estimator.predict, parts))
    for first, second in zip(alone, together, strict=True):
        np.testing.assert_array_equal(second.estimate, first.estimate)
        np.testing.assert_array_equal(second.std, first.std)
    assert (torch.get_num_threads(), threads_of_a_new_thread()) == (n_threads, n_threads)
