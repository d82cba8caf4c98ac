"""What the commands of ``qmri evaluate`` share: what is done now, and a file of results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from qmri_bidsapp.cli.app.progress import CLEAR
from qmri_bidsapp.errors import OutputError


def show(what: str) -> None:
    """Show on a terminal what is done now."""
    if sys.stderr.isatty():
        print(f"{CLEAR}{what}\r", end="", file=sys.stderr, flush=True)


def check_json(path: Path | None) -> None:
    """Raise OutputError, before any work, if results cannot be written to a file of this name."""
    if path is None:
        return
    if not path.absolute().parent.is_dir():
        raise OutputError(f"--json: the folder of {path} does not exist.")
    if path.is_dir():
        raise OutputError(f"--json: {path} is a folder; name a file.")


def write_json(results: dict[str, Any], path: Path | None) -> None:
    """Write results, if a file is named.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    if path is None:
        return
    try:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--json: {path} cannot be written ({error.strerror}).") from error
