"""A quality-control head on simulated grades: what it finds, what it does not, and how it is stored."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qmri_bidsapp.cli import tools
from qmri_bidsapp.errors import UsageError, WeightsError
from qmri_bidsapp.motion.qc_head import QualityHead, cross_validate


def cohort(n: int, *, informative: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return embeddings, grades 1 to 3 (rare 3) and subjects with two images each."""
    rng = np.random.default_rng(seed)
    motion = np.repeat(rng.gamma(1.5, 0.7, n // 2), 2)
    person = np.repeat(rng.normal(size=(n // 2, 12)), 2, axis=0)
    grades = 1.0 + (motion + 0.15 * rng.normal(size=n) > 0.9) + (motion + 0.15 * rng.normal(size=n) > 2.2)
    embeddings = 2 * person + rng.normal(0, 0.3, (n, 12))
    if informative:
        embeddings = embeddings @ rng.normal(size=(12, 12)) / 4 + np.outer(motion, rng.normal(size=12)) * 1.5
    return embeddings, grades, [f"{i // 2:03d}" for i in range(n)]


def test_grades_are_told_where_the_embedding_knows_them():
    figures = cross_validate(*cohort(240, informative=True))
    assert figures["balanced_accuracy"] > 0.75
    assert min(figures["f1"].values()) > 0.6
    confusion = np.array(figures["confusion"])
    assert confusion.sum() == figures["n"] == 240
    assert confusion[0, 2] + confusion[2, 0] <= 2  # a grade is taken for its neighbour, if for any
    assert figures["folds"] == 5
    rows, hits = confusion.sum(1), np.diag(confusion)
    assert figures["balanced_accuracy"] == pytest.approx(np.mean(hits / rows))


def test_subjects_are_never_in_two_folds():
    # Embeddings identify the person and nothing else: only leakage between folds could lift the accuracy above chance.
    figures = [cross_validate(*cohort(200, informative=False, seed=seed))["balanced_accuracy"] for seed in range(3)]
    assert np.mean(figures) == pytest.approx(1 / 3, abs=0.08)


def test_probabilities_are_ordered_and_come_back_from_the_file(tmp_path):
    embeddings, grades, _ = cohort(120, informative=True)
    head = QualityHead.learn(embeddings, grades, seed=1)
    found = head.predict(embeddings)
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found >= 0).all()
    head.save(tmp_path / "head", "a" * 64, {"seed": 1})
    again = QualityHead.load(tmp_path / "head", "a" * 64)
    np.testing.assert_array_equal(again.predict(embeddings), found)
    np.testing.assert_array_equal(QualityHead.learn(embeddings, grades, seed=1).predict(embeddings), found)
    assert {path.suffix for path in (tmp_path / "head").iterdir()} == {".json", ".safetensors"}
    with pytest.raises(WeightsError):
        QualityHead.load(tmp_path / "head", "b" * 64)


def test_two_grades_and_too_few():
    embeddings, grades, subjects = cohort(80, informative=True)
    two = np.minimum(grades, 2)
    assert cross_validate(embeddings, two, subjects)["grades"] == ["1", "2"]
    assert QualityHead.learn(embeddings, two).predict(embeddings).shape == (80, 2)
    with pytest.raises(UsageError, match="two grades"):
        QualityHead.learn(embeddings, np.ones(80))
    scarce = np.where(np.arange(80) == 0, 5.0, two)
    with pytest.raises(UsageError, match="of grade 5"):
        cross_validate(embeddings, scarce, subjects)


def test_command_from_derivatives_to_weights(tmp_path, capsys):
    embeddings, grades, subjects = cohort(80, informative=True)
    lines = ["participant_id\tqc"]
    for row, grade, subject in zip(embeddings[::2], grades[::2], subjects[::2], strict=True):
        folder = tmp_path / "out" / f"sub-{subject}" / "motion"
        folder.mkdir(parents=True)
        content = {"Embedding": row.tolist(), "WeightsSHA256": "w"}
        (folder / f"sub-{subject}_desc-motion_T1w.json").write_text(json.dumps(content))
        lines.append(f"sub-{subject}\t{grade:g}")
    (tmp_path / "labels.tsv").write_text("\n".join(lines))
    file = tmp_path / "figures.json"
    options = ["--labels", tmp_path / "labels.tsv", "--bids-derivatives", tmp_path / "out", "--json", file]
    command = ["train", "qc-head", *map(str, [tmp_path / "head", *options])]
    assert tools.main([*command, "--grade-column", "qc"]) == 0
    assert "balanced accuracy" in capsys.readouterr().out
    assert set(json.loads(file.read_text())) >= {"balanced_accuracy", "f1", "confusion", "folds"}
    assert QualityHead.load(tmp_path / "head", "w").grades == (1.0, 2.0, 3.0)
    assert tools.main(command) == 64
    assert "no column grade" in capsys.readouterr().err


def test_help_lists_the_options(capsys):
    with pytest.raises(SystemExit):
        tools.main(["train", "qc-head", "--help"])
    assert "--labels" in capsys.readouterr().out
