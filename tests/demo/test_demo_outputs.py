"""The comparison of a demo run with the stored list of its files."""

from __future__ import annotations

from pathlib import Path

from demo_outputs import differences, expected_names


def test_missing_and_new_files_are_named(tmp_path: Path) -> None:
    lines = ["sub-XX/anat/sub-XX_T1map.nii.gz", "logs/RUN.log", "logs/certificates/t1-nlls-KEY.json"]
    for name in expected_names(lines):
        path = tmp_path / name.replace("RUN", "20260101-120000_0123abcd").replace("KEY", "0123456789abcdef")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert differences(tmp_path, lines) == []
    (tmp_path / "sub-02" / "anat" / "sub-02_T1map.nii.gz").rename(tmp_path / "other.txt")
    assert differences(tmp_path, lines) == ["missing: sub-02/anat/sub-02_T1map.nii.gz", "new: other.txt"]
