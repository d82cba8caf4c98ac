"""The BIDS suffixes that the app knows: one row each says how a series is found, read, preprocessed and named.

A new suffix needs a row here, or in a package of its own under the entry-point group ``qmri_bidsapp.kinds``, a subclass
of `core.acquisition.Acquisition` where no present one describes it, and a model that names the suffix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from qmri_bidsapp.core.acquisition import Acquisition, Diffusion, InversionRecovery, MultiEcho, SpoiledGradientEcho
from qmri_bidsapp.errors import UsageError

KIND_GROUP = "qmri_bidsapp.kinds"
#: BIDS keys of the entities that distinguish series, in BIDS order; the axis of a series is not one of them.
ENTITIES = ("ses", "sample", "acq", "ce", "rec", "dir", "run", "echo", "chunk")
#: Suffix of maps of the transmit field, relative to the nominal flip angle.
FIELDMAP = "TB1map"
#: Sidecar fields that reports show of every series.
SHOWN_FIELDS = (
    "Manufacturer",
    "ManufacturersModelName",
    "MagneticFieldStrength",
    "RepetitionTime",
    "FlipAngle",
    "PulseSequenceType",
)
#: Sidecar fields that preprocessing leaves true: preprocessed images keep those that all images of a series share.
KEPT_FIELDS = (
    *SHOWN_FIELDS,
    "RepetitionTimeExcitation",
    "EchoTime",
    "InversionTime",
    "MTState",
    "BigDelta",
    "LargeDelta",
    "SmallDelta",
    "PhaseEncodingDirection",
    "TotalReadoutTime",
    "EffectiveEchoSpacing",
    "PartialFourier",
    "ParallelReductionFactorInPlane",
    "MultibandAccelerationFactor",
    "ReceiveCoilName",
    "SequenceName",
    "ScanningSequence",
    "PulseSequenceDetails",
    "NonlinearGradientCorrection",
    "BodyPart",
)


@dataclass(frozen=True)
class Field:
    """A sidecar field that an acquisition is made from.

    Attributes
    ----------
    attribute : str
        Attribute of the acquisition.
    names : tuple of str
        BIDS names; the first one that a sidecar holds is used.
    unit : str or None
        Unit of a number, spelled out (``"seconds"``); None for true or false.
    is_required : bool
        Whether an image without it is an error. The values of required fields are written to the sidecars of
        preprocessed images.
    default : object
        Value where an optional field is absent.
    entity : str or None
        BIDS key of the entity of file names that states the same, as ``on`` or ``off``: the two must agree.
    words : tuple of (str, bool)
        Text, in capitals, that a true-or-false field may hold as well, and its meaning.
    """

    attribute: str
    names: tuple[str, ...]
    unit: str | None
    is_required: bool = True
    default: Any = None
    entity: str | None = None
    words: tuple[tuple[str, bool], ...] = ()


@dataclass(frozen=True)
class Kind:
    """One BIDS suffix.

    Attributes
    ----------
    suffix : str
    acquisition : type of Acquisition or None
        Protocol of its series; None for an image that no model is fitted to.
    fields : tuple of Field
        Sidecar fields that the acquisition is made from: of every image of a series, or of the one 4-D image, where a
        list holds one value per volume.
    axis : tuple of str
        BIDS keys of the entities along which the images of a series differ; empty for a single image.
    sort_by : tuple of str
        Attributes of the acquisition by which the images are sorted, ascending; empty: in the order of `fields`.
    datatype : str
        BIDS folder.
    map_suffix : str or None
        Suffix of all parameter maps, which then carry the entities ``model`` and ``param``; None: every parameter has a
        suffix of its own.
    is_diffusion : bool
        Whether a gradient table gives b-values and directions. Such a series is denoised, unringed and aligned, its
        directions are rotated, and its noise is known from the denoising or from repeated volumes.
    restores_polarity : bool
        Whether phase images, or real and imaginary parts, restore the sign of its magnitudes.
    is_steady_state : bool
        Whether a map of the transmit field applies, and only the first of several echoes is used.
    shown : tuple of str
        Sidecar fields that reports show.
    assumed : dict
        Sidecar fields of preprocessed images -> value where the raw images lack them; for others see `KEPT_FIELDS`.
    min_extent : float
        Smallest field of view along any axis, mm; thinner images are not used.
    objection : callable or None
        Returns, given the sidecar of an image, why it cannot be used; None if it can.
    """

    suffix: str
    acquisition: type[Acquisition] | None = None
    fields: tuple[Field, ...] = ()
    axis: tuple[str, ...] = ()
    sort_by: tuple[str, ...] = ()
    datatype: str = "anat"
    map_suffix: str | None = None
    is_diffusion: bool = False
    restores_polarity: bool = False
    is_steady_state: bool = False
    shown: tuple[str, ...] = SHOWN_FIELDS
    assumed: Mapping[str, str] = field(default_factory=dict)
    min_extent: float = 0.0
    objection: Callable[[Mapping[str, Any]], str | None] | None = None

    @property
    def ndim(self) -> int:
        """Number of dimensions of an image."""
        return 3 if self.acquisition is None or self.axis else 4

    @property
    def within(self) -> tuple[str, ...]:
        """BIDS keys of the entities by which the images of one series may differ."""
        return (*self.axis, *(("echo",) if self.is_steady_state else ()))

    @property
    def label_prefix(self) -> str:
        """Start of ``desc`` of masks and segmentations: in ``anat``, those of several suffixes lie side by side."""
        return self.suffix if self.datatype == "anat" else ""


def _not_spoiled(sidecar: Mapping[str, Any]) -> str | None:
    """Return why an image that should be a spoiled gradient echo cannot be used."""
    sequence = str(sidecar.get("PulseSequenceType", ""))
    if "SSFP" in sequence.upper():
        return f"has PulseSequenceType {sequence}: only spoiled gradient echoes can be used; exclude it"
    return None


_ECHO_TIME = Field("echo_time", ("EchoTime",), "seconds")
_FLIP_ANGLE = Field("flip_angle", ("FlipAngle",), "degrees")
_REPETITION_TIME = Field("repetition_time", ("RepetitionTimeExcitation", "RepetitionTime"), "seconds")
# The words are those of the DICOM attribute Magnetization Transfer (0018,9020).
_MT_PULSE = Field(
    "mt_pulse",
    ("MTState",),
    None,
    entity="mt",
    words=(("ON_RESONANCE", True), ("OFF_RESONANCE", True), ("NONE", False)),
)
_STEADY_STATE_ORDER = ("mt_pulse", "flip_angle", "repetition_time")
_KINDS = (
    # Brain extraction needs the whole head: a thinner image is a slab.
    Kind("T1w", min_extent=80.0),
    Kind(
        "IRT1",
        InversionRecovery,
        (Field("inversion_time", ("InversionTime",), "seconds"),),
        axis=("inv",),
        restores_polarity=True,
    ),
    Kind("MESE", MultiEcho, (_ECHO_TIME,), axis=("echo",)),
    Kind("MEGRE", MultiEcho, (_ECHO_TIME,), axis=("echo",)),
    Kind(
        "VFA",
        SpoiledGradientEcho,
        (_FLIP_ANGLE, _REPETITION_TIME, replace(_MT_PULSE, is_required=False, default=False)),
        axis=("flip",),
        sort_by=_STEADY_STATE_ORDER,
        is_steady_state=True,
        assumed={"PulseSequenceType": "Spoiled gradient echo"},
        objection=_not_spoiled,
    ),
    Kind(
        "MTS",
        SpoiledGradientEcho,
        (_FLIP_ANGLE, _REPETITION_TIME, _MT_PULSE),
        axis=("flip", "mt"),
        sort_by=_STEADY_STATE_ORDER,
        is_steady_state=True,
        objection=_not_spoiled,
    ),
    Kind(
        "dwi",
        Diffusion,
        # BIDS names the timing since version 1.11.2; some data sets say LargeDelta.
        (
            Field("small_delta", ("SmallDelta",), "seconds", is_required=False),
            Field("large_delta", ("BigDelta", "LargeDelta"), "seconds", is_required=False),
        ),
        datatype="dwi",
        map_suffix="dwimap",
        is_diffusion=True,
        shown=(*SHOWN_FIELDS, "PartialFourier", "BigDelta", "LargeDelta", "SmallDelta"),
    ),
)


@cache
def load_kinds() -> dict[str, Kind]:
    """Return suffix -> row, in the order in which series are processed: those of the app, then those of plug-ins.

    Raises
    ------
    UsageError
        If two rows have one suffix, or a plug-in registers something else than a `Kind`.
    """
    found = {kind.suffix: kind for kind in _KINDS}
    for entry in sorted(entry_points(group=KIND_GROUP), key=lambda item: (item.name, item.value)):
        kind = entry.load()
        if not isinstance(kind, Kind):
            raise UsageError(
                f"{entry.value} must be a Kind, as a plug-in under {KIND_GROUP}, got {kind!r}; correct it."
            )
        if kind.suffix in found:
            raise UsageError(f"{entry.value} registers suffix {kind.suffix}, which is already known; uninstall it.")
        found[kind.suffix] = kind
    return found


def protocol_of(plain: dict[str, Any]) -> Acquisition:
    """Return a protocol from `Acquisition.to_dict`, also one that a plug-in defines.

    Raises
    ------
    ProtocolError
        If its type is unknown.
    """
    # Loading a plug-in registers its acquisition.
    load_kinds()
    return Acquisition.from_dict(plain)


def suffixes() -> str:
    """Return all suffixes, separated by commas."""
    return ", ".join(load_kinds())
