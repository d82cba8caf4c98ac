"""State of an unfinished training in one safetensors file: modules, optimisers and plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from qmri_bidsapp.artifacts.atomic import atomic_file
from qmri_bidsapp.errors import WeightsError


def save_checkpoint(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimisers: Mapping[str, torch.optim.Optimizer],
    facts: Mapping[str, Any],
) -> None:
    """Write a checkpoint atomically.

    Parameters
    ----------
    path : Path
    modules, optimisers : mapping
        Name -> module, and name -> optimiser; names have no dot. Options of optimisers are not stored.
    facts : mapping
        Plain data.
    """
    tensors = {f"{name}.{key}": value for name, part in modules.items() for key, value in part.state_dict().items()}
    for name, optimiser in optimisers.items():
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    with atomic_file(path) as temporary:
        save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, {"facts": json.dumps(facts)})


def read_facts(path: Path) -> dict[str, Any]:
    """Return the plain data of a checkpoint.

    Raises
    ------
    WeightsError
        If it cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["facts"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is no readable checkpoint ({error}): delete it to start again.") from error
    return facts


def restore_checkpoint(
    path: Path, modules: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer]
) -> None:
    """Restore modules and optimisers from a checkpoint.

    Raises
    ------
    WeightsError
        If it cannot be read, or belongs to others.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                part, _, key = name.partition(".")
                parts.setdefault(part, {})[key] = file.get_tensor(name)
        for name, module in modules.items():
            module.load_state_dict(parts[name])
        for name, optimiser in optimisers.items():
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in parts.get(name, {}).items():
                index, _, quantity = key.partition(".")
                state.setdefault(int(index), {})[quantity] = value
            optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{path} is no checkpoint of this network: delete it to start again.") from error
