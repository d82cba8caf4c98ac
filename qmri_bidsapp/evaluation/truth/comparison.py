"""All maps of a run against the true maps of its data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from qmri_bidsapp.bids.record import FitRecord, MapRecord, SubjectRecord, TruthMaps
from qmri_bidsapp.errors import InputMissingError
from qmri_bidsapp.evaluation.truth import agreement as statistics
from qmri_bidsapp.evaluation.truth.agreement import Agreement, agreement, nearest_axis, nearest_turn
from qmri_bidsapp.evaluation.truth.files import (
    Mask,
    Volume,
    fit_masks,
    read,
    read_records,
    regions_of,
    tissues_of,
    true_map,
)
from qmri_bidsapp.registry import get_model

#: Tissues in which coverage is judged; ``brain`` where there is no segmentation.
JUDGED = ("GM", "WM", "brain")


@dataclass(frozen=True)
class MapRow:
    """One map in one tissue or region.

    Attributes
    ----------
    participant, series, model, estimator, parameter, unit : str
        ``sub-01``, name of the series, registry names, parameter, unit of its statistics.
    region : str
        ``GM``, ``WM``, ``CSF`` without the regions of the truth, or the label of such a region.
    n_voxels, n_usable : int
        Fitted voxels of the region, and usable ones among them.
    agreement : Agreement
        Of the usable voxels.
    """

    participant: str
    series: str
    model: str
    estimator: str
    parameter: str
    unit: str
    region: str
    n_voxels: int
    n_usable: int
    agreement: Agreement

    @property
    def faults(self) -> list[str]:
        """Which coverage leaves its limits; none outside the tissues that are judged."""
        return self.agreement.faults() if self.region in JUDGED else []

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, those of the agreement among them, with ``share_usable`` and ``faults``."""
        found = {key: value for key, value in asdict(self).items() if key != "agreement"}
        share = self.n_usable / self.n_voxels if self.n_voxels else None
        return {**found, "share_usable": share, **self.agreement.to_dict(), "faults": self.faults}


@dataclass(frozen=True)
class FlagRow:
    """The flags of one fit in one tissue or region.

    In a region of the truth flags are hits (`is_found`), elsewhere false.
    """

    participant: str
    series: str
    model: str
    estimator: str
    region: str
    is_found: bool
    n_voxels: int
    n_flagged: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, with ``share_flagged``."""
        return {**asdict(self), "share_flagged": self.n_flagged / self.n_voxels if self.n_voxels else None}


@dataclass(frozen=True)
class Comparison:
    """Maps and flags against the truth.

    Attributes
    ----------
    maps : tuple of MapRow
    flags : tuple of FlagRow
    without_truth : tuple of str
        Maps of the run for which the truth has none.
    """

    maps: tuple[MapRow, ...]
    flags: tuple[FlagRow, ...]
    without_truth: tuple[str, ...]

    @property
    def failures(self) -> list[str]:
        """Every map and tissue whose coverage leaves its limits, in words."""
        return [
            f"{row.participant}, {row.series}, {row.model}, {row.parameter}, {row.region}: {'; '.join(row.faults)}"
            for row in self.maps
            if row.faults
        ]

    @property
    def is_judged(self) -> bool:
        """Whether any map has enough usable voxels in a judged tissue."""
        return any(row.agreement.is_judged for row in self.maps if row.region in JUDGED)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data for JSON, with the limits; see the page on the comparison for the keys."""
        return {
            "interval_limits": list(statistics.INTERVAL_LIMITS),
            "range_limits": list(statistics.RANGE_LIMITS),
            "min_voxels": statistics.MIN_VOXELS,
            "passed": self.is_judged and not self.failures,
            "failures": self.failures,
            "maps": [row.to_dict() for row in self.maps],
            "flags": [row.to_dict() for row in self.flags],
            "without_truth": list(self.without_truth),
        }


def compare_run(out_dir: Path, truth_dir: Path, labels: tuple[str, ...] = ()) -> Comparison:
    """Compare the maps of a run with true maps.

    Parameters
    ----------
    out_dir : Path
        Output folder of the app.
    truth_dir : Path
        Folder of true maps, see `find_truth`.
    labels : tuple of str
        Participants, without ``sub-``; all if empty.

    Raises
    ------
    InputMissingError
        If there is no truth or no map, a participant lacks either, or no map has a truth.
    NotComparableError
        If an image cannot be read, or truth and maps have different grids.
    """
    records = read_records(out_dir, truth_dir, labels)
    parts = [compare_participant(out_dir, truth_dir, record) for record in records]
    found = Comparison(*(sum((getattr(part, name) for part in parts), ()) for name in Comparison.__annotations__))
    if not found.maps:
        raise InputMissingError(
            f"{truth_dir} has no true map for any map in {out_dir}: it needs the names of the app's maps without desc, "
            f"as for {found.without_truth[0]}."
        )
    return found


def compare_participant(out_dir: Path, truth_dir: Path, record: SubjectRecord) -> Comparison:
    """Compare the maps of one participant; arguments and errors as for `compare_run`."""
    maps: list[MapRow] = []
    flags: list[FlagRow] = []
    missing: list[str] = []
    for fit in record.fits:
        names = {item.parameter: true_map(truth_dir, item.estimate) for item in fit.maps}
        missing += [item.estimate for item in fit.maps if names[item.parameter] is None]
        known = {name: path for name, path in names.items() if path is not None}
        if known:
            rows = _compare_fit(out_dir, truth_dir, record, fit, known)
            maps += rows[0]
            flags += rows[1]
    return Comparison(tuple(maps), tuple(flags), tuple(missing))


def _compare_fit(
    out_dir: Path, truth_dir: Path, record: SubjectRecord, fit: FitRecord, names: Mapping[str, Path]
) -> tuple[list[MapRow], list[FlagRow]]:
    like, fitted, usable, flagged = fit_masks(out_dir, record, fit)
    own = {
        name: read(path, like) > 0
        for name, path in regions_of(truth_dir, next(item.estimate for item in fit.maps)).items()
    }
    healthy = ~np.any([np.zeros(like.shape, bool), *own.values()], axis=0)
    tissues = tissues_of(truth_dir, out_dir, record.subject, record.series_of(fit), like)
    regions = {**{name: mask & healthy for name, mask in tissues.items()}, **own}
    regions = {name: mask & fitted for name, mask in regions.items()}
    identity = (f"sub-{record.subject}", fit.series, fit.model, fit.estimator)
    truths = _true_values(out_dir, fit, names, like)
    certificate = record.truth_of(fit)
    ranges = {} if certificate is None else {item.parameter: item for item in certificate.maps}
    limits = _physical_limits(fit.model)
    maps = []
    for item in fit.maps:
        if item.parameter in truths:
            volumes = _answers(out_dir, item, ranges.get(item.parameter), like)
            maps += [
                MapRow(
                    *identity, item.parameter, item.unit, name, int(mask.sum()), int((mask & usable).sum()),
                    _agreement(truths[item.parameter], volumes, mask & usable, limits.get(item.parameter)),
                )
                for name, mask in regions.items()
                if np.isfinite(truths[item.parameter][mask]).any()
            ]  # fmt: skip
    flags = [
        FlagRow(*identity, name, name in own, int(mask.sum()), int((mask & flagged).sum()))
        for name, mask in regions.items()
        if flagged is not None
    ]
    return maps, flags


def _true_values(
    out_dir: Path, fit: FitRecord, names: Mapping[str, Path], like: nib.Nifti1Image
) -> dict[str, npt.NDArray[np.floating]]:
    """Return the true maps; angles in the form nearest to their estimates."""
    found: dict[str, npt.NDArray[np.floating]] = {
        name: read(path, like).astype(np.float64) for name, path in names.items()
    }
    angles = {item.parameter: item for item in fit.maps if item.unit == "degree"}
    estimates = {name: read(out_dir / item.estimate, like) for name, item in angles.items() if name in found}
    for name in estimates:
        azimuth = name.replace("theta", "phi")
        if name.startswith("theta") and azimuth in estimates:
            axis = nearest_axis(found[name], found[azimuth], estimates[name], estimates[azimuth])
            found[name], found[azimuth] = axis
        elif name.replace("phi", "theta") not in estimates:
            found[name] = nearest_turn(found[name], estimates[name], 360.0)
    return found


def _answers(
    out_dir: Path, item: MapRecord, certified: TruthMaps | None, like: nib.Nifti1Image
) -> dict[str, Volume | None]:
    """Return the maps of one parameter: estimate, std, and the limits of interval and range where there are any."""
    names = {
        "estimate": item.estimate,
        "std": item.std,
        "low": item.interval_low or (certified and certified.interval_low),
        "high": item.interval_high or (certified and certified.interval_high),
        "range_low": certified and certified.truth_low,
        "range_high": certified and certified.truth_high,
    }
    return {key: read(out_dir / name, like) if name else None for key, name in names.items()}


def _physical_limits(model: str) -> dict[str, tuple[float, float]]:
    """Return the limits of nature of the parameters of a model, see `Parameter.physical`."""
    found = get_model(model)
    return {
        p.name: (p.bounds[0] if p.physical[0] else -np.inf, p.bounds[1] if p.physical[1] else np.inf)
        for p in (*found.parameters, *found.derived)
    }


def _agreement(
    truth: Volume, volumes: dict[str, Volume | None], where: Mask, physical: tuple[float, float] | None
) -> Agreement:
    def limits(low: str, high: str) -> tuple[Volume, Volume] | None:
        first, last = volumes[low], volumes[high]
        return None if first is None or last is None else (first[where], last[where])

    estimate, std = volumes["estimate"], volumes["std"]
    assert estimate is not None
    assert std is not None
    return agreement(
        truth[where],
        estimate[where],
        std[where],
        interval=limits("low", "high"),
        value_range=limits("range_low", "range_high"),
        physical=physical or (-np.inf, np.inf),
    )
