"""Turn a checkpoint of the first trainings of the shipped weights, a pickle of torch, into one of this program.

The program itself unpickles nothing. `weights_only=True` builds tensors and plain containers and calls no other code.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from qmri_bidsapp.estimators.checkpoints import save_checkpoint
from qmri_bidsapp.estimators.spatial_network import RecurrentInference
from qmri_bidsapp.estimators.spatial_training import CHECKPOINT
from qmri_bidsapp.evaluation.relaxometry import PROTOCOLS
from qmri_bidsapp.registry import get_model


def convert(source: Path, target: Path) -> None:
    """Write `target`/checkpoint.safetensors from `source`, a checkpoint.pt of a rim, and print its iteration."""
    state = torch.load(source, weights_only=True)
    card = state["card"]
    if card["network"] != RecurrentInference.name or card["protocol"] is not None:
        raise SystemExit(f"{source} is of another network: {card}")
    model = get_model(card["model"])
    parts = {}
    for name in ("network", "average"):
        parts[name] = RecurrentInference.build(model, next(iter(PROTOCOLS[model.name].values())))
        parts[name].load_state_dict(state[name])
    optimiser = torch.optim.Adam(parts["network"].parameters(), lr=state["options"]["learning_rate"])
    optimiser.load_state_dict(state["optimiser"])
    facts = {
        "identity": RecurrentInference.identity(model, None),
        "options": state["options"],
        "planned": [[0, state["options"]["n_iterations"]]],
        "iteration": state["iteration"],
    }
    target.mkdir(parents=True, exist_ok=True)
    save_checkpoint(target / CHECKPOINT, parts, optimiser, facts)
    print(state["iteration"])


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
