"""CPUs and memory: the machine's, unless a control group of this process or one above it allows less."""

from __future__ import annotations

import os
import types
from pathlib import Path

import psutil
import pytest

from qmri_bidsapp.cli.resources import MEMORY_SHARE, available_cpus, available_memory_gb

GIB = 1024**3


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Pretend to have 16 CPUs and 64 GiB."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)), raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(total=64 * GIB))


def make_groups(root: Path, own: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(own)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


SLURM = "0::/slurm/job_1/step_0\n"
DOCKER_V1 = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("", {}, 16),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "3200000 100000\n"}, 16),
        (SLURM, {"slurm/job_1/cpu.max": "400000 100000\n", "slurm/cpu.max": "800000 100000\n"}, 4),
        (SLURM, {"other/cpu.max": "100000 100000\n"}, 16),
        (DOCKER_V1, {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        (DOCKER_V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
    ],
    ids=[
        "none",
        "unlimited",
        "two and a half",
        "half",
        "more than there are",
        "above",
        "other group",
        "v1",
        "v1 unlimited",
    ],
)
def test_cpus(tmp_path, own, files, expected):
    assert available_cpus(make_groups(tmp_path, own, files)) == expected


@pytest.mark.parametrize(
    ("own", "files", "expected_gib"),
    [
        ("", {}, 64),
        ("0::/\n", {"memory.max": "max\n"}, 64),
        ("0::/\n", {"memory.max": f"{8 * GIB}\n"}, 8),
        (SLURM, {"slurm/job_1/step_0/memory.max": "max\n", "slurm/job_1/memory.max": f"{4 * GIB}\n"}, 4),
        (DOCKER_V1, {"memory/memory.limit_in_bytes": f"{2 * GIB}\n"}, 2),
        (DOCKER_V1, {"memory/docker/abc/memory.limit_in_bytes": f"{3 * GIB}\n"}, 3),
        (DOCKER_V1, {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 64),
    ],
    ids=["none", "unlimited", "limit", "above", "v1 in a container", "v1", "v1 unlimited"],
)
def test_memory(tmp_path, own, files, expected_gib):
    found = available_memory_gb(make_groups(tmp_path, own, files))
    assert found == pytest.approx(MEMORY_SHARE * expected_gib, abs=0.01)


def test_this_machine(monkeypatch):
    monkeypatch.undo()
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
    assert 0 < available_memory_gb() <= psutil.virtual_memory().total / GIB
