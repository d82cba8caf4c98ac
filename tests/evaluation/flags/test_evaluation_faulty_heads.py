"""Faults of images: each does what it says, and silent failures are counted from the files of a run."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.core.acquisition import MultiEcho
from qmri_bidsapp.demo import signals
from qmri_bidsapp.demo.phantom import make_head
from qmri_bidsapp.evaluation.flags import faulty_heads
from qmri_bidsapp.evaluation.flags.image_faults import ImageFault, image_faults
from qmri_bidsapp.evaluation.flags.robustness import MODELS
from qmri_bidsapp.registry import get_model

ECHOES = MultiEcho(signals.ECHO_TIMES)
#: Faults that only change how images are stored.
UNCHANGED = {"none", "an image taken out", "intensities x1000", "intensities /1000"}


@pytest.fixture(scope="module")
def head():
    return faulty_heads.Head(make_head(1, 16.0, seed=0), None, 0)


def measured(head, fault, seed=1):
    return faulty_heads.magnitudes(head, "MESE", ECHOES, fault, np.random.default_rng(seed))


def changed(head, name):
    """Return the series with and without a fault, with the same noise."""
    return measured(head, image_faults(get_model("t2"), ECHOES)[name]), measured(head, ImageFault())


def test_every_fault_changes_the_images(head):
    usual = measured(head, ImageFault())
    for what, fault in image_faults(get_model("t2"), ECHOES).items():
        images = measured(head, fault)
        assert np.isfinite(images).all()
        assert np.array_equal(images, usual) == (what in UNCHANGED), what


@pytest.mark.parametrize("name", MODELS)
def test_faults_have_the_names_of_those_of_voxels(name):
    """Tables of voxels and of images can be compared line by line."""
    from qmri_bidsapp.evaluation.flags.variations import variations_of

    series = faulty_heads.protocol_of(name, 0)
    voxelwise = [what for what in variations_of(get_model(name), series) if what != "Rician floor"]
    assert list(image_faults(get_model(name), series))[: len(voxelwise)] == voxelwise


def test_sizes_of_faults(head):
    dropped, usual = changed(head, "1 % of slices dropped")
    ratio = (dropped / usual).mean(axis=(0, 1))
    assert np.isclose(ratio, 0.3).sum() == 1
    assert np.isclose(ratio, 1).sum() == ratio.size - 1
    gain, usual = changed(head, "an image at 70 %")
    np.testing.assert_allclose(np.sort((gain / usual).mean(axis=(0, 1, 2))), [0.7, 1, 1, 1, 1, 1])
    ghost, usual = changed(head, "ghost of 5 %")
    np.testing.assert_allclose(ghost - usual, 0.05 * np.roll(usual, usual.shape[1] // 2, axis=1), atol=1e-9)
    spike, usual = changed(head, "spike in an image")
    hit = np.flatnonzero(np.abs(spike - usual).max(axis=(0, 1, 2)))
    assert len(hit) == 1
    assert np.abs(spike - usual).max() == pytest.approx(0.5 * usual[..., hit[0]].mean(), rel=0.05)
    moved, usual = changed(head, "a tenth of the images moved by 4 mm")
    apart = np.sqrt(np.square(moved - usual).mean(axis=(0, 1, 2)))
    assert (apart > 5).sum() == 1
    assert apart[0] == 0


def test_noise_has_the_stated_size_and_correlation():
    """Outside the head magnitudes are those of noise alone, sqrt(pi / 2) on average."""
    head = faulty_heads.Head(make_head(1, 12.0, seed=0), None, 0)
    air = head.phantom.parameters["density"] == 0
    sigma = signals.noise_level("MESE", head.phantom, signals.GAIN * head.phantom.parameters["density"])
    level = [
        measured(head, fault)[air].mean(axis=0) / sigma / np.sqrt(np.pi / 2)
        for fault in (ImageFault(), *(image_faults(get_model("t2"), ECHOES)[what] for what in ("noise x1.5",
        "noise correlated between voxels", "noise x3 in an image")))
    ]  # fmt: skip
    for found, expected in zip(level[:3], (1.0, 1.5, 1.0), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0.06)
    np.testing.assert_allclose(np.sort(level[3]), [1, 1, 1, 1, 1, 3], rtol=0.06)
    noise = faulty_heads._noise((20, 20, 20, 4), 0.6, np.random.default_rng(0))
    assert np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1] > 0.3


def test_data_set_holds_one_head_for_each_fault(tmp_path, monkeypatch):
    data, faults = tmp_path / "data", image_faults(get_model("t2"), ECHOES)
    chosen = ("none", "an image taken out", "intensities x1000")
    monkeypatch.setattr(faulty_heads, "image_faults", lambda *_: {what: faults[what] for what in chosen})
    labels = faulty_heads.write_heads(data, "t2", n=400)
    assert labels == {"01": "none", "02": "an image taken out", "03": "intensities x1000"}
    kept, scaled = "02", "03"
    files = {label: sorted((data / f"sub-{label}" / "anat").glob("*_MESE.nii.gz")) for label in labels}
    n_files = {label: len(found) for label, found in files.items()}
    assert n_files == {label: 5 if label == kept else 6 for label in labels}
    brightest = {label: nib.load(files[label][0]).get_fdata().max() for label in ("01", scaled)}
    assert brightest[scaled] > 100 * brightest["01"]
    sidecars = [file.parent / file.name.replace("nii.gz", "json") for file in files[kept]]
    times = [json.loads(sidecar.read_text())["EchoTime"] for sidecar in sidecars]
    assert times == [time for k, time in enumerate(signals.ECHO_TIMES) if k != 3]
    truth = data / "derivatives" / "truth" / "sub-01" / "anat"
    t2, tissue = (nib.load(truth / f"sub-01_{name}.nii.gz").get_fdata() for name in ("T2map", "dseg"))
    assert np.isfinite(t2[tissue > 0]).all()
    # As many slices as alignment needs, at least.
    assert np.isin(tissue, (1, 2)).sum() == pytest.approx(8 * faulty_heads.SLICE_VOXELS, rel=0.15)
