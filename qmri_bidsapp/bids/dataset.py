"""Opening and validating the input data set."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.artifacts.atomic import atomic_file
from qmri_bidsapp.bids.inheritance import read_object
from qmri_bidsapp.errors import InputError, InputMissingError, InvalidBIDSError, NothingMatchedError, OutputError

if TYPE_CHECKING:
    from bids import BIDSLayout

    from qmri_bidsapp.bids.inputs import SubjectInputs

VALIDATOR = "bids-validator-deno"
#: File of a pybids database.
DATABASE = "layout_index.sqlite"
#: Version of what is indexed, in SQLite's ``user_version``; pybids leaves 0. Raise it when labels are found otherwise.
DATABASE_VERSION = 1


@dataclass(frozen=True)
class Issue:
    """One finding of the validator; `location` is relative to the data set, with a leading slash."""

    code: str
    severity: str
    location: str
    message: str


def validate(bids_dir: Path) -> list[Issue]:
    """Run the BIDS validator, offline.

    Raises
    ------
    InvalidBIDSError
        If the validator is not installed or gives no result; the message names the option that skips it.
    """
    beside = Path(sys.executable).parent / VALIDATOR
    program = str(beside) if beside.exists() else shutil.which(VALIDATOR)
    if program is None:
        raise InvalidBIDSError(f"{VALIDATOR} is not installed; install it, or give --skip-bids-validation.")
    with tempfile.TemporaryDirectory() as cache:
        # The validator's runtime wants a writable cache folder; HOME may not be one.
        environment = {**os.environ, "DENO_DIR": cache, "HOME": cache, "DENO_NO_UPDATE_CHECK": "1"}
        command = [program, str(bids_dir), "--format", "json"]
        finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    try:
        found = json.loads(finished.stdout)["issues"]["issues"]
    except (json.JSONDecodeError, KeyError) as error:
        last = (finished.stderr.strip() or "no output").splitlines()[-1]
        raise InvalidBIDSError(f"The BIDS validator failed ({last}); give --skip-bids-validation to go on.") from error
    return [
        Issue(
            code=item["code"] + (f" ({item['subCode']})" if item.get("subCode") else ""),
            severity=item.get("severity", "error"),
            location=item.get("location", ""),
            message=item.get("issueMessage") or "",
        )
        for item in found
    ]


def blocking(issues: Sequence[Issue], subjects: Sequence[SubjectInputs], bids_dir: Path) -> list[Issue]:
    """Return the errors that concern files that will be used, or the data set as a whole."""
    used = set()
    for subject in subjects:
        for group in subject.groups:
            for name in group.all_files:
                used.add("/" + Path(name).relative_to(bids_dir).as_posix().split(".")[0])
    errors = [issue for issue in issues if issue.severity == "error"]
    return [
        issue
        for issue in errors
        if issue.location.split(".")[0] in used
        or issue.location == "/dataset_description.json"
        or issue.code.startswith("MISSING_DATASET_DESCRIPTION")
    ]


def check_description(bids_dir: Path) -> dict[str, Any]:
    """Return the contents of ``dataset_description.json``.

    Raises
    ------
    InputMissingError
        If the folder does not exist.
    InvalidBIDSError
        If the file is missing or not valid.
    """
    if not bids_dir.is_dir():
        raise InputMissingError(f"The BIDS folder {bids_dir} does not exist.")
    path = bids_dir / "dataset_description.json"
    if not path.is_file():
        raise InvalidBIDSError(f"{bids_dir} is not a BIDS data set: it has no dataset_description.json; add one.")
    try:
        description = read_object(path)
    except InputError as error:
        raise InvalidBIDSError(str(error)) from error
    for name in ("Name", "BIDSVersion"):
        if name not in description:
            raise InvalidBIDSError(f"{path} lacks the field {name}, which BIDS requires; add it.")
    return description


def subjects_of(bids_dir: Path) -> tuple[str, ...]:
    """Return the labels of all subject folders, sorted."""
    return tuple(sorted(path.name[4:] for path in bids_dir.glob("sub-*") if path.is_dir()))


def open_layout(
    bids_dir: Path, *, participant_labels: tuple[str, ...] = (), database_dir: Path | None = None
) -> BIDSLayout:
    """Index the files of a data set once, and only of the subjects asked for; sidecars are not read.

    Parameters
    ----------
    bids_dir : Path
    participant_labels : tuple of str
        Without ``sub-``; empty for all.
    database_dir : Path, optional
        Folder of a pybids database to reuse or to make; it always holds all subjects.

    Raises
    ------
    InputMissingError
        See `check_description`; or if there is a database that is not one of this data set, or that another program or
        version made.
    InvalidBIDSError
        See `check_description`.
    NothingMatchedError
        If a label has no folder.
    OutputError
        If the database cannot be written.
    """
    check_description(bids_dir)
    known = subjects_of(bids_dir)
    absent = sorted(set(participant_labels) - set(known))
    if absent or not known:
        names = ", ".join(f"sub-{label}" for label in absent) or "any subject"
        found = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
        raise NothingMatchedError(f"{bids_dir} holds no {names}; it has: {found or 'none'}.")
    if database_dir is not None and (database_dir / DATABASE).is_file():
        return _read_database(bids_dir, database_dir)
    layout = _index(bids_dir, () if database_dir else tuple(set(known) - set(participant_labels or known)))
    if database_dir is not None:
        _save_database(layout, database_dir)
    return layout


def _index(bids_dir: Path, subjects_left_out: tuple[str, ...]) -> BIDSLayout:
    from bids import BIDSLayout
    from bids.layout import BIDSLayoutIndexer

    # pybids takes text as the start of a path: sub-1 would ignore sub-10 as well.
    folders = ["code", "stimuli", "sourcedata", "models", "derivatives"]
    folders += [f"sub-{re.escape(label)}" for label in sorted(subjects_left_out)]
    ignore = [re.compile(rf"^/{folder}(/|$)") for folder in folders]
    indexer = BIDSLayoutIndexer(ignore=ignore, validate=False, index_metadata=False)
    return BIDSLayout(bids_dir, validate=False, indexer=indexer, config=_entities_below(bids_dir))


def _entities_below(bids_dir: Path) -> dict[str, Any]:
    """Return the entities of BIDS for pybids, found in the part of a path below the data set only.

    pybids looks for them in whole paths, so that a data set in a folder ``sub-02`` would have that subject only.
    """
    from bids import config

    entities: dict[str, Any] = json.loads(Path(config.get_option("config_paths")["bids"]).read_text(encoding="utf-8"))
    root = re.escape(str(bids_dir.absolute()))
    for entity in entities["entities"]:
        if entity["pattern"].startswith("["):
            entity["pattern"] = f"^{root}.*?{entity['pattern']}"
    return entities


def _save_database(layout: BIDSLayout, database_dir: Path) -> None:
    """Save a complete index or none: pybids would take a partial one, left by an interruption, as complete."""
    try:
        with atomic_file(database_dir / DATABASE) as temporary:
            # pybids takes the folder; the file's name is its own.
            layout.save(temporary.parent, replace_connection=False)
            with closing(sqlite3.connect(temporary)) as database:
                database.execute(f"PRAGMA user_version = {DATABASE_VERSION}")
    except (OSError, sqlite3.Error) as error:
        raise OutputError(f"The pybids database cannot be written to {database_dir} ({error}).") from error


def _read_database(bids_dir: Path, database_dir: Path) -> BIDSLayout:
    from bids import BIDSLayout
    from sqlalchemy.exc import SQLAlchemyError

    # pybids takes the data set's folder from the database, whatever it is given.
    try:
        with closing(sqlite3.connect(database_dir / DATABASE)) as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
        layout = BIDSLayout(bids_dir, validate=False, database_path=database_dir)
        reason = "" if Path(layout.root) == bids_dir else f"it belongs to {layout.root}"
        if version != DATABASE_VERSION:
            reason = "another program made it, or another version of this one"
    except (ValueError, SQLAlchemyError, sqlite3.Error) as error:
        reason = str(error).splitlines()[0]
    if reason:
        raise InputMissingError(
            f"{database_dir / DATABASE} cannot be used for {bids_dir} ({reason}); remove it, and it is made anew."
        )
    return layout
