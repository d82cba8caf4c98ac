"""Execution of the graph: workers, progress, crash files, records and clean-up."""

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
#: Seconds between polls of the workers; the default of nipype, 2 s, would dominate short nodes.
POLL_SECONDS = 0.05
#: Modules that every worker needs, loaded once in the fork server instead of once per worker.
PRELOADED = ["nibabel", "nipype.pipeline.engine", "torch", "qmri_bidsapp.registry"]
NIPYPE_SETTINGS = """[logging]
workflow_level = ERROR
interface_level = ERROR
utils_level = ERROR
[execution]
check_version = false
"""


class ProgressLike(Protocol):
    """Shows the progress of the run to the user."""

    def start(self, subject: str, step: str) -> None:
        """Note that a step begins."""

    def end(self, subject: str, step: str) -> None:
        """Note that a step is done."""

    def fail(self, subject: str, step: str) -> None:
        """Note that a step failed."""


@dataclass
class RunResult:
    """Outcome of a run.

    Attributes
    ----------
    failed : dict
        Participant -> its crash files, sorted; participants without a failure are absent.
    """

    failed: dict[str, list[str]] = field(default_factory=dict)


def run(
    config: Config, plans: tuple[SubjectPlan, ...], make_progress: Callable[[dict[str, int]], ProgressLike]
) -> RunResult:
    """Run every participant; a failed step stops only the steps that depend on it.

    Parameters
    ----------
    config : Config
    plans : tuple of SubjectPlan
    make_progress : callable
        Participant -> number of steps, to the object that shows the progress.

    Returns
    -------
    RunResult

    Raises
    ------
    KeyboardInterrupt
        Raised again after the workers were stopped.
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
    # If the run stopped at the first crash, participants without a crash are unfinished too.
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
    # Import only now: nipype reads its settings on import.
    from qmri_bidsapp.workflows.workers import Workers

    wf = init_qmri_wf(config, plans, crash_dirs)
    plugin, plugin_args = _plugin(config)
    plugin_args["status_callback"] = _Callback(wf, plans, make_progress, crash_dirs)
    workers = Workers(plugin_args) if plugin == "MultiProc" else None
    # Nipype collects garbage before each step. Exempting all objects loaded so far saves 0.2 s per step.
    gc.freeze()
    try:
        wf.run(plugin=workers or plugin, plugin_args=plugin_args)
    except KeyboardInterrupt:
        _stop_workers(workers)
        raise
    except Exception as error:
        # Nipype raises after all steps that could run; the crash files have the details.
        if not any(folder.glob("crash-*") for folder in crash_dirs.values()):
            raise
        LOGGER.debug("Nipype ended with: %s", error)
        if config.stop_on_first_crash:
            _stop_workers(workers)
    finally:
        gc.unfreeze()


def _configure_nipype(config: Config) -> None:
    """Configure nipype in this process and, through the environment, in the workers."""
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
    # The app reports crashes in one line each; nipype would repeat them with the traceback.
    logging.getLogger("nipype.workflow").setLevel(logging.CRITICAL)


def _plugin(config: Config) -> tuple[str, dict[str, Any]]:
    """Return the plugin of nipype and its arguments: from the file of the user, or workers on this machine."""
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
    """End the worker processes and their children without waiting for their tasks."""
    import psutil

    if workers:
        workers.stop()
    # The resource tracker of the fork server ends by itself; killed, it would restart and complain.
    parents = [child for child in psutil.Process().children() if not _is_resource_tracker(child)]
    doomed = list(parents)
    with contextlib.suppress(psutil.NoSuchProcess):
        for parent in parents:
            # A suspended fork server cannot start another worker meanwhile.
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
    """Turns events of nipype into progress and one log per participant."""

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
        """Handle one event: ``start``, ``end`` or ``exception``."""
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
