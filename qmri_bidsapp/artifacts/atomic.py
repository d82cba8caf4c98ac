"""Atomic writes: a file or folder appears complete or not at all, whatever interrupts its writing.

New content is written under a temporary name beside its target and then renamed, which POSIX does in one step.
Temporary names come from `tempfile`: random, and created exclusively. Process ids would not do: hosts or containers
that share a file system can have equal ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Start of the name of every temporary folder.
PREFIX = ".tmp-"


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write a file to; rename it to `path` if the body succeeds.

    Parameters
    ----------
    path : path
        Target. Its folder is made if missing; an existing file is replaced.

    Yields
    ------
    Path
        A file yet to be written, with the name of the target (writers that choose the format by the extension work),
        alone in a temporary folder beside it.

    Raises
    ------
    OSError
        If the file cannot be written or renamed. The target is then unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=path.parent) as scratch:
        temporary = Path(scratch) / path.name
        yield temporary
        temporary.replace(path)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; rename it to `path` if the body succeeds.

    Parameters
    ----------
    path : path
        Target. Its parent is made if missing; an existing folder is replaced with all that it holds.

    Yields
    ------
    Path
        An empty folder.

    Raises
    ------
    OSError
        If the folder cannot be written or renamed. The target is then unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=path.parent) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        yield new
        # A folder cannot be renamed over one that holds files.
        with suppress(FileNotFoundError):
            path.replace(old)
        try:
            new.replace(path)
        except OSError:
            if old.exists():
                old.replace(path)
            raise
