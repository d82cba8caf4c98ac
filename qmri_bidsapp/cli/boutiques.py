"""The Boutiques descriptor, generated from the parser so that the two cannot differ."""

from __future__ import annotations

import argparse
import json
from typing import Any

from qmri_bidsapp import __version__
from qmri_bidsapp.cli.parser import DESCRIPTION, build_parser
from qmri_bidsapp.config import LEVELS

_TYPES = {int: "Number", float: "Number"}
#: Inputs that name files or folders, which a platform must provide.
_FILES = ("bids_dir", "bids_filter_file", "bids_database_dir", "use_plugin", "config_file")


def build_descriptor() -> dict[str, Any]:
    """Return the descriptor (schema version 0.5)."""
    actions = [a for a in build_parser()._actions if a.dest not in ("help", "version")]
    inputs = [_input(action) for action in actions]
    return {
        "name": "qmri_bidsapp",
        "tool-version": __version__,
        "author": "The qmri_bidsapp developers",
        "description": DESCRIPTION,
        "schema-version": "0.5",
        "command-line": "qmri-bids " + " ".join(item["value-key"] for item in inputs),
        "inputs": inputs,
        "output-files": [
            {
                "id": "output_folder",
                "name": "Output folder",
                "description": "Derivatives data set: maps, reports (sub-*.html), logs",
                "path-template": "[OUTPUT_DIR]",
            }
        ],
        "suggested-resources": {"cpu-cores": 2, "ram": 8, "walltime-estimate": 3600},
        "tags": {"domain": ["neuroinformatics", "mri"]},
        "error-codes": [
            {"code": 1, "description": "Some participant failed"},
            {"code": 16, "description": "Invalid BIDS"},
            {"code": 17, "description": "Unknown analysis level"},
            {"code": 18, "description": "Nothing matched"},
            {"code": 64, "description": "Usage"},
            {"code": 66, "description": "Input missing"},
            {"code": 73, "description": "Output cannot be written"},
        ],
    }


def _input(action: argparse.Action) -> dict[str, Any]:
    flag = next((option for option in reversed(action.option_strings)), None)
    is_flag = action.nargs == 0 and action.dest != "verbose"
    entry: dict[str, Any] = {
        "id": action.dest,
        "name": action.dest.replace("_", " "),
        "description": (action.help or "").replace("%%", "%"),
        "type": "Flag" if is_flag or action.dest == "verbose" else _TYPES.get(action.type, "String"),  # type: ignore[arg-type]
        "value-key": f"[{action.dest.upper()}]",
        "optional": flag is not None,
    }
    if action.dest in _FILES:
        entry["type"] = "File"
    if flag:
        entry["command-line-flag"] = flag
    choices = LEVELS if action.dest == "analysis_level" else action.choices
    if choices:
        entry["value-choices"] = list(choices)
    if action.nargs == "+":
        entry["list"] = True
    return entry


def descriptor_text() -> str:
    """Return the descriptor as JSON."""
    return json.dumps(build_descriptor(), indent=2) + "\n"
