"""From sidecar fields to protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from qmri_bidsapp.core.acquisition import Acquisition, Diffusion, InversionRecovery, MultiEcho, SpoiledGradientEcho
from qmri_bidsapp.errors import InputError, ProtocolError
from qmri_bidsapp.images.gradients import read_gradients

#: Fields that the report shows.
SHOWN_FIELDS = (
    "Manufacturer",
    "ManufacturersModelName",
    "MagneticFieldStrength",
    "RepetitionTime",
    "FlipAngle",
    "PulseSequenceType",
    "BigDelta",
    "LargeDelta",
    "SmallDelta",
)
#: Kinds whose images differ by a time, with its sidecar field.
TIME_FIELDS = {"IRT1": "InversionTime", "MESE": "EchoTime", "MEGRE": "EchoTime"}
#: Kinds of spoiled gradient echoes, whose images differ by flip angle and magnetization transfer pulse.
STEADY_STATE_KINDS = ("VFA", "MTS")


def series_protocol(
    kind: str, paths: Sequence[str], sidecars: Sequence[Mapping[str, Any]]
) -> tuple[Acquisition, list[int]]:
    """Return the protocol of a relaxometry series, and the order of its images.

    Parameters
    ----------
    kind : str
        Key of `TIME_FIELDS`, or one of `STEADY_STATE_KINDS`.
    paths, sidecars : sequence
        Images and their metadata.

    Returns
    -------
    acquisition : Acquisition
        In the order that is returned.
    order : list of int
        By ascending time, or by magnetization transfer pulse (images without it first) and ascending flip angle.

    Raises
    ------
    InputError
        If a field is missing, or no time in seconds or angle in degrees.
    """
    try:
        if kind in STEADY_STATE_KINDS:
            return _steady_state_protocol(kind, paths, sidecars)
        times = [_number(path, sidecar, TIME_FIELDS[kind]) for path, sidecar in zip(paths, sidecars, strict=True)]
        order = sorted(range(len(times)), key=times.__getitem__)
        ordered = tuple(times[i] for i in order)
        return InversionRecovery(ordered) if kind == "IRT1" else MultiEcho(ordered), order
    except ProtocolError as error:
        raise InputError(f"{paths[0]} and its series: {error}") from error


def _steady_state_protocol(
    kind: str, paths: Sequence[str], sidecars: Sequence[Mapping[str, Any]]
) -> tuple[SpoiledGradientEcho, list[int]]:
    """Return the protocol of a VFA or MTS series, and its order."""
    images = []
    for path, sidecar in zip(paths, sidecars, strict=True):
        sequence = str(sidecar.get("PulseSequenceType", ""))
        if "SSFP" in sequence.upper():
            raise InputError(
                f"{path} has PulseSequenceType {sequence}: only spoiled gradient echoes can be used; exclude it."
            )
        pulse = sidecar.get("MTState", None if kind == "MTS" else False)
        if not isinstance(pulse, bool):
            raise InputError(f"{path} needs MTState (true or false) in its sidecar, got {pulse!r}; add it.")
        time = _number(path, sidecar, "RepetitionTimeExcitation", "RepetitionTime")
        images.append((pulse, _number(path, sidecar, "FlipAngle", unit="degrees"), time))
    order = sorted(range(len(images)), key=images.__getitem__)
    pulses, angles, times = zip(*(images[i] for i in order), strict=True)
    return SpoiledGradientEcho(flip_angle=angles, repetition_time=times, mt_pulse=pulses), order


def _number(path: str, sidecar: Mapping[str, Any], *fields: str, unit: str = "seconds") -> float:
    """Return the first of these fields that the sidecar holds, which must be a number."""
    value = next((sidecar[field] for field in fields if field in sidecar), None)
    if not isinstance(value, Real) or isinstance(value, bool):
        names = " or ".join(fields)
        raise InputError(f"{path} needs {names} (a number, in {unit}) in its sidecar, got {value!r}; add it.")
    return float(value)


def _pulse_time(path: str, sidecar: Mapping[str, Any], *fields: str) -> float | tuple[float, ...] | None:
    """Return the first of these fields that the sidecar holds: a number, or one for each volume; None if it has none.

    BIDS names them since version 1.11.2; some data sets say ``LargeDelta``.
    """
    field = next((field for field in fields if field in sidecar), None)
    if field is None:
        return None
    if isinstance(sidecar[field], list):
        return tuple(_number(path, {field: value}, field) for value in sidecar[field])
    return _number(path, sidecar, field)


def image_fields(kind: str, acquisition: Acquisition) -> list[dict[str, Any]]:
    """Return the sidecar fields by which the images of a relaxometry series differ, for each image."""
    if isinstance(acquisition, SpoiledGradientEcho):
        pulses = [{"MTState": pulse} if kind == "MTS" else {} for pulse in acquisition.mt_pulse]
        return [
            {"FlipAngle": angle, "RepetitionTimeExcitation": time, **pulse}
            for angle, time, pulse in zip(acquisition.flip_angle, acquisition.repetition_time, pulses, strict=True)
        ]
    plain = acquisition.to_dict()
    return [{TIME_FIELDS[kind]: time} for time in plain["inversion_time" if kind == "IRT1" else "echo_time"]]


def diffusion_protocol(
    path: str, bval: str | None, bvec: str | None, sidecar: Mapping[str, Any], n_volumes: int
) -> Diffusion:
    """Return the protocol of a diffusion series.

    Raises
    ------
    InputError
        If the gradient table is missing or does not fit the image.
    """
    for name, extension in ((bval, "bval"), (bvec, "bvec")):
        if name is None:
            raise InputError(f"{path} needs a .{extension} file, and none applies to it; add it.")
    b_value, direction = read_gradients(str(bval), str(bvec), n_volumes)
    try:
        return Diffusion(
            b_value=tuple(float(value) for value in b_value),
            direction=tuple(tuple(float(value) for value in row) for row in direction),
            small_delta=_pulse_time(path, sidecar, "SmallDelta"),
            large_delta=_pulse_time(path, sidecar, "BigDelta", "LargeDelta"),
        )
    except ProtocolError as error:
        raise InputError(f"{path}: {error}") from error
