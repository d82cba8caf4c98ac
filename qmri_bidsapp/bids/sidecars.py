"""From sidecar fields to protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from qmri_bidsapp.core.acquisition import Acquisition, Diffusion, InversionRecovery, MultiEcho
from qmri_bidsapp.errors import InputError, ProtocolError
from qmri_bidsapp.images.gradients import read_gradients

#: Fields that the report shows.
SHOWN_FIELDS = (
    "Manufacturer",
    "ManufacturersModelName",
    "MagneticFieldStrength",
    "RepetitionTime",
    "FlipAngle",
    "LargeDelta",
    "SmallDelta",
)


def timed_protocol(
    kind: str, paths: Sequence[str], sidecars: Sequence[Mapping[str, Any]], field: str
) -> tuple[Acquisition, list[int]]:
    """Return the protocol of a series whose images differ by a time, and the order of ascending time.

    Parameters
    ----------
    kind : str
        ``"IRT1"``, ``"MESE"`` or ``"MEGRE"``.
    paths, sidecars : sequence
        Images and their metadata.
    field : str
        Sidecar field of the time, s.

    Raises
    ------
    InputError
        If the field is missing or not a time in seconds.
    """
    times = []
    for path, sidecar in zip(paths, sidecars, strict=True):
        value = sidecar.get(field)
        if not isinstance(value, Real) or isinstance(value, bool):
            raise InputError(f"{path} needs {field} (a number, in seconds) in its sidecar, got {value!r}; add it.")
        times.append(float(value))
    order = sorted(range(len(times)), key=times.__getitem__)
    ordered = tuple(times[i] for i in order)
    try:
        acquisition = InversionRecovery(ordered) if kind == "IRT1" else MultiEcho(ordered)
    except ProtocolError as error:
        raise InputError(f"{paths[0]} and its series: {error}") from error
    return acquisition, order


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
            small_delta=sidecar.get("SmallDelta"),
            large_delta=sidecar.get("LargeDelta"),
        )
    except ProtocolError as error:
        raise InputError(f"{path}: {error}") from error
