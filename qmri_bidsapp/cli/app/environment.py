"""Environment of a run: folders, caches, threads, logs, signals.

It is set up before heavy imports, since libraries read their environment variables on import.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from qmri_bidsapp.cli.exits import LOGGER
from qmri_bidsapp.errors import InputMissingError, OutputError

if TYPE_CHECKING:
    from qmri_bidsapp.config import Config

#: Variable with the cache folder of a library -> its subfolder in the work folder, since HOME may not be writable.
CACHES = {
    "MPLCONFIGDIR": "matplotlib",
    "DIPY_HOME": "dipy",
    "TORCH_HOME": "torch",
    "TEMPLATEFLOW_HOME": "templateflow",
    "NILEARN_DATA": "nilearn",
    "XDG_CACHE_HOME": "xdg",
}
#: Libraries start no threads on their own. Steps that benefit from several set them; elsewhere threads over small
#: matrices cost many times their gain once other processes share the cores.
THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
#: No library looks for updates or sends statistics, and figures need no display.
FIXED = {"NIPYPE_NO_ET": "1", "NO_ET": "1", "TEMPLATEFLOW_AUTOUPDATE": "0", "MPLBACKEND": "Agg"}


def prepare(config: Config) -> None:
    """Create the folders, configure the libraries, and open the log.

    Raises
    ------
    InputMissingError
        If the input folder does not exist. Nothing is created then.
    OutputError
        If the output or the work folder cannot be written, or the one for temporary files cannot be used.
    """
    from qmri_bidsapp.bids.derivatives import check_output_dir

    if not config.bids_dir.is_dir():
        raise InputMissingError(f"The BIDS folder {config.bids_dir} does not exist.")
    _check_temporary_folder()
    _set_variables(config)
    check_output_dir(config.derivatives_dir, config.bids_dir)
    _make_folders(config)
    _open_log(config)


def _set_variables(config: Config) -> None:
    os.environ.update({name: str(_cache_dir(config) / folder) for name, folder in CACHES.items()})
    os.environ.update(dict.fromkeys(THREADS, "1"))
    # Otherwise nipype would read the user's settings, or fail to create a folder for them.
    os.environ.update(FIXED, NIPYPE_CONFIG_DIR=str(config.work_dir / "nipype"))


def _cache_dir(config: Config) -> Path:
    return config.work_dir / "caches"


def _check_temporary_folder() -> None:
    """Raise OutputError if ANTs would take the path of temporary files for a list of names."""
    folder = tempfile.gettempdir()
    found = [char for char in ",[]" if char in folder]
    if found:
        raise OutputError(
            f"The folder for temporary files, {folder}, has {' and '.join(found)} in its path, which ANTs takes for a "
            "list of names; set TMPDIR to another one."
        )


def _make_folders(config: Config) -> None:
    folders = {"work": config.work_dir, "log": config.log_dir}
    for what, folder in folders.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if what == "work":
                for name in CACHES.values():
                    (_cache_dir(config) / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            remedy = "; choose another with --work-dir" if what == "work" else ""
            raise OutputError(
                f"The {what} folder {folder} cannot be written ({error.strerror or error}){remedy}."
            ) from error


def _open_log(config: Config) -> None:
    """Log to the terminal and, in full, to ``logs/<run_id>.log``; write the configuration beside it."""
    try:
        file_handler = logging.FileHandler(config.log_dir / f"{config.run_id}.log", encoding="utf-8")
        (config.log_dir / f"{config.run_id}.toml").write_text(config.to_toml(), encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"The log folder {config.log_dir} cannot be written ({reason}).") from error
    file_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(logging.Formatter("%(message)s"))
    console.setLevel(logging.DEBUG if config.verbose else logging.INFO)
    LOGGER.setLevel(logging.DEBUG)
    LOGGER.handlers = [file_handler, console]
    LOGGER.propagate = False


def close_log() -> None:
    """Close the log."""
    for handler in list(LOGGER.handlers):
        handler.close()
        LOGGER.removeHandler(handler)


@contextmanager
def terminable() -> Iterator[None]:
    """Treat SIGTERM, with which batch systems and containers end a job, like Ctrl-C, so that workers stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
