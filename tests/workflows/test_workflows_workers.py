from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from nipype.interfaces.utility import Function, Rename
from nipype.pipeline.engine import Node, Workflow

from qmri_bidsapp.workflows.workers import Workers


def wait_and_answer(value: int) -> int:
    import time

    time.sleep(1.0)
    return value + 1


def die(value: int) -> int:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)
    return value


def node(name: str, function: object) -> Node:
    return Node(Function(function=function, input_names=["value"], output_names=["out"]), name=name)


def run(wf: Workflow, folder: Path) -> tuple[list[str], str]:
    """Run, expecting one failure; return the steps that ended well, and the text of the failure."""
    wf.config["execution"] = {"crashdump_dir": str(folder), "crashfile_format": "txt", "poll_sleep_duration": 0.05}
    ended: list[str] = []

    def note(done: Node, status: str) -> None:
        if status == "end":
            ended.append(done.name)

    multiprocessing.set_forkserver_preload(["nipype.pipeline.engine"])
    workers = Workers({"n_procs": 2, "mp_context": "forkserver", "memory_gb": 8, "status_callback": note})
    with pytest.raises(RuntimeError):
        wf.run(plugin=workers)
    (crash,) = folder.glob("crash-*")
    return sorted(ended), crash.read_text()


def test_a_killed_worker_fails_its_own_step_and_no_other(tmp_path: Path) -> None:
    """Without the plug-in this would wait for ever."""
    wf = Workflow("wf", base_dir=str(tmp_path))
    killed, after_killed = node("killed", die), node("after_killed", wait_and_answer)
    steady, after_steady = node("steady", wait_and_answer), node("after_steady", wait_and_answer)
    killed.inputs.value = steady.inputs.value = 1
    wf.connect([(killed, after_killed, [("out", "value")]), (steady, after_steady, [("out", "value")])])
    ended, crash = run(wf, tmp_path)
    assert ended == ["after_steady", "steady"]
    assert "lack of memory" in crash


def test_a_step_that_cannot_even_begin_fails(tmp_path: Path) -> None:
    """A mandatory input is missing; nipype itself then stumbles over the result that is not there."""
    wf = Workflow("wf", base_dir=str(tmp_path))
    steady = node("steady", wait_and_answer)
    steady.inputs.value = 1
    wf.add_nodes([steady, Node(Rename(format_string="x"), name="incomplete")])
    ended, crash = run(wf, tmp_path)
    assert ended == ["steady"]
    assert "in_file" in crash
