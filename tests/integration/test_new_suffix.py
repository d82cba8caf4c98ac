"""A package adds a BIDS suffix with one row, one acquisition and one model; nothing else in the app changes."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp import registry
from qmri_bidsapp.bids import kinds
from qmri_bidsapp.cli.app.run import main
from qmri_bidsapp.errors import UsageError

TIMES = (0.08, 0.01, 0.04, 0.02)
T1RHO = 0.085


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The entry points of a package that is installed beside the app."""
    added = {
        kinds.KIND_GROUP: EntryPoint("TSLw", "helpers.spin_lock:KIND", kinds.KIND_GROUP),
        registry.MODEL_GROUP: EntryPoint("t1rho", "helpers.spin_lock:T1rho", registry.MODEL_GROUP),
    }

    def entry_points(group: str) -> list[EntryPoint]:
        return [*importlib.metadata.entry_points(group=group), *([added[group]] if group in added else [])]

    caches = (kinds.load_kinds, registry._load)
    for cached in caches:
        cached.cache_clear()
    monkeypatch.setattr(kinds, "entry_points", entry_points)
    monkeypatch.setattr(registry, "entry_points", entry_points)
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """One participant with a series of the new suffix, numbered against the order of its times."""
    root = tmp_path / "raw"
    anat = root / "sub-01" / "anat"
    anat.mkdir(parents=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "test", "BIDSVersion": "1.10.0"}))
    head = np.zeros((12, 12, 4), np.float32)
    head[3:9, 3:9] = 1000.0
    for number, time in enumerate(TIMES, start=1):
        image = nib.Nifti1Image(head * np.exp(-time / T1RHO).astype(np.float32) + 1e-3, np.diag([2.0, 2.0, 4.0, 1.0]))
        nib.save(image, anat / f"sub-01_echo-{number}_TSLw.nii.gz")
        (anat / f"sub-01_echo-{number}_TSLw.json").write_text(json.dumps({"SpinLockTime": time}))
    return root


@pytest.mark.usefixtures("plug_in")
def test_a_suffix_of_a_package_is_found_planned_fitted_and_reported(
    data_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "plugin.yml"
    plugin.write_text("plugin: Linear\n")
    out = tmp_path / "out"
    options = ["--skip-bids-validation", "--no-certificate", "--device", "cpu", "--use-plugin", str(plugin)]
    assert main([str(data_set), str(out), "participant", "-w", str(tmp_path / "work"), *options]) == 0
    printed = capsys.readouterr().out
    assert "TSLw: 4 measurements; mask from the series; t1rho by nlls" in printed
    steps = re.findall(r"^\[.*sub-01 +(\d+)/(\d+)", printed, re.MULTILINE)
    assert steps[-1] == (str(len(steps)), str(len(steps)))
    anat = out / "sub-01" / "anat"
    values = nib.load(anat / "sub-01_T1rhomap.nii.gz").get_fdata()
    inside = np.isfinite(values)
    assert inside.sum() > 100
    np.testing.assert_allclose(values[inside], T1RHO, rtol=1e-3)
    assert json.loads((anat / "sub-01_echo-2_desc-preproc_TSLw.json").read_text())["SpinLockTime"] == 0.01
    assert (anat / "sub-01_desc-TSLwbrain_mask.nii.gz").is_file()
    assert "TSLwbrain" in (out / "descriptions.tsv").read_text()
    pages = [page.read_text() for page in out.rglob("*.html")]
    assert any("Spin-lock times" in page and "10, 20, 40, 80 ms" in page for page in pages)


@pytest.mark.usefixtures("plug_in")
def test_a_suffix_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("TSLw", "helpers.spin_lock:KIND", kinds.KIND_GROUP)
    monkeypatch.setattr(kinds, "entry_points", lambda group: [entry, entry])
    with pytest.raises(UsageError, match="registers suffix TSLw, which is already known"):
        kinds.load_kinds()
    other = EntryPoint("x", "helpers.spin_lock:SpinLock", kinds.KIND_GROUP)
    monkeypatch.setattr(kinds, "entry_points", lambda group: [other])
    with pytest.raises(UsageError, match="must be a Kind"):
        kinds.load_kinds()
