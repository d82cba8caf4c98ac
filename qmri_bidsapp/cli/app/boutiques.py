"""Boutiques descriptor (schema 0.5), generated from the parser so that the two cannot differ.

It has no ``default-value``: a platform would put every default on the command line, where it overrides a
configuration file. It has no ``container-image`` either, since no image is published.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from qmri_bidsapp import __version__, errors
from qmri_bidsapp.cli.app.parser import DESCRIPTION, build_parser
from qmri_bidsapp.config import IGNORED, LAYOUTS, LEVELS, STEPS

#: Inputs that name files or folders, which a platform must provide.
FILES = ("bids_dir", "bids_filter_file", "bids_database_dir", "motion_weights", "qc_head", "use_plugin", "config_file")
#: Actions of the parser that only print and exit.
NOT_INPUTS = ("help", "version")
#: Values that the program checks itself, so that they can be separated by commas or have an exit code of their own.
CHOICES = {"analysis_level": LEVELS, "skip": tuple(STEPS), "ignore": tuple(IGNORED)}
MEANINGS = {
    errors.EXIT_PARTICIPANT_FAILED: "Some participant failed",
    errors.InvalidBIDSError.exit_code: "The input folder is not a valid BIDS data set",
    errors.UnknownLevelError.exit_code: "Unknown analysis level",
    errors.NothingMatchedError.exit_code: "The labels or filters match no data",
    errors.UsageError.exit_code: "The command line or the configuration file cannot be understood",
    errors.InputMissingError.exit_code: "A named file or folder does not exist",
    errors.OutputError.exit_code: "The output or work folder cannot be written",
    errors.EXIT_INTERRUPTED: "Interrupted",
}


def build_descriptor() -> dict[str, Any]:
    """Return the descriptor."""
    parser = build_parser()
    inputs = [_input(action) for action in parser._actions if action.dest not in NOT_INPUTS]
    return {
        "name": "qmri_bidsapp",
        "tool-version": __version__,
        "author": "The qmri_bidsapp developers",
        "description": DESCRIPTION,
        "schema-version": "0.5",
        "command-line": f"{parser.prog} " + " ".join(item["value-key"] for item in inputs),
        "inputs": inputs,
        "groups": [_exclusive(group) for group in parser._mutually_exclusive_groups],
        "output-files": _outputs(),
        "suggested-resources": {"cpu-cores": 2, "ram": 8, "walltime-estimate": 3600},
        "tags": {"domain": ["neuroinformatics", "mri"]},
        "error-codes": [{"code": code, "description": text} for code, text in MEANINGS.items()],
    }


def _input(action: argparse.Action) -> dict[str, Any]:
    """Return the Boutiques input of an option or argument."""
    entry: dict[str, Any] = {
        "id": action.dest,
        "name": action.dest.replace("_", " ").capitalize(),
        "description": (action.help or "").replace("%%", "%"),
        "type": _type(action),
        "value-key": f"[{action.dest.upper()}]",
        "optional": not action.required,
    }
    if action.option_strings:
        entry["command-line-flag"] = action.option_strings[-1]
    choices = CHOICES.get(action.dest, action.choices)
    if choices:
        entry["value-choices"] = list(choices)
    if action.nargs == "+":
        entry["list"] = True
    if entry["type"] == "Number":
        entry |= {"integer": action.type is int, "minimum": 1 if action.type is int else 0}
    return entry


def _type(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "Flag"
    if action.type in (int, float):
        return "Number"
    return "File" if action.dest in FILES else "String"


def _exclusive(group: argparse._MutuallyExclusiveGroup) -> dict[str, Any]:
    members = [action.dest for action in group._group_actions]
    return {
        "id": "_or_".join(members),
        "name": " or ".join(member.replace("_", " ") for member in members),
        "members": members,
        "mutually-exclusive": True,
    }


def _outputs() -> list[dict[str, Any]]:
    """Return the output folder and the reports, whose place depends on the layout."""
    folder = {
        "id": "output_folder",
        "name": "Output folder",
        "description": "Derivatives data set: maps, reports, group tables, logs",
        "path-template": "[OUTPUT_DIR]",
    }
    reports = [
        {
            "id": f"reports_{layout}",
            "name": f"Reports, {layout} layout",
            "description": "One page per participant, and one for the group",
            "path-template": f"[OUTPUT_DIR]/{prefix}*.html",
            "list": True,
            "optional": True,
        }
        for layout, prefix in zip(LAYOUTS, ("", "qmri_bidsapp/"), strict=True)
    ]
    return [folder, *reports]


def descriptor_text() -> str:
    """Return the descriptor as JSON."""
    return json.dumps(build_descriptor(), indent=2) + "\n"
