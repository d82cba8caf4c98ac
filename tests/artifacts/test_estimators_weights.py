"""Weights on disk: what is refused."""

from __future__ import annotations

import json

import pytest
import torch

from qmri_bidsapp.artifacts.weights import CARD, TENSORS, load_weights, save_weights
from qmri_bidsapp.errors import OutputError, WeightsError

IDENTITY = {"model": "smt", "protocol": {"b_value": (0.0, 1000.0)}, "version": "1"}
WEIGHTS = {"first.weight": torch.arange(6.0).reshape(2, 3), "trees": torch.tensor([3, -1], dtype=torch.int32)}


@pytest.fixture
def folder(tmp_path):
    save_weights(tmp_path / "cache" / "weights", WEIGHTS, IDENTITY, {"seed": 3})
    return tmp_path / "cache" / "weights"


def test_round_trip(folder):
    tensors, notes = load_weights(folder, IDENTITY)
    assert {key: value.tolist() for key, value in tensors.items()} == {k: v.tolist() for k, v in WEIGHTS.items()}
    assert tensors["trees"].dtype == torch.int32
    assert notes == {"seed": 3}
    assert sorted(path.name for path in folder.iterdir()) == [CARD, TENSORS]
    assert [path.name for path in folder.parent.iterdir()] == ["weights"]


@pytest.mark.parametrize("key", list(IDENTITY))
def test_weights_for_something_else_are_refused(folder, key):
    with pytest.raises(WeightsError, match=f"for another {key}: {key} .*, needed"):
        load_weights(folder, {**IDENTITY, key: "other"})


def test_damaged_files_are_refused(folder):
    data = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(WeightsError, match="does not match its card"):
        load_weights(folder, IDENTITY)
    (folder / TENSORS).unlink()
    with pytest.raises(WeightsError, match="no readable weights"):
        load_weights(folder, IDENTITY)


def test_a_card_that_was_changed_is_refused(folder, tmp_path):
    other = {**IDENTITY, "version": "2"}
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, "identity": other}))
    with pytest.raises(WeightsError, match="belongs to other weights"):
        load_weights(folder, other)
    (folder / CARD).write_text(json.dumps({**card, "format": 99}))
    with pytest.raises(WeightsError, match="format 99"):
        load_weights(folder, IDENTITY)
    (folder / CARD).write_text("[]")
    with pytest.raises(WeightsError, match="no readable weights"):
        load_weights(folder, IDENTITY)


def test_replaces_weights_and_nothing_else(folder, tmp_path):
    save_weights(folder, {"other": torch.ones(1)}, IDENTITY, {})
    assert list(load_weights(folder, IDENTITY)[0]) == ["other"]
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="holds other files"):
        save_weights(folder, WEIGHTS, IDENTITY, {})
