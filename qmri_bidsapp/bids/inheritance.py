"""Sidecars and gradient tables that apply to an image by BIDS' inheritance principle.

pybids reads every sidecar of a data set at once, and one that cannot be read ends the run for everybody.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qmri_bidsapp.bids.files import check_is_here, same_labels_of
from qmri_bidsapp.errors import InputError


class InheritedFiles:
    """Sidecars and gradient tables of a data set; each folder and file is read once.

    A file applies to an image if it is in the image's folder or above it, has the image's suffix, and its name has no
    entity that the image's name lacks or has otherwise. Hidden files are none of the data set, such as the resource
    files (``._*``) that macOS leaves on other disks.

    Parameters
    ----------
    root : Path
        Folder of the data set.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._candidates: dict[tuple[Path, str, str], list[Path]] = {}
        self._contents: dict[Path, dict[str, Any]] = {}

    def metadata(self, path: str | Path) -> dict[str, Any]:
        """Return the fields of all sidecars that apply to an image; nearer ones and those of more entities win.

        Raises
        ------
        InputError
            If such a sidecar cannot be read, or two that apply alike disagree.
        """
        found: dict[str, Any] = {}
        for folder in reversed(self._folders(path)):
            named: dict[str, Path] = {}
            for sidecar in self._applying(folder, path, ".json"):
                fields = self._read(sidecar)
                for name in fields.keys() & named.keys():
                    other = named[name]
                    if _n_labels(other) == _n_labels(sidecar) and fields[name] != found[name]:
                        raise InputError(
                            f"{path} needs one {name}, but {other} says {found[name]!r}, and {sidecar.name}, which "
                            f"applies alike, {fields[name]!r}; correct or rename one."
                        )
                found |= fields
                named |= dict.fromkeys(fields, sidecar)
        return found

    def gradient_file(self, path: str | Path, extension: str) -> str | None:
        """Return the file with this extension that applies to an image, None if there is none.

        The nearest one applies; within a folder, the one with most entities.

        Raises
        ------
        InputError
            If two have as many, or it is a link to nowhere.
        """
        for folder in self._folders(path):
            *others, best = [None, *self._applying(folder, path, extension)]
            if best is None:
                continue
            other = others[-1]
            if other is not None and _n_labels(other) == _n_labels(best):
                raise InputError(
                    f"{path} needs one {extension} file, but {other} and {best.name} apply to it alike; remove one."
                )
            check_is_here(best)
            return str(best)
        return None

    def _folders(self, path: str | Path) -> list[Path]:
        """Return the folder of an image and those above it, up to the data set's."""
        folders = list(Path(path).parents)
        return folders[: folders.index(self.root) + 1]

    def _applying(self, folder: Path, path: str | Path, extension: str) -> list[Path]:
        """Return the files of a folder that apply to an image, those with most entities last."""
        suffix, labels = _suffix_of(path), same_labels_of(path).items()
        key = folder, suffix, extension
        if key not in self._candidates:
            names = sorted(item for item in folder.iterdir() if item.name.endswith(extension))
            same = [item for item in names if _suffix_of(item) == suffix and not item.name.startswith(".")]
            self._candidates[key] = sorted(same, key=_n_labels)
        return [item for item in self._candidates[key] if same_labels_of(item).items() <= labels]

    def _read(self, path: Path) -> dict[str, Any]:
        if path not in self._contents:
            self._contents[path] = read_object(path)
        return self._contents[path]


def read_object(path: Path) -> dict[str, Any]:
    """Return the contents of a JSON file that holds an object, also one with a byte order mark.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    check_is_here(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); correct it.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold a JSON object ({{...}}), got {type(found).__name__}; correct it.")
    return found


def _suffix_of(path: str | Path) -> str:
    return Path(path).name.split(".")[0].rsplit("_", 1)[-1]


def _n_labels(path: Path) -> int:
    return len(same_labels_of(path))
