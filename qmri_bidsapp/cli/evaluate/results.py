"""Shared by the commands of ``qmri evaluate``: options, a line of progress, a JSON file of results."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from qmri_bidsapp.cli.app.progress import CLEAR
from qmri_bidsapp.errors import OutputError, UsageError


def show(what: str) -> None:
    """Show the current step, if stderr is a terminal."""
    if sys.stderr.isatty():
        print(f"{CLEAR}{what}\r", end="", file=sys.stderr, flush=True)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to a file")


def add_voxel_counts(parser: argparse.ArgumentParser, voxels: str) -> None:
    """Add ``--voxels``, described by `voxels`, and ``--reference``; see `voxel_counts`."""
    parser.add_argument("--voxels", type=int, metavar="N", help=f"{voxels} (default: 4000)")
    parser.add_argument("--reference", type=int, metavar="N", help="voxels of the certificate (default: 32768)")


def voxel_counts(n: int | None, default: int, n_reference: int | None) -> tuple[int, int]:
    """Return the number of measured voxels and of voxels of a certificate, with the defaults filled in.

    Raises
    ------
    UsageError
        If there are fewer than 100 measured voxels, or fewer than 1000 of the certificate.
    """
    from qmri_bidsapp.uncertainty.certificate import N_VOXELS

    n = default if n is None else n
    n_reference = N_VOXELS if n_reference is None else n_reference
    if n < 100 or n_reference < 1000:
        raise UsageError(f"--voxels must be at least 100 and --reference 1000, got {n} and {n_reference}.")
    return n, n_reference


def check_json(path: Path | None) -> None:
    """Check, before any work, that results can be written to a file.

    Raises
    ------
    OutputError
        If its folder does not exist, or if it is a folder.
    """
    if path is None:
        return
    if not path.absolute().parent.is_dir():
        raise OutputError(f"--json: the folder of {path} does not exist.")
    if path.is_dir():
        raise OutputError(f"--json: {path} is a folder, not a file; choose another name.")


def write_json(results: dict[str, Any], path: Path | None) -> None:
    """Write results as JSON, unless the path is None.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    if path is None:
        return
    try:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--json: {path} cannot be written ({error.strerror}).") from error
