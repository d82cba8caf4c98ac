"""Phase encoding of an EPI series: axis, polarity and readout time, from its sidecar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.errors import InputError

#: Plausible readout times of an EPI, s. A value beyond is in another unit, or is no EPI's.
PLAUSIBLE_READOUT = (1e-3, 0.5)
#: Two ways to the readout time agree within this share; they differ by more where an image was interpolated or one of
#: the fields is wrong.
AGREEMENT = 0.05


@dataclass(frozen=True)
class PhaseEncoding:
    """How an EPI is distorted by a field.

    Magnetisation at voxel coordinate y along the axis, in a field f (Hz), is found in the image at
    y + sign * readout * f(y), its intensity divided by the local stretching.

    Attributes
    ----------
    axis : int
        Voxel axis, 0 to 2.
    sign : int
        1 for ``j``, -1 for ``j-``.
    readout : float or None
        Total readout time, s. None: not known, and fields are in voxels of displacement.
    note : str or None
        How the readout time was found, where the sidecar does not state it or contradicts itself.
    """

    axis: int
    sign: int
    readout: float | None = None
    note: str | None = field(default=None, compare=False)

    @classmethod
    def from_sidecar(cls, sidecar: Mapping[str, Any], shape: Sequence[int]) -> PhaseEncoding:
        """Read the BIDS sidecar of an EPI.

        Without ``TotalReadoutTime`` the readout time is computed as the BIDS specification does, from
        ``EffectiveEchoSpacing`` and the number of reconstructed lines (``ReconMatrixPE``, else of the image), or from
        ``BandwidthPerPixelPhaseEncode``, the inverse of echo spacing times lines.

        Parameters
        ----------
        sidecar : mapping
        shape : sequence of int
            (x, y, z, ...) of the image.

        Raises
        ------
        InputError
            If the direction is missing or no voxel axis, or a readout time is implausible.
        """
        axis, sign = _direction(sidecar, shape)
        stated = _number(sidecar, "TotalReadoutTime")
        computed, source = _computed_readout(sidecar, int(shape[axis]))
        readout = computed if stated is None else stated
        if readout is None:
            note = (
                "The sidecar has neither TotalReadoutTime nor EffectiveEchoSpacing: fields are in voxels of "
                "displacement, not in Hz."
            )
            return cls(axis, sign, None, note)
        if not PLAUSIBLE_READOUT[0] <= readout <= PLAUSIBLE_READOUT[1]:
            name = "TotalReadoutTime" if stated is not None else source
            raise InputError(
                f"{name} gives a readout of {readout:g} s, which no EPI has ({PLAUSIBLE_READOUT[0]:g} to "
                f"{PLAUSIBLE_READOUT[1]:g} s). Is it in milliseconds? BIDS has seconds."
            )
        found = None
        if stated is None:
            found = f"TotalReadoutTime is missing; {readout:.4g} s follow from {source}."
        elif computed is not None and abs(computed - stated) > AGREEMENT * stated:
            found = f"TotalReadoutTime ({stated:.4g} s) is used, although {source} gives {computed:.4g} s."
        return cls(axis, sign, readout, found)

    def displacement(self, field: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Return the displacement, voxels along the axis, in a field in Hz (in voxels if the readout is not known)."""
        return self.sign * (1.0 if self.readout is None else self.readout) * field

    def is_opposite(self, other: PhaseEncoding) -> bool:
        """Return whether another series is encoded along the same axis in the opposite direction."""
        return self.axis == other.axis and self.sign == -other.sign


def _direction(sidecar: Mapping[str, Any], shape: Sequence[int]) -> tuple[int, int]:
    """Return axis and sign."""
    direction = sidecar.get("PhaseEncodingDirection")
    if direction is None:
        known = sidecar.get("PhaseEncodingAxis")
        hint = f" PhaseEncodingAxis ({known}) does not give the polarity." if known else ""
        raise InputError(f"PhaseEncodingDirection is missing; add it to the sidecar (i, i-, j, j-, k or k-).{hint}")
    text = str(direction)
    if text[:1] not in {"i", "j", "k"} or text[1:] not in {"", "-"}:
        raise InputError(f"PhaseEncodingDirection must be i, i-, j, j-, k or k- (voxel axes), got {direction!r}.")
    axis = "ijk".index(text[0])
    if len(shape) <= axis or shape[axis] < 2:
        raise InputError(f"PhaseEncodingDirection is {text}, but the image of {tuple(shape)} has one voxel there.")
    return axis, -1 if text.endswith("-") else 1


def _computed_readout(sidecar: Mapping[str, Any], n_voxels: int) -> tuple[float | None, str]:
    """Return the readout time, s, that other fields give, and their names."""
    n_lines = _number(sidecar, "ReconMatrixPE")
    lines = "ReconMatrixPE" if n_lines is not None else "the size of the image"
    n_lines = float(n_voxels) if n_lines is None else n_lines
    spacing = _number(sidecar, "EffectiveEchoSpacing")
    if spacing is not None:
        return spacing * (n_lines - 1), f"EffectiveEchoSpacing and {lines}"
    bandwidth = _number(sidecar, "BandwidthPerPixelPhaseEncode")
    if bandwidth is not None:
        return (n_lines - 1) / (bandwidth * n_lines), f"BandwidthPerPixelPhaseEncode and {lines}"
    return None, ""


def _number(sidecar: Mapping[str, Any], name: str) -> float | None:
    """Return a positive number of the sidecar; None if it is missing."""
    value = sidecar.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0 or not np.isfinite(value):
        raise InputError(f"{name} must be a positive number, got {value!r}.")
    return float(value)
