"""The record of a participant: the results of a run as typed fields; `record_files` reads and writes it.

Reports, group tables and training distributions start from the record. Paths of results are relative to the output
folder, paths of inputs to the input data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qmri_bidsapp import formats
from qmri_bidsapp.bids.derivatives import bids_uri
from qmri_bidsapp.bids.kinds import protocol_of
from qmri_bidsapp.bids.usable_record import UsableRecord

if TYPE_CHECKING:
    from qmri_bidsapp.bids.inputs import InputGroup
    from qmri_bidsapp.bids.result_names import FitNames
    from qmri_bidsapp.core.acquisition import Acquisition
    from qmri_bidsapp.core.parameters import Parameter


@dataclass(frozen=True)
class SeriesRecord:
    """One series, with the images that its preprocessing saved.

    Attributes
    ----------
    name, kind : str
        ``ses-01_IRT1``, BIDS suffix.
    entities : dict
        BIDS key -> label.
    files : tuple of str
        Relative to the input data set.
    protocol : dict or None
        `Acquisition.to_dict`; None for a T1w.
    metadata : dict
        Sidecar fields that the report shows.
    covariates : dict
        Covariate -> file, relative to the input data set.
    notes : tuple of str
        Steps that were left out and assumptions that were made, with their reason.
    head_motion : tuple of tuple of float, or None
        (n_volumes, 6): rotation, rad, and translation, mm, of each volume against the reference.
    preproc, mask, tissues : str or None
        Preprocessed image, brain mask, tissue segmentation.
    """

    name: str
    kind: str
    entities: dict[str, str]
    files: tuple[str, ...]
    protocol: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    covariates: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    head_motion: tuple[tuple[float, ...], ...] | None = None
    preproc: str | None = None
    mask: str | None = None
    tissues: str | None = None

    @property
    def acquisition(self) -> Acquisition | None:
        """Protocol of the series; None for a T1w.

        Raises
        ------
        ProtocolError
            If its type is unknown, as that of a plug-in which is not installed.
        """
        return None if self.protocol is None else protocol_of(self.protocol)


@dataclass(frozen=True)
class OrientationRecord:
    """Maps of the number and the directions of fibres of a diffusion series."""

    series: str
    n_fibres: str
    directions: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MapRecord:
    """The maps of one parameter of a fit.

    Attributes
    ----------
    parameter, description, unit : str
    display_range : (float, float) or None
        In `unit`; None: from the values of the map.
    estimate, std : str
        Map, and its standard deviation.
    interval_low, interval_high : str or None
        Limits of the central 95 % interval; None for estimators without a posterior.
    """

    parameter: str
    description: str
    unit: str
    display_range: tuple[float, float] | None
    estimate: str
    std: str
    interval_low: str | None = None
    interval_high: str | None = None


@dataclass(frozen=True)
class FitRecord:
    """One fit: a model and an estimator on a series.

    Attributes
    ----------
    series, kind, model, estimator : str
        Name and BIDS suffix of the series, registry names.
    model_title, model_reference, estimator_title, std_kind : str
        Texts for the report.
    status : str
        Status map.
    maps : tuple of MapRecord
    log_evidence : str or None
        Map of the log evidence; None for estimators without a posterior.
    status_counts : dict
        Name of `Status` -> number of voxels.
    seconds : float
        Time of the fit, s.
    training : dict
        Sidecar fields about the training of a learned estimator.
    """

    series: str
    kind: str
    model: str
    model_title: str
    model_reference: str
    estimator: str
    estimator_title: str
    std_kind: str
    status: str
    maps: tuple[MapRecord, ...]
    log_evidence: str | None = None
    status_counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def posterior_files(self) -> tuple[str, ...]:
        """Lower limits, then upper limits of all maps, then the log evidence; empty without a posterior."""
        names = [item.interval_low for item in self.maps] + [item.interval_high for item in self.maps]
        return tuple(name for name in (*names, self.log_evidence) if name is not None)


@dataclass(frozen=True)
class TruthMaps:
    """Certificate maps of one parameter: expected bias, 5 to 95 % range of the truth, and more on request.

    `debiased` needs ``--debias``; `interval_low` and `interval_high`, the limits of the conformal 95 % interval,
    need a learned estimator.
    """

    parameter: str
    bias: str
    truth_low: str
    truth_high: str
    debiased: str | None = None
    interval_low: str | None = None
    interval_high: str | None = None


@dataclass(frozen=True)
class TruthRecord:
    """The certificate maps of a fit.

    Attributes
    ----------
    series, model, estimator : str
        As in the `FitRecord`.
    certificate : str or None
        None if the noise of the series is unknown; then there are no maps either.
    maps : tuple of TruthMaps
    trust, flag, p_value : str or None
        Maps of `Trust`, of `Reason`, and of the p-values of the flags.
    counts, flag_counts : dict
        Name of `Trust`, name of `Reason` -> number of voxels.
    wide_counts : dict
        Parameter -> number of voxels in which its range is wide.
    noise_factor : float
        Median of the noise that flags assume over the noise that was measured.
    """

    series: str
    model: str
    estimator: str
    certificate: str | None = None
    maps: tuple[TruthMaps, ...] = ()
    trust: str | None = None
    flag: str | None = None
    p_value: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    wide_counts: dict[str, int] = field(default_factory=dict)
    flag_counts: dict[str, int] = field(default_factory=dict)
    noise_factor: float = 1.0

    def map_files(self) -> list[tuple[str, str, str]]:
        """Return quantity (``"bias"``), parameter and file of every map, by quantity and then by parameter."""
        quantities = ("bias", "truth_low", "truth_high", "debiased", "interval_low", "interval_high")
        found = [(name, item.parameter, getattr(item, name)) for name in quantities for item in self.maps]
        return [(quantity, parameter, file) for quantity, parameter, file in found if file is not None]

    @property
    def files(self) -> tuple[str, ...]:
        """All maps, with trust, flag and p-values."""
        singles = (name for name in (self.trust, self.flag, self.p_value) if name is not None)
        return (*(file for *_, file in self.map_files()), *singles)


@dataclass(frozen=True)
class MotionScoreValues:
    """A motion score.

    Attributes
    ----------
    mean, low, high : float
        Score and limits of its 90 % interval, mm.
    p_value : float or None
        Fraction of the training images that are as unusual; None where unknown.
    grades : dict
        Grade -> probability; empty without a quality-control head.
    """

    mean: float
    low: float
    high: float
    p_value: float | None = None
    grades: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MotionScoreRecord:
    """The motion score of a T1w, or why there is none.

    Attributes
    ----------
    name : str
        Of the T1w.
    image, distribution : str
        Preprocessed T1w; file of the distribution.
    weights, weights_sha256, qc_head_sha256 : str
        Weights of the scorer; `qc_head_sha256` is empty without a quality-control head.
    score : MotionScoreValues or None
        None where the image was refused.
    refusal : str
        Why there is no score; empty where there is one.
    warnings : tuple of str
        Why the score may be wrong.
    """

    name: str
    image: str
    distribution: str
    weights: str = ""
    weights_sha256: str = ""
    qc_head_sha256: str = ""
    score: MotionScoreValues | None = None
    refusal: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProblemRecord:
    """A problem or remark about the data; `severity` is ``"error"``, ``"warning"`` or ``"note"``."""

    message: str
    kind: str = ""
    file: str = ""
    severity: str = "error"


@dataclass(frozen=True)
class SubjectRecord:
    """All results of a run for one participant.

    Attributes
    ----------
    subject : str
        Label, without ``sub-``.
    version : str
        Of the program.
    format : int
        See `formats.RECORD`.
    """

    subject: str
    version: str
    series: tuple[SeriesRecord, ...] = ()
    orientations: tuple[OrientationRecord, ...] = ()
    fits: tuple[FitRecord, ...] = ()
    truths: tuple[TruthRecord, ...] = ()
    usables: tuple[UsableRecord, ...] = ()
    motion_scores: tuple[MotionScoreRecord, ...] = ()
    problems: tuple[ProblemRecord, ...] = ()
    notes: tuple[str, ...] = ()
    format: int = formats.RECORD

    def series_of(self, fit: FitRecord) -> SeriesRecord:
        """Return the series of a fit; the reader has checked that it is there."""
        return next(item for item in self.series if item.name == fit.series)

    def truth_of(self, fit: FitRecord) -> TruthRecord | None:
        """Return the certificate maps of a fit, None without any."""
        return next((item for item in self.truths if _is_of(item, fit)), None)

    def usable_of(self, fit: FitRecord) -> UsableRecord | None:
        """Return the usable voxels of a fit, None if the run stopped before they were saved."""
        return next((item for item in self.usables if _is_of(item, fit)), None)


def _is_of(item: TruthRecord | UsableRecord, fit: FitRecord) -> bool:
    return (item.series, item.model, item.estimator) == (fit.series, fit.model, fit.estimator)


def series_record(group: InputGroup, bids_dir: str, notes: tuple[str, ...] = ()) -> SeriesRecord:
    """Return the record of a series before it is processed."""

    def within_data_set(file: str) -> str:
        return bids_uri(file, bids_dir).split(":", 2)[2]

    return SeriesRecord(
        name=group.name,
        kind=group.kind,
        entities=dict(group.entities),
        files=tuple(within_data_set(name) for name in group.files),
        protocol=None if group.acquisition is None else group.acquisition.to_dict(),
        metadata=dict(group.metadata),
        covariates={item.name: within_data_set(item.file) for item in group.covariates},
        notes=notes,
    )


def map_record(parameter: Parameter, names: FitNames, *, has_posterior: bool) -> MapRecord:
    """Return the record of the maps of one parameter."""
    return MapRecord(
        parameter=parameter.name,
        description=parameter.description,
        unit=parameter.unit,
        display_range=parameter.display_range,
        estimate=names.of(parameter, "estimate"),
        std=names.of(parameter, "std"),
        interval_low=names.of(parameter, "interval_low") if has_posterior else None,
        interval_high=names.of(parameter, "interval_high") if has_posterior else None,
    )


def score_values(found: Mapping[str, Any]) -> MotionScoreValues | None:
    """Return the numbers of what `ScoreMotion` found; None if it refused the image."""
    if "refusal" in found:
        return None
    return MotionScoreValues(found["mean"], found["low"], found["high"], found["p_value"], found.get("grades", {}))
