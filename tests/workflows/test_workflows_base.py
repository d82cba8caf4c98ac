from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import qmri_bidsapp
from qmri_bidsapp import formats
from qmri_bidsapp.bids.inputs import InputGroup, SubjectInputs
from qmri_bidsapp.config import STEPS, Config
from qmri_bidsapp.core.acquisition import MultiEcho
from qmri_bidsapp.estimators.learned.mlp import MultilayerPerceptron
from qmri_bidsapp.registry import get_model
from qmri_bidsapp.workflows.base import cache_dir, init_subject_wf
from qmri_bidsapp.workflows.plan import plan


def group(folder: Path, kind: str, run: str) -> InputGroup:
    path = folder / f"sub-01_run-{run}_echo-1_{kind}.nii"
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.float32), np.eye(4)), path)
    acquisition = MultiEcho((0.01, 0.05)) if kind == "MESE" else None
    return InputGroup(kind, "01", (("run", run),), (str(path),) * (2 if acquisition else 1), acquisition)


def test_steps_of_two_series_are_told_apart(tmp_path: Path) -> None:
    """The progress knows a step by its title: of two with the same one, one would look unchanged."""
    config = Config(tmp_path, tmp_path / "out", "participant", "run", tmp_path.parent / "work")
    groups = tuple(group(tmp_path, kind, run) for kind in ("T1w", "MESE") for run in ("1", "2"))
    (found,) = plan(config, (SubjectInputs("01", groups),))
    nodes = init_subject_wf(config, found)._get_all_nodes()
    titles = [node.title for node in nodes if hasattr(node, "title")]
    assert "run-1_MESE alignment" in titles
    assert "run-2_T1w brain mask" in titles
    assert sorted(set(titles)) == sorted(titles)


@pytest.mark.parametrize("skip", [(), tuple(STEPS)], ids=["all-steps", "none"])
def test_steps_left_out_are_not_in_the_graph(tmp_path: Path, skip: tuple[str, ...]) -> None:
    config = Config(tmp_path, tmp_path / "out", "participant", "run", tmp_path.parent / "work", skip=skip)
    (found,) = plan(config, (SubjectInputs("01", (group(tmp_path, "T1w", "1"), group(tmp_path, "MESE", "1"))),))
    nodes = {node.name: node for node in init_subject_wf(config, found)._get_all_nodes()}
    assert ({"bias", "align"} <= nodes.keys()) == (not skip)
    assert nodes["mask"].inputs.skip == (["align", "register"] if skip else [])


def test_work_of_a_version_with_other_maps_is_not_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nipype's hashes cover the inputs of a step, not its code: the folder's name stands for that."""
    config = Config(tmp_path, tmp_path / "out", "participant", "run", tmp_path.parent / "work")
    before = cache_dir(config)
    monkeypatch.setattr(qmri_bidsapp, "__version__", "99", raising=False)
    assert cache_dir(config) == before
    monkeypatch.setattr(formats, "MAPS", formats.MAPS + 1)
    assert cache_dir(config) != before
    assert cache_dir(config).parent == config.work_dir


def test_learned_estimators_are_trained_or_given_their_weights(tmp_path: Path) -> None:
    MultilayerPerceptron.brief(get_model("t2")).fit(MultiEcho((0.01, 0.05))).save(tmp_path / "weights")
    for weights in (None, tmp_path / "weights"):
        config = Config(
            tmp_path,
            tmp_path / "out",
            "participant",
            "run",
            tmp_path.parent / "work",
            estimators=("mlp",),
            weights=weights,
        )
        (found,) = plan(config, (SubjectInputs("01", (group(tmp_path, "MESE", "1"),)),))
        nodes = {node.name.partition("_")[0]: node for node in init_subject_wf(config, found)._get_all_nodes()}
        assert ("train" in nodes) == (weights is None)
        if weights is None:
            assert nodes["train"].inputs.cache == str(cache_dir(config) / "weights")
        else:
            assert nodes["fit"].inputs.weights == str(weights)
