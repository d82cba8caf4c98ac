"""The part of the report that compares maps with the truth of the data set."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from helpers.truth import SHAPE, save, write_output

from qmri_bidsapp.bids.record_files import read_record, record_file
from qmri_bidsapp.reports.truth import truth_text


def text_of(out: Path) -> str | None:
    return truth_text(out, read_record(record_file(out, "01")))


def test_tables_of_maps_and_flags(tmp_path: Path) -> None:
    out, _ = write_output(tmp_path)
    text = text_of(out)
    assert text is not None
    assert "<td>t1</td><td>s</td><td>GM</td>" in text
    assert "<td>unmodelled</td><td>27</td><td>100.0</td><td>found</td>" in text
    assert 'class="warning"' not in text


def test_coverage_outside_its_limits_comes_first(tmp_path: Path) -> None:
    out, _ = write_output(tmp_path, scale=0.5)
    text = text_of(out)
    assert text is not None
    assert text.startswith('<p class="warning">sub-01, IRT1, t1, t1, GM: range holds the truth in')


def test_data_without_truth_have_no_such_part(tmp_path: Path) -> None:
    out, data = write_output(tmp_path)
    shutil.rmtree(data / "derivatives" / "truth" / "sub-01")
    assert text_of(out) is None
    shutil.rmtree(data)
    assert text_of(out) is None
    (out / "dataset_description.json").unlink()
    assert text_of(out) is None


def test_a_truth_that_cannot_be_compared_does_not_stop_the_report(tmp_path: Path) -> None:
    out, data = write_output(tmp_path)
    save(data / "derivatives/truth/sub-01/anat/sub-01_T1map.nii.gz", np.zeros((2, *SHAPE[1:]), np.float32))
    text = text_of(out)
    assert text is not None
    assert 'class="warning"' in text
    assert "share a grid" in text
