"""Running the graph: workers, progress, crash files, records, and clean-up."""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qmri_bidsapp import __version__
from qmri_bidsapp.workflows.base import (
    SubjectPlan,
    cache_dir,
    init_qmri_wf,
    record_dir,
    workflow_name,
)
from qmri_bidsapp.workflows.motion_score import why_no_score

if TYPE_CHECKING:
    from nipype.pipeline.engine import Workflow

    from qmri_bidsapp.config import Config
    from qmri_bidsapp.workflows.workers import Workers

LOGGER = logging.getLogger("qmri_bidsapp")
#: Seconds between two looks at the workers; nipype's default of 2 s would dominate short nodes.
POLL_SECONDS = 0.05
#: What every worker needs: loaded once in the fork server, not once per worker.
PRELOADED = ["nibabel", "nipype.pipeline.engine", "torch", "qmri_bidsapp.registry"]
NIPYPE_SETTINGS = """[logging]
workflow_level = ERROR
interface_level = ERROR
utils_level = ERROR
[execution]
check_version = false
"""


class ProgressLike(Protocol):
    """What shows the user how far the run is."""

    def start(self, subject: str, step: str) -> None:
        """Note that a step begins."""

    def end(self, subject: str, step: str) -> None:
        """Note that a step is done."""

    def fail(self, subject: str, step: str) -> None:
        """Note that a step failed."""


@dataclass
class RunResult:
    """What became of the subjects.

    Attributes
    ----------
    failed : dict
        Subject -> its crash files, sorted; subjects without a failure are absent.
    """

    failed: dict[str, list[str]] = field(default_factory=dict)


def run(
    config: Config, plans: tuple[SubjectPlan, ...], make_progress: Callable[[dict[str, int]], ProgressLike]
) -> RunResult:
    """Run every subject; a failed step stops what depends on it, and nothing else.

    Parameters
    ----------
    config : Config
    plans : tuple of SubjectPlan
    make_progress : callable
        Given subject -> number of steps, returns what shows the user how far the run is.

    Returns
    -------
    RunResult

    Raises
    ------
    KeyboardInterrupt
        Passed on after the workers were stopped.
    """
    crash_dirs = {item.subject: Path(config.log_dir) / f"sub-{item.subject}" / config.run_id for item in plans}
    for item in plans:
        shutil.rmtree(record_dir(config, item.subject), ignore_errors=True)
    work = _with_work(plans)
    if work:
        _run_workflow(config, work, make_progress, crash_dirs)
    result = RunResult()
    for item in plans:
        crashes = sorted(str(name) for name in crash_dirs[item.subject].glob("crash-*"))
        if crashes:
            result.failed[item.subject] = crashes
        _write_subject_record(config, item)
    # A run that was cut short leaves subjects without a crash that are not done either.
    is_complete = not (config.stop_on_first_crash and result.failed)
    if config.clean_workdir and is_complete:
        for item in plans:
            if item.subject not in result.failed:
                shutil.rmtree(cache_dir(config) / "qmri_wf" / workflow_name(item.subject), ignore_errors=True)
    return result


def _with_work(plans: tuple[SubjectPlan, ...]) -> tuple[SubjectPlan, ...]:
    return tuple(item for item in plans if not item.is_empty)


def _subject_of(node: Any) -> str:
    """Return the name of the subject's workflow that a node belongs to."""
    return str(node.fullname).split(".")[1]


def _run_workflow(
    config: Config,
    plans: tuple[SubjectPlan, ...],
    make_progress: Callable[[dict[str, int]], ProgressLike],
    crash_dirs: dict[str, Path],
) -> None:
    _configure_nipype(config)
    # Not before: loading nipype reads its settings.
    from qmri_bidsapp.workflows.workers import Workers

    wf = init_qmri_wf(config, plans, crash_dirs)
    plugin, plugin_args = _plugin(config)
    plugin_args["status_callback"] = _Callback(wf, plans, make_progress, crash_dirs)
    workers = Workers(plugin_args) if plugin == "MultiProc" else None
    # Nipype collects garbage before each step: without all that is loaded by now, 0.2 s of every step is saved.
    gc.freeze()
    try:
        wf.run(plugin=workers or plugin, plugin_args=plugin_args)
    except KeyboardInterrupt:
        _stop_workers(workers)
        raise
    except Exception as error:
        # nipype raises once all that could run has run; a crash file tells more about each failure.
        if not any(folder.glob("crash-*") for folder in crash_dirs.values()):
            raise
        LOGGER.debug("Nipype ended with: %s", error)
        if config.stop_on_first_crash:
            _stop_workers(workers)
    finally:
        gc.unfreeze()


def _configure_nipype(config: Config) -> None:
    """Set nipype up here and, through the environment, in the workers."""
    settings = Path(config.work_dir) / "nipype"
    settings.mkdir(parents=True, exist_ok=True)
    (settings / "nipype.cfg").write_text(NIPYPE_SETTINGS)
    os.environ["NIPYPE_CONFIG_DIR"] = str(settings)
    os.environ["NIPYPE_NO_ET"] = "1"
    from nipype import config as nipype_config
    from nipype import logging as nipype_logging

    execution = {
        "check_version": False,
        "crashfile_format": "txt",
        "hash_method": "content",
        "poll_sleep_duration": POLL_SECONDS,
        "remove_unnecessary_outputs": False,
        "stop_on_first_crash": config.stop_on_first_crash,
    }
    levels = {f"{name}_level": "ERROR" for name in ("workflow", "interface", "utils")}
    nipype_config.update_config({"execution": execution, "logging": levels})
    nipype_logging.update_logging(nipype_config)
    # Crashes are reported by our own lines, with the cause; nipype would repeat them with a page of traceback.
    logging.getLogger("nipype.workflow").setLevel(logging.CRITICAL)


def _plugin(config: Config) -> tuple[str, dict[str, Any]]:
    """Return nipype's plugin and its arguments: those of the user's file, or workers on this machine."""
    if config.use_plugin:
        import yaml

        settings = yaml.safe_load(Path(config.use_plugin).read_text())
        return str(settings["plugin"]), dict(settings.get("plugin_args", {}))
    # A forked process would inherit CUDA contexts and running threads.
    multiprocessing.set_forkserver_preload(PRELOADED)
    return "MultiProc", {
        "n_procs": config.nprocs,
        "memory_gb": config.mem_gb,
        "n_gpu_procs": 1 if config.torch_device.startswith("cuda") else 0,
        "raise_insufficient": False,
        "mp_context": "forkserver",
    }


def _stop_workers(workers: Workers | None) -> None:
    """End the worker processes, and what they started, without waiting for their tasks."""
    import psutil

    if workers:
        workers.stop()
    # The fork server's own helper ends by itself; killed, it would be started again and complain.
    parents = [child for child in psutil.Process().children() if not _is_resource_tracker(child)]
    doomed = list(parents)
    with contextlib.suppress(psutil.NoSuchProcess):
        for parent in parents:
            # Stopped, the fork server cannot start one more worker while they are counted.
            parent.suspend()
            doomed += parent.children(recursive=True)
    for process in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(doomed, timeout=3)


def _is_resource_tracker(process: Any) -> bool:
    import psutil

    try:
        return any("resource_tracker" in word for word in process.cmdline())
    except psutil.Error:
        return True


class _Callback:
    """Turns nipype's events into progress and into one log per subject."""

    def __init__(
        self,
        wf: Workflow,
        plans: tuple[SubjectPlan, ...],
        make_progress: Callable[[dict[str, int]], ProgressLike],
        crash_dirs: dict[str, Path],
    ) -> None:
        self._subjects = {workflow_name(item.subject): item.subject for item in plans}
        totals = {
            self._subjects[part.name]: sum(hasattr(node, "title") for node in part._get_all_nodes())
            for part in wf._graph.nodes()
        }
        self._progress = make_progress(totals)
        self._logs = {subject: folder.with_suffix(".log") for subject, folder in crash_dirs.items()}

    def __call__(self, node: Any, status: str) -> None:
        """Take one event: ``start``, ``end`` or ``exception``."""
        title = getattr(node, "title", None)
        if title is None:
            return
        subject = self._subjects[_subject_of(node)]
        report = {"start": self._progress.start, "end": self._progress.end, "exception": self._progress.fail}
        report[status](subject, title)
        log = self._logs[subject]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as stream:
            stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {status:<9} {title} ({node.fullname})\n")


def _write_subject_record(config: Config, item: SubjectPlan) -> None:
    """Gather the parts of the record that the steps of a participant left, and write it and ``scans.tsv``."""
    from qmri_bidsapp.bids.record import ProblemRecord
    from qmri_bidsapp.bids.record_files import gather_record, write_record
    from qmri_bidsapp.bids.scans_table import write_scans

    problems = [
        ProblemRecord(problem.message, problem.kind, problem.file, problem.severity) for problem in item.inputs.problems
    ]
    problems += [ProblemRecord(message) for message in item.errors]
    notes = [f"{part.group.name} was left out: no chosen model applies." for part in item.series if not part.fits]
    if item.t1w and item.motion_weights is None:
        notes.append(why_no_score(config))
    record = gather_record(record_dir(config, item.subject), item.subject, __version__, problems, notes)
    write_record(record, Path(config.derivatives_dir))
    if item.motion_weights is not None:
        write_scans(Path(config.derivatives_dir), record.motion_scores, item.motion_weights.about)
