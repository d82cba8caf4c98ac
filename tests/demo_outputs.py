"""Compare the files of a demo run with the stored list: a file that is missing or new is an error.

    python tests/demo_outputs.py demo-out            # compare
    python tests/demo_outputs.py demo-out --write    # store, after a change that is meant to add or remove files

Names that differ between runs stand under a placeholder: RUN for the run's name, KEY for a hash. Files of a subject are
listed once, as sub-XX, and both subjects must have them.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

STORED = Path(__file__).parent / "data" / "demo_outputs.txt"
SUBJECTS = ("sub-01", "sub-02")
PLACEHOLDERS = ((r"\d{8}-\d{6}_[0-9a-f]{8}", "RUN"), (r"(?<=-)[0-9a-f]{16}(?=\.json$)", "KEY"))


def names_of(folder: Path) -> set[str]:
    """Return the names of all files, relative to the folder, with placeholders."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for pattern, placeholder in PLACEHOLDERS:
        names = {re.sub(pattern, placeholder, name) for name in names}
    return names


def expected_names(lines: list[str]) -> set[str]:
    """Return the names that the stored lines stand for."""
    return {line.replace("sub-XX", subject) for line in lines for subject in SUBJECTS}


def differences(folder: Path, lines: list[str]) -> list[str]:
    """Return a line for each file that is missing or new."""
    found, expected = names_of(folder), expected_names(lines)
    return [f"missing: {name}" for name in sorted(expected - found)] + [
        f"new: {name}" for name in sorted(found - expected)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Compare or store; return 1 where files differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="output folder of the demo, after participant and group level")
    parser.add_argument("--write", action="store_true", help="store the names of this run")
    options = parser.parse_args(arguments)
    if options.write:
        lines = sorted({re.sub("|".join(SUBJECTS), "sub-XX", name) for name in names_of(options.folder)})
        STORED.write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = STORED.read_text(encoding="utf-8").splitlines()
    found = differences(options.folder, lines)
    print("\n".join(found) or f"{options.folder}: {len(expected_names(lines))} files as expected")
    if found:
        print("If this was meant: python tests/demo_outputs.py demo-out --write", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
