"""Protocols from sidecar fields and gradient tables, and sidecar fields from protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from qmri_bidsapp.bids.files import labels_of
from qmri_bidsapp.bids.kinds import Field, Kind
from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.errors import InputError, ProtocolError
from qmri_bidsapp.images.gradients import read_gradients


def series_protocol(
    kind: Kind, paths: Sequence[str], sidecars: Sequence[Mapping[str, Any]], *, signed: bool = False
) -> tuple[Acquisition, list[int]]:
    """Return the protocol of a series of images, and their order.

    Parameters
    ----------
    kind : Kind
        With an axis.
    paths, sidecars : sequence
        (n_images,) images and their metadata.
    signed : bool
        Whether the polarity is restored.

    Returns
    -------
    acquisition : Acquisition
        In the order that is returned.
    order : list of int
        (n_images,) positions, ascending in ``kind.sort_by``.

    Raises
    ------
    InputError
        If a field is missing, has another type or contradicts the name of its image, a value is out of range, two
        images have the same values of all fields, or an image cannot be used.
    """
    images = []
    for path, sidecar in zip(paths, sidecars, strict=True):
        reason = kind.objection(sidecar) if kind.objection else None
        if reason:
            raise InputError(f"{path} {reason}.")
        images.append({field.attribute: _value(path, sidecar, field) for field in kind.fields})
    keys = kind.sort_by or tuple(field.attribute for field in kind.fields)
    order = sorted(range(len(images)), key=lambda index: tuple(images[index][key] for key in keys))
    _check_values_differ(kind, paths, images)
    values = {field.attribute: tuple(images[index][field.attribute] for index in order) for field in kind.fields}
    return _make(kind, f"{paths[0]} and its series", values | ({"signed": True} if signed else {})), order


def _check_values_differ(kind: Kind, paths: Sequence[str], images: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputError if two images of a series have the same values: one sidecar is wrong, or an image is a copy."""
    seen: dict[tuple[Any, ...], str] = {}
    for path, values in zip(paths, images, strict=True):
        key = tuple(values.values())
        if key in seen:
            same = ", ".join(f"{field.names[0]} {values[field.attribute]}" for field in kind.fields)
            raise InputError(
                f"{path} needs values of its own, but {Path(seen[key]).name} has the same ({same}): correct the "
                "sidecars, or keep one of the two images."
            )
        seen[key] = path


def volumes_protocol(
    kind: Kind, path: str, sidecar: Mapping[str, Any], n_volumes: int, *, bval: str | None, bvec: str | None
) -> Acquisition:
    """Return the protocol of one 4-D image.

    Parameters
    ----------
    kind : Kind
        Without an axis.
    path, sidecar
        Image and its metadata.
    n_volumes : int
    bval, bvec : str or None
        Gradient table, for diffusion.

    Raises
    ------
    InputError
        If the gradient table is missing or does not fit the image, or a field has another type or is out of range.
    """
    values: dict[str, Any] = {}
    if kind.is_diffusion:
        for name, extension in ((bval, "bval"), (bvec, "bvec")):
            if name is None:
                raise InputError(f"{path} needs a .{extension} file, and none applies to it; add it.")
        b_value, direction = read_gradients(str(bval), str(bvec), n_volumes)
        values["b_value"] = tuple(float(value) for value in b_value)
        values["direction"] = tuple(tuple(float(value) for value in row) for row in direction)
    values |= {field.attribute: _value(path, sidecar, field, may_be_list=True) for field in kind.fields}
    return _make(kind, f"{path} with {Path(bval).name}" if bval else path, values)


def _make(kind: Kind, source: str, values: Mapping[str, Any]) -> Acquisition:
    assert kind.acquisition is not None
    try:
        found = kind.acquisition(**values)
    except ProtocolError as error:
        raise InputError(f"{source}: {error}") from error
    doubt = found.doubt_about_units()
    if doubt:
        raise InputError(f"{source}: {doubt} Correct it; nothing is converted.")
    return found


def _value(path: str, sidecar: Mapping[str, Any], field: Field, *, may_be_list: bool = False) -> Any:
    """Return the value of a field, or a tuple of one value per volume; InputError if it has another type."""
    name = next((name for name in field.names if name in sidecar), None)
    found = None if name is None else sidecar[name]
    if may_be_list and isinstance(found, list):
        return tuple(_checked(path, value, field) for value in found)
    value = field.default if name is None and not field.is_required else _checked(path, found, field)
    label = labels_of(path).get(field.entity) if field.entity else None
    if label is not None and label != ("on" if value else "off"):
        states = f"no {field.names[0]}" if name is None else f"{name} {found!r}"
        raise InputError(
            f"{path} is {field.entity}-{label} by its name, but its sidecar has {states}: correct one of them."
        )
    return value


def _checked(path: str, value: Any, field: Field) -> float | bool:
    names = " or ".join(field.names)
    if field.unit is None:
        meant = dict(field.words).get(value.upper(), value) if isinstance(value, str) else value
        if not isinstance(meant, bool):
            words = ", ".join(["true or false", *(word for word, _ in field.words)])
            raise InputError(f"{path} needs {names} ({words}) in its sidecar, got {value!r}; {_remedy(value)}.")
        return meant
    if not isinstance(value, Real) or isinstance(value, bool):
        needed = f"{names} (a number, in {field.unit})"
        raise InputError(f"{path} needs {needed} in its sidecar, got {value!r}; {_remedy(value)}.")
    return float(value)


def _remedy(value: Any) -> str:
    return "add it" if value is None else "correct it"


def image_fields(kind: Kind, acquisition: Acquisition) -> list[dict[str, Any]]:
    """Return, for each image of a series, the sidecar fields by which it differs from the others."""
    if not kind.axis:
        return [{}]
    plain, required = acquisition.to_dict(), [field for field in kind.fields if field.is_required]
    return [
        {field.names[0]: plain[field.attribute][index] for field in required}
        for index in range(acquisition.n_measurements)
    ]
