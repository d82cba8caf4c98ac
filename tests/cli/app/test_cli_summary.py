"""The cause of a crash, from nipype's crash files."""

from __future__ import annotations

import pytest

from qmri_bidsapp.cli.app.summary import crash_cause


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "Node: qmri_wf.fit\nnipype.pipeline.engine.nodes.NodeExecutionError: Exception raised\n\n"
            '\tTraceback (most recent call last):\n\t  File "a.py", line 3\n'
            "\tqmri_bidsapp.errors.InputError: a.nii.gz holds zeros only: exclude it.\n\n",
            "qmri_bidsapp.errors.InputError: a.nii.gz holds zeros only: exclude it.",
        ),
        ('Node: x\nMemoryError: \n  File "Error: y.py"\n', "MemoryError:"),
        ("Node: x\nKilled\n", "Killed"),
        ("", "no cause recorded"),
    ],
    ids=["nipype", "no message", "no error named", "empty"],
)
def test_crash_cause(tmp_path, text, cause):
    (tmp_path / "crash.txt").write_text(text)
    assert crash_cause(tmp_path / "crash.txt") == cause
