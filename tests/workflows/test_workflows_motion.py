"""The motion score in the plan and in the graph of a subject."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qmri_bidsapp.bids.inputs import InputGroup, SubjectInputs
from qmri_bidsapp.cli.app.run import main
from qmri_bidsapp.config import Config
from qmri_bidsapp.errors import UsageError, WeightsError
from qmri_bidsapp.motion import scorer
from qmri_bidsapp.motion.familiarity import Familiarity
from qmri_bidsapp.motion.network import SFCN, Architecture
from qmri_bidsapp.workflows.base import init_subject_wf, plan
from qmri_bidsapp.workflows.methods import describe_methods
from qmri_bidsapp.workflows.motion_score import NO_WEIGHTS, find_motion_weights

ENTITIES = (("ses", "a"),)
T1W = InputGroup(kind="T1w", subject="01", entities=ENTITIES, files=("/raw/sub-01/x_T1w.nii.gz",))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "motion"
    familiarity = Familiarity.learn(torch.randn(60, 24), list(range(60)))
    network = SFCN(Architecture(channels=(8, 8, 8, 8, 8, 8)))
    scorer.save_scorer(folder, network, familiarity, torch.rand(1, 14, 17, 14), {})
    scorer.save_scorer(
        folder.parent / "after_n4", network, familiarity, torch.rand(1, 14, 17, 14), {}, bias_corrected=True
    )
    return folder


@pytest.fixture(autouse=True)
def nothing_shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scorer, "SHIPPED", tmp_path / "absent")


def config(raw: Path = Path("/raw"), **options: object) -> Config:
    return Config(raw, Path("/out"), "participant", "run", Path("/work"), **options)


def planned(chosen: Config):
    file = chosen.bids_dir / "x_T1w.nii.gz"
    file.touch()
    group = InputGroup(kind="T1w", subject="01", entities=ENTITIES, files=(str(file),))
    (found,) = plan(chosen, (SubjectInputs("01", (group,), ()),))
    return found


def edges(wf) -> set[tuple[str, str]]:
    return {(a.name, b.name) for a, b in wf._graph.edges()}


@pytest.mark.parametrize(("folder", "source"), [("motion", "load.out_file"), ("after_n4", "bias.out_file")])
def test_only_its_own_sink_waits_for_a_score(weights, folder, source, tmp_path):
    chosen = config(tmp_path, motion_weights=weights.parent / folder)
    item = planned(chosen)
    assert "motion score" in "\n".join(item.describe())
    wf = init_subject_wf(chosen, item)
    assert {pair for pair in edges(wf) if "motion" in "".join(pair)} == {
        ("anat_0_wf", "motion_0"),
        ("motion_0", "save_motion_0"),
    }
    connections = wf._graph.get_edge_data(wf.get_node("anat_0_wf"), wf.get_node("motion_0"))["connect"]
    assert connections == [(source, "in_file")]
    assert "[@jenkinson]" in describe_methods(chosen)


def test_without_weights_it_is_said_and_the_run_goes_on(tmp_path):
    chosen = config(tmp_path)
    item = planned(chosen)
    assert item.motion_weights is None
    assert not [pair for pair in edges(init_subject_wf(chosen, item)) if "motion" in "".join(pair)]
    assert "[@jenkinson]" not in describe_methods(chosen)
    assert "--motion-weights" in NO_WEIGHTS


def test_weights_are_checked_before_any_work(weights, tmp_path):
    digest = scorer.MotionScorer.load(weights).sha256
    assert find_motion_weights(config(motion_weights=weights, motion_weights_sha256=digest)).sha256 == digest
    with pytest.raises(WeightsError, match="it is another file"):
        find_motion_weights(config(motion_weights=weights, motion_weights_sha256="0" * 64))
    (tmp_path / "head").mkdir()
    with pytest.raises(WeightsError):
        find_motion_weights(config(motion_weights=weights, qc_head=tmp_path / "head"))
    assert find_motion_weights(config(no_motion_score=True)) is None


@pytest.mark.parametrize(
    "options",
    [
        {"no_motion_score": True, "motion_weights": Path("/")},
        {"motion_weights_sha256": "0" * 64},
        {"motion_weights": Path("/"), "motion_weights_sha256": "12"},
    ],
    ids=["both", "hash-alone", "short-hash"],
)
def test_options_that_do_not_go_together(options):
    with pytest.raises(UsageError):
        config(**options)


def test_weights_that_do_not_exist(tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path / "out"), "participant", "--motion-weights", "absent"]) == 66
    assert "--motion-weights" in capsys.readouterr().err
