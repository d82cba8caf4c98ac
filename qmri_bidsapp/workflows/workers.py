"""Worker processes of this machine that survive the death of one of them."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from traceback import format_exception
from typing import Any

from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer, run_node

DEATH = (
    "WorkerDiedError: the process that did this step was killed, most likely for lack of memory; run fewer steps at "
    "once (--nprocs), or give more memory."
)


class Workers(MultiProcPlugin):  # type: ignore[misc]
    """Nipype's plugin for processes, with one difference: a killed worker is noticed.

    Its pool is then broken, and nipype would wait for the tasks of the pool for ever. Here they are started once more,
    each in a process of its own, so that only the task at fault fails and the others finish.
    """

    pool: ProcessPoolExecutor

    def __init__(self, plugin_args: dict[str, Any]) -> None:
        super().__init__(plugin_args=plugin_args)
        self._stopped = False

    def stop(self) -> None:
        """Start nothing more."""
        self._stopped = True

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._taskid += 1
        task = (node, updatehash, self._taskid)
        try:
            self._submit(self.pool, task, is_second=False)
        except BrokenProcessPool:
            self.pool = self._new_pool(self.processors)
            self._submit(self.pool, task, is_second=False)
        return int(self._taskid)

    def _new_pool(self, n_workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            n_workers,
            mp_context=multiprocessing.get_context(self.plugin_args.get("mp_context")),
            initializer=process_initializer,
            initargs=(self._cwd,),
        )

    def _submit(self, pool: ProcessPoolExecutor, task: tuple[Any, bool, int], *, is_second: bool) -> None:
        future = pool.submit(run_node, *task)
        self._task_obj[task[2]] = future
        future.add_done_callback(lambda done: self._finish(done, pool, task, is_second=is_second))

    def _finish(
        self, done: Future[Any], pool: ProcessPoolExecutor, task: tuple[Any, bool, int], *, is_second: bool
    ) -> None:
        """Store a result, or start the task again if its process died."""
        if self._stopped:
            return
        try:
            self._taskresult[task[2]] = done.result()
        except (BrokenProcessPool, CancelledError):
            if is_second:
                self._taskresult[task[2]] = {"result": None, "traceback": [DEATH], "taskid": task[2]}
            else:
                self._submit(self._new_pool(1), task, is_second=True)
                return
        except Exception as error:
            # Nipype's own code failed on the other side; without a result the run would wait for ever.
            self._taskresult[task[2]] = {"result": None, "traceback": format_exception(error), "taskid": task[2]}
        if is_second:
            pool.shutdown(wait=False)
