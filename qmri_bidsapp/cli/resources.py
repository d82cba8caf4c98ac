"""What this process may use: CPUs and memory, as limited by its affinity and its control groups.

A container or a batch system limits a job by control groups (Linux kernel documentation, "Control Group v2"
and "Control Groups version 1"); the machine's own totals would then promise too much.
"""

from __future__ import annotations

import os
from pathlib import Path

#: Part of the machine's memory that is used by default.
MEMORY_SHARE = 0.9


def available_cpus(root: Path = Path("/")) -> int:
    """Return the number of CPUs that this process may use: its affinity, or its groups' smallest quota.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` lie; another one for tests.
    """
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _group_folders(root, "cpu"):
        words = _read_words(folder / "cpu.max")
        if not words:
            words = _read_words(folder / "cpu.cfs_quota_us") + _read_words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and words[0] not in ("max", "-1"):
            n_cpus = min(n_cpus, max(1, int(words[0]) // int(words[1])))
    return n_cpus


def available_memory_gb(root: Path = Path("/")) -> float:
    """Return `MEMORY_SHARE` of the machine's memory, or of its groups' smallest limit if less, GB.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` lie; another one for tests.
    """
    import psutil

    limit = int(psutil.virtual_memory().total)
    for folder in _group_folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            words = _read_words(folder / name)
            if words and words[0] != "max":
                limit = min(limit, int(words[0]))
    return round(MEMORY_SHARE * limit / 1024**3, 2)


def _group_folders(root: Path, controller: str) -> list[Path]:
    """Return the folders of this process's group and of the groups above it: each one's limit holds."""
    folders = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Version 2 has no controllers. In a container the path may be the host's; then only the root exists.
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        folder = mount / path.strip("/")
        folders += [folder, *(parent for parent in folder.parents if mount in (parent, *parent.parents))]
    return folders


def _read_words(path: Path) -> list[str]:
    return _read(path).split()


def _read(path: Path) -> str:
    """Return what a small file holds, nothing if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
