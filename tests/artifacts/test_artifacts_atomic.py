from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from qmri_bidsapp.artifacts.atomic import atomic_file, atomic_folder


def test_file_appears_with_its_content_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "sub-01" / "map.nii.gz"
    with atomic_file(target) as temporary:
        assert temporary.name == "map.nii.gz"
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_failed_write_keeps_the_earlier_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_file(target) as temporary:
        _write_half(temporary)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_two_writers_of_one_file_do_not_collide(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with atomic_file(target) as first, atomic_file(target) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
    # Contexts end in reverse order.
    assert target.read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_file_and_folder_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "file") as temporary:
            temporary.write_text("")
        with atomic_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_folder_replaces_another_whole(tmp_path: Path) -> None:
    target = tmp_path / "weights" / "new"
    target.mkdir(parents=True)
    (target / "old").write_text("")
    with atomic_folder(target) as temporary:
        (temporary / "card").write_text("card")
        assert (target / "old").exists()
    assert [path.name for path in target.iterdir()] == ["card"]
    assert list(target.parent.iterdir()) == [target]


def test_failed_folder_keeps_the_earlier_one(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("")
    with pytest.raises(FileNotFoundError), atomic_folder(target) as temporary:
        _write_half(temporary / "half")
    assert [path.name for path in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_failed_rename_puts_the_earlier_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("")
    rename = Path.replace

    def fail_for_the_new_one(source: Path, destination: Path) -> Path:
        if source.name == "new":
            raise OSError("disk error")
        return rename(source, destination)

    monkeypatch.setattr(Path, "replace", fail_for_the_new_one)
    with pytest.raises(OSError, match="disk error"), atomic_folder(target):
        pass
    assert [path.name for path in target.iterdir()] == ["old"]


def _write_half(path: Path) -> None:
    path.write_text("half")
    (path.parent / "absent" / "rest").write_text("rest")
