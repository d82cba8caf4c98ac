"""Trained weights on disk: a folder with a safetensors file and a card that states what they are for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from qmri_bidsapp import formats
from qmri_bidsapp.artifacts.atomic import atomic_folder
from qmri_bidsapp.errors import OutputError, WeightsError

TENSORS, CARD = "weights.safetensors", "card.json"
REMEDY = "Train weights for this with `qmri train`."
#: Largest number of weights listed in a message.
MAX_LISTED = 3


def key_of(identity: Any) -> str:
    """Return the content hash of plain data, the same in every process."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def save_weights(
    folder: Path, tensors: Mapping[str, torch.Tensor], identity: Mapping[str, Any], notes: Mapping[str, Any]
) -> None:
    """Write a folder with weights and their card, atomically.

    Parameters
    ----------
    folder : Path
        Replaced if it holds weights.
    tensors : mapping
        Name -> tensor.
    identity : mapping
        Plain data that must be the same in use: model, protocol, estimator.
    notes : mapping
        Plain data about the training: prior, noise, options, errors on validation data.

    Raises
    ------
    OutputError
        If the folder cannot be written, or holds other files.
    """
    folder = Path(folder)
    if folder.exists() and any(name.name not in (TENSORS, CARD) for name in folder.iterdir()):
        raise OutputError(f"{folder} holds other files: name a new folder for the weights.")
    # The tensors carry the hash of the card's content, so that a changed or exchanged card is noticed.
    data = save({key: value.contiguous().cpu() for key, value in tensors.items()}, {"card": key_of([identity, notes])})
    card = {
        "format": formats.WEIGHTS,
        "sha256": hashlib.sha256(data).hexdigest(),
        "identity": dict(identity),
        "notes": dict(notes),
    }
    try:
        with atomic_folder(folder) as temporary:
            (temporary / TENSORS).write_bytes(data)
            (temporary / CARD).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"The weights cannot be written to {folder} ({error.strerror}).") from error


def load_weights(folder: Path, *identities: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors in a folder and the notes of its card.

    Parameters
    ----------
    folder : Path
    *identities : mapping
        Accepted identities; see `save_weights`.

    Raises
    ------
    WeightsError
        If a file is missing or damaged, or the weights have another identity.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        data = (folder / TENSORS).read_bytes()
        known, notes, digest, version = (card[key] for key in ("identity", "notes", "sha256", "format"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{folder} holds no readable weights ({type(error).__name__}): train them again.") from error
    if version != formats.WEIGHTS:
        needed = formats.WEIGHTS
        raise WeightsError(f"The weights in {folder} have format {version}, this program needs {needed}: train again.")
    if hashlib.sha256(data).hexdigest() != digest:
        raise WeightsError(f"{folder / TENSORS} does not match its card (SHA-256): it was damaged or changed. {REMEDY}")
    wanted = min(_plain(identities), key=lambda identity: len(_differing(known, identity)))
    if differing := _differing(known, wanted):
        raise WeightsError(
            f"The weights in {folder} are for another {' and '.join(differing)}: "
            + "; ".join(f"{key} {got}, needed {need}" for key, got, need in _differences(known, wanted))
            + f". {REMEDY}"
        )
    try:
        with safe_open(folder / TENSORS, "pt") as file:
            stored = (file.metadata() or {}).get("card")
        tensors = load(data)
    except SafetensorError as error:
        raise WeightsError(f"{folder / TENSORS} cannot be read ({error}): train again.") from error
    if stored != key_of([known, notes]):
        raise WeightsError(f"The card in {folder} belongs to other weights, or was changed. {REMEDY}")
    return tensors, notes


def sha256_of(folder: Path) -> str:
    """Return the SHA-256 of the tensors in a folder of weights."""
    return hashlib.sha256((Path(folder) / TENSORS).read_bytes()).hexdigest()


def digest_of(folder: Path) -> str:
    """Return the content hash of the cards that `find_weights` reads; each contains the hash of its weights."""
    folder = Path(folder)
    cards = [folder / CARD] if (folder / CARD).is_file() else sorted(folder.glob(f"*/{CARD}"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in cards)).hexdigest()


def find_weights(folder: Path, *identities: Mapping[str, Any]) -> Path:
    """Return the folder with the weights for one of some identities: the given folder, or one inside it.

    Raises
    ------
    WeightsError
        If none fits, or several do.
    """
    folder = Path(folder)
    if (folder / CARD).is_file() or not folder.is_dir():
        return folder
    candidates = _plain(identities)
    wanted = candidates[0]
    cards = sorted(folder.glob(f"*/{CARD}"))
    found = []
    for card in cards:
        try:
            if json.loads(card.read_text(encoding="utf-8"))["identity"] in candidates:
                found.append(card.parent)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{card} cannot be read ({type(error).__name__}): train the weights again.") from error
    if len(found) != 1:
        what = (
            f"None of the {len(cards)} weights in {folder} is" if not found else f"{len(found)} weights in {folder} are"
        )
        raise WeightsError(
            f"{what} for estimator {wanted.get('estimator')}, model {_short(wanted.get('model'))} and protocol "
            f"{_short(wanted.get('protocol'))}: "
            + (_what_they_are_for(cards, wanted) + REMEDY if not found else "name the folder of one of them.")
        )
    return found[0]


def _what_they_are_for(cards: list[Path], wanted: dict[str, Any]) -> str:
    """Describe how the first few weights of a folder differ from the wanted identity."""
    parts = []
    for card in cards[:MAX_LISTED]:
        known = json.loads(card.read_text(encoding="utf-8"))["identity"]
        parts.append(
            f"{card.parent.name} has " + ", ".join(f"{key} {got}" for key, got, _ in _differences(known, wanted))
        )
    return "; ".join(parts) + ". " if parts else ""


def _differences(known: Any, wanted: Any, name: str = "") -> list[tuple[str, str, str]]:
    """Return name, known value and wanted value of the innermost parts that differ."""
    if isinstance(known, dict) and isinstance(wanted, dict):
        keys = sorted({*known, *wanted})
        return [part for key in keys for part in _differences(known.get(key), wanted.get(key), f"{name} {key}".strip())]
    return [] if known == wanted else [(name, _short(known), _short(wanted))]


def _plain(identities: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return identities after a round trip through JSON."""
    plain: list[dict[str, Any]] = json.loads(json.dumps([dict(identity) for identity in identities]))
    return plain


def _differing(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the keys under which two identities differ."""
    return sorted(key for key in {*known, *wanted} if known.get(key) != wanted.get(key))


def _short(value: Any) -> str:
    """Return a value as text for a message, at most 120 characters."""
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."
