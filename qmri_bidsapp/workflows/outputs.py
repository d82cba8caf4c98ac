"""Names, sidecars and records of all files that the workflow of a participant saves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.bids.derivatives import bids_uri
from qmri_bidsapp.bids.files import labels_of
from qmri_bidsapp.bids.kinds import load_kinds
from qmri_bidsapp.bids.record import FitRecord, OrientationRecord, TruthMaps, TruthRecord, map_record, series_record
from qmri_bidsapp.bids.result_names import ENDINGS, FitNames, field_names, result_name
from qmri_bidsapp.bids.save_results import FitSidecars, TruthSidecars
from qmri_bidsapp.bids.sidecars import image_fields
from qmri_bidsapp.bids.usable_record import UsableRecord
from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.workflows.plan import NO_RESIDUALS
from qmri_bidsapp.workflows.steps import skip_fields, skip_notes

if TYPE_CHECKING:
    from qmri_bidsapp.bids.inputs import InputGroup
    from qmri_bidsapp.estimators.base import Estimator
    from qmri_bidsapp.workflows.plan import SeriesPlan

CSD_REFERENCE = "Jeurissen et al. 2014, NeuroImage 103:411"
#: Fields of maps that rotate with the tissue. FSL's convention: voxel axes, the first reversed where the determinant
#: of the affine is positive.
FRAME = {"ReferenceAxes": "bvec"}
LOG_EVIDENCE = "Natural logarithm of the evidence: density of the measurements of a voxel, in the unit of the series"
#: Maps that a posterior adds; keys as in `bids.result_names.ENDINGS`, here and below.
INTERVAL = {
    "interval_low": "Lower limit of the central 95 % interval",
    "interval_high": "Upper limit of the central 95 % interval",
}
#: Maps that a certificate adds.
TRUTH = {
    "bias": "Expected bias, given the estimate",
    "truth_low": "Lower limit (5 %) of the true value, given the estimate",
    "truth_high": "Upper limit (95 %) of the true value, given the estimate",
}
#: Maps that a certificate adds on request.
DEBIASED = {"debiased": "Estimate minus its expected bias"}
#: Maps that a certificate adds for learned estimators.
CONFORMAL = {
    f"interval_{key}": f"{side} limit of the 95 % interval (split conformal, over all signal-to-noise ratios), "
    "not where flagged"
    for key, side in (("low", "Lower"), ("high", "Upper"))
}
#: Origin of the standard deviations of skewed parameters, see `estimators.likelihood.skewed_errors`.
EXPECTED_ERROR = "expected error over the possible true values, given the estimate"
#: Treatment of standard deviations of estimators with `std_from_residuals`, see `uncertainty.moderation`.
MODERATED = "noise estimated from residuals is moderated over the series, with the quantile of Student's t"
READ_UNDER = "under the prior of the certificate, at the signal-to-noise ratio of the voxel"
TISSUE_SEGMENTATION = "Tissues: 1 grey matter, 2 white matter, 3 cerebrospinal fluid"


def desc_meanings() -> dict[str, str]:
    """Return label -> meaning of every ``desc`` that any run may write, independent of its data and options."""
    from qmri_bidsapp.registry import get_model, load_estimators, load_models

    meanings = {"displacement": "Displacement of an EPI by the field of susceptibility, voxels"}
    kinds = load_kinds()
    for suffix in (kind.suffix for kind in kinds.values() if kind.acquisition is not None and kind.label_prefix):
        meanings[f"{suffix}brain"] = f"Brain mask on the grid of the {suffix} series"
        meanings[f"{suffix}tissue"] = f"Tissue segmentation on the grid of the {suffix} series"
    for estimator in load_estimators().values():
        name = estimator.label()
        std = f"Standard deviation of the estimate ({estimator.std_kind}; more in each sidecar)"
        maps = {"estimate": "Estimate", "std": std}
        maps |= INTERVAL if estimator.has_posterior else {}
        maps |= {} if estimator.is_spatial else TRUTH | DEBIASED
        maps |= CONFORMAL if has_intervals(estimator) else {}
        endings = {ENDINGS[what]: text for what, text in maps.items()}
        meanings |= {f"{name}{ending}": f"{text}: {estimator.title}" for ending, text in endings.items()}
        meanings[f"{name}status"] = f"Outcome in each voxel of: {estimator.title}"
        meanings[f"{name}usable"] = f"Usable voxels, which tables count, of: {estimator.title}"
        meanings[f"{name}trust"] = f"Verdict of the certificate in each voxel of: {estimator.title}"
        meanings[f"{name}flag"] = f"Voxels unlike all simulated voxels of: {estimator.title}"
        for model in filter(estimator.supports, map(get_model, load_models())):
            if any(kinds[suffix].map_suffix for suffix in model.bids_suffixes):
                continue
            of = f"{model.title}, {estimator.title}"
            meanings[f"{name}{model.name}status"] = f"Outcome in each voxel of: {of}"
            meanings[f"{name}{model.name}usable"] = f"Usable voxels, which tables count, of: {of}"
            meanings[f"{name}{model.name}trust"] = f"Verdict of the certificate in each voxel of: {of}"
            meanings[f"{name}{model.name}flag"] = f"Voxels unlike all simulated voxels of: {of}"
            meanings |= {f"{name}{model.name}{ending}": f"{text}: {of}" for ending, text in endings.items()}
    return meanings


def _sidecar(
    group: InputGroup, bids_dir: str, description: str, *, skull_stripped: bool, **fields: Any
) -> dict[str, Any]:
    sources = [bids_uri(name, bids_dir) for name in group.images]
    return {"Description": description, "Sources": sources, "SkullStripped": skull_stripped, **fields}


def anat_outputs(group: InputGroup, bids_dir: str, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return inputs of `SaveImages` for a T1w: preprocessed image, brain mask, tissues; `skip` names steps left out."""
    names = [
        result_name(group, "T1w", desc="preproc"),
        result_name(group, "mask", desc="brain"),
        result_name(group, "dseg"),
    ]
    skipped = skip_fields(skip)
    description = "T1w" if "bias-field" in skip else "T1w, corrected for the bias field (N4)"
    sidecars = [
        _sidecar(group, bids_dir, description, skull_stripped=False, **skipped),
        _sidecar(group, bids_dir, "Brain mask", skull_stripped=False, Type="Brain", **skipped),
        _sidecar(group, bids_dir, TISSUE_SEGMENTATION, skull_stripped=True, Manual=False, **skipped),
    ]
    record = replace(
        series_record(group, bids_dir, skip_notes(skip)), preproc=names[0], mask=names[1], tissues=names[2]
    )
    return {"names": names, "sidecars": sidecars, "record": record}


def series_outputs(item: SeriesPlan, bids_dir: str, notes: tuple[str, ...]) -> dict[str, Any]:
    """Return inputs of `SaveSeries` for a quantitative series."""
    group, row = item.group, item.group.row
    part = {"part": "real"} if group.complement else {}
    names = [
        result_name(group, group.kind, desc="preproc", **part, **{key: labels_of(file)[key] for key in row.axis})
        for file in (group.files if row.axis else group.files[:1])
    ]
    labels = [
        result_name(group, "mask", desc=f"{row.label_prefix}brain"),
        result_name(group, "dseg", desc=f"{row.label_prefix}tissue"),
    ]
    skipped, shared = skip_fields(item.skip), {**row.assumed, **dict(group.kept)}
    description = f"{group.kind}, preprocessed"
    sidecars = [_sidecar(group, bids_dir, description, skull_stripped=False, **skipped) for _ in names]
    fields = image_fields(row, group.acquisition)  # type: ignore[arg-type]
    # The sources of a file are its magnitude and, if used, its phase or imaginary part.
    for index, (sidecar, own) in enumerate(zip(sidecars, fields, strict=True)):
        sidecar.update({**shared, **own, "Sources": sidecar["Sources"][index :: len(names)]})
    return {
        "preproc_names": names,
        "preproc_sidecars": sidecars,
        "label_names": labels,
        "label_sidecars": [
            _sidecar(group, bids_dir, "Brain mask", skull_stripped=False, Type="Brain", **skipped),
            _sidecar(group, bids_dir, TISSUE_SEGMENTATION, skull_stripped=True, Manual=False, **skipped),
        ],
        "record": series_record(group, bids_dir, (*item.notes, *notes)),
        **_field_outputs(group, bids_dir),
    }


def _field_outputs(group: InputGroup, bids_dir: str) -> dict[str, Any]:
    """Return inputs of `SaveSeries` for the field that corrects distortion; none without one."""
    if group.epi is None or group.epi.source is None:
        return {}
    encoding = group.epi.encodings[0]
    files = group.epi.source.all_files or group.files
    shared = {"Sources": [bids_uri(name, bids_dir) for name in files]}
    unit = "voxel" if encoding.readout is None else "Hz"
    direction = f"{'ijk'[encoding.axis]}{'-' if encoding.sign < 0 else ''}"
    return {
        "field_names": list(field_names(group)),
        "field_sidecars": [
            {"Description": "Field of susceptibility, in undistorted space", "Units": unit, **shared},
            {
                "Description": "Displacement along the voxel axis of PhaseEncodingDirection, of the first volume",
                "Units": "voxel",
                "PhaseEncodingDirection": direction,
                **shared,
            },
        ],
    }


def orientation_outputs(item: SeriesPlan, bids_dir: str) -> dict[str, Any]:
    """Return inputs of `SaveImages` for the number and the directions of fibres."""
    group = item.group
    names = [result_name(group, "dwimap", model="csd", param=param) for param in ("nfibres", "direction")]
    fields = {
        "Units": "1",
        "EstimationAlgorithm": "Multi-tissue constrained spherical deconvolution",
        "EstimationReference": CSD_REFERENCE,
        **skip_fields(item.skip),
    }
    vectors = (
        "Fibre directions, by descending amplitude: x, y and z of the first, of the second and of the third; NaN where "
        "absent. The length is the amplitude relative to that of a single coherent fibre"
    )
    frame = {"OrientationRepresentation": "3vector", **FRAME}
    sidecars = [
        _sidecar(group, bids_dir, "Number of fibre directions", skull_stripped=True, **fields),
        _sidecar(group, bids_dir, vectors, skull_stripped=True, **fields, **frame),
    ]
    record = OrientationRecord(group.name, n_fibres=names[0], directions=names[1])
    return {"names": names, "sidecars": sidecars, "record": record}


def fit_names(item: SeriesPlan, model_name: str, estimator_name: str, clashing: frozenset[str]) -> FitNames:
    """Return the names of all files that one fit may write; see `FitNames` for `clashing`."""
    from qmri_bidsapp.registry import get_estimator

    is_alone = sum(name == model_name for name, _ in item.fits) == 1
    return FitNames(item.group, model_name, get_estimator(estimator_name).label(), is_alone, clashing)


def fit_outputs(
    item: SeriesPlan,
    model_name: str,
    estimator_name: str,
    bids_dir: str,
    clashing: frozenset[str] = frozenset(),
) -> tuple[FitRecord, FitSidecars]:
    """Return the record of one fit, not yet run, and the sidecars of its files.

    Parameters
    ----------
    item : SeriesPlan
    model_name, estimator_name : str
    bids_dir : str
    clashing : frozenset of str
        BIDS suffixes that another model of the same subject would write under the same name.
    """
    from qmri_bidsapp.estimators.likelihood.bundles import BundlesByVoxel
    from qmri_bidsapp.registry import get_estimator, get_model

    group, model, estimator = item.group, get_model(model_name), get_estimator(estimator_name)
    title, maps_used = model.title, [bids_uri(used.file, bids_dir) for used in group.covariates if model.covariates]
    if is_bundle_fit := (model_name, estimator_name) in item.bundle_fits:
        model = BundlesByVoxel(model).model  # type: ignore[arg-type]
        title = f"{title}, 0 to 3 fibre directions"
        maps_used.append(f"bids::{orientation_outputs(item, bids_dir)['names'][1]}")
    names = fit_names(item, model_name, estimator_name, clashing)
    saved = [parameter for parameter in (*model.parameters, *model.derived) if parameter.saved]
    has_residuals = item.has_residuals(model_name)
    moderated = f"; {MODERATED}" if estimator.std_from_residuals and not is_bundle_fit and has_residuals else ""
    std_kinds = {p: _std_kind(estimator, p) for p in saved}
    exceptions = [f"; of {p.name}: {kind}" for p, kind in std_kinds.items() if kind != estimator.std_kind]
    record = FitRecord(
        series=group.name,
        kind=group.kind,
        model=model_name,
        model_title=title,
        model_reference=model.reference,
        estimator=estimator_name,
        estimator_title=estimator.title,
        std_kind="".join((estimator.std_kind, *exceptions, moderated)),
        status=names.status,
        maps=tuple(map_record(p, names, has_posterior=estimator.has_posterior) for p in saved),
        log_evidence=names.log_evidence if estimator.has_posterior else None,
    )
    unknown = "" if has_residuals else f". Not known: {NO_RESIDUALS}"
    std_texts = [
        f"Standard deviation ({kind}{moderated}) of: {p.description}{unknown}" for p, kind in std_kinds.items()
    ]
    rotated = {model.parameters[column].name for part in model.directional for column in part.columns}
    frames = {p.name: FRAME if p.name in rotated else {} for p in saved}
    return record, _fit_sidecars(item, bids_dir, record, estimator, maps_used, std_texts, frames)


def _fit_sidecars(
    item: SeriesPlan,
    bids_dir: str,
    record: FitRecord,
    estimator: type[Estimator],
    maps_used: list[str],
    std_texts: list[str],
    frames: dict[str, dict[str, str]],
) -> FitSidecars:
    """Return the sidecars of a fit.

    Parameters
    ----------
    item, bids_dir, record, estimator
        What was fitted.
    maps_used : list of str
        URIs of the maps that the fit used.
    std_texts : list of str
        Descriptions of the standard deviations.
    frames : dict
        Parameter -> fields on its axes.
    """
    group, skipped = item.group, skip_fields(item.skip)
    from qmri_bidsapp.registry import get_model

    caution = get_model(record.model).caution(group.acquisition)  # type: ignore[arg-type]
    fields = {
        "EstimationAlgorithm": estimator.title,
        "EstimationReference": f"Model: {record.model_reference}. Estimator: {estimator.reference}",
        **({"Caution": caution} if caution else {}),
        **skipped,
    }

    def sidecar(description: str, unit: str, frame: dict[str, str]) -> dict[str, Any]:
        found = _sidecar(group, bids_dir, description, skull_stripped=True, Units=unit, **frame, **fields)
        found["Sources"] += maps_used
        return found

    maps = record.maps
    own = [frames[p.parameter] for p in maps]
    posterior = [
        sidecar(f"{text} of: {p.description}", p.unit, frame)
        for text in INTERVAL.values()
        for p, frame in zip(maps, own, strict=True)
    ]
    posterior.append(sidecar(LOG_EVIDENCE, "arbitrary", {}))
    description = f"Outcome of the estimation ({record.model_title}, {estimator.title}) in each voxel"
    return FitSidecars(
        estimates=[sidecar(p.description, p.unit, frame) for p, frame in zip(maps, own, strict=True)],
        stds=[sidecar(text, p.unit, frame) for text, p, frame in zip(std_texts, maps, own, strict=True)],
        posterior=posterior if estimator.has_posterior else [],
        status=_sidecar(group, bids_dir, description, skull_stripped=True, Manual=False, **skipped),
    )


def usable_outputs(record: FitRecord, sidecars: FitSidecars, names: FitNames) -> dict[str, Any]:
    """Return inputs of `SaveUsable`: the record, without its counts, and the sidecar of the mask."""
    title = f"{record.model_title}, {record.estimator_title}"
    plain = {key: value for key, value in sidecars.status.items() if key != "Manual"}
    return {
        "record": UsableRecord(record.series, record.model, record.estimator, names.usable),
        "sidecar": {**plain, "Description": f"Usable voxels ({title}), which tables count", "Type": "ROI"},
    }


def _std_kind(estimator: type[Estimator], parameter: Parameter) -> str:
    """Return the origin of the standard deviations of a parameter."""
    from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares

    is_expected = parameter.is_skewed and issubclass(estimator, NonLinearLeastSquares)
    return EXPECTED_ERROR if is_expected else estimator.std_kind


def has_intervals(kind: type[Estimator]) -> bool:
    """Return whether an estimator gets conformal intervals: it is learned and works voxel by voxel."""
    from qmri_bidsapp.estimators.trained import TrainedEstimator

    return issubclass(kind, TrainedEstimator) and not kind.is_spatial


def certified_parameters(model_name: str) -> tuple[Parameter, ...]:
    """Return the parameters of a model that a certificate covers."""
    from qmri_bidsapp.registry import get_model
    from qmri_bidsapp.uncertainty.space import Space

    return tuple(Space(get_model(model_name)).parameters)


def truth_outputs(
    record: FitRecord, sidecars: FitSidecars, names: FitNames, *, debias: bool
) -> tuple[TruthRecord, TruthSidecars]:
    """Return the record of the certificate maps of a fit, not yet made, and the sidecars of their files.

    Parameters
    ----------
    record : FitRecord
    sidecars : FitSidecars
        Both from `fit_outputs`.
    names : FitNames
    debias : bool
        Whether to write maps of the estimate minus its expected bias.
    """
    from qmri_bidsapp.registry import get_estimator
    from qmri_bidsapp.uncertainty.ood import LEVEL

    intervals = has_intervals(get_estimator(record.estimator))
    texts = TRUTH | (DEBIASED if debias else {}) | (CONFORMAL if intervals else {})
    parameters = {p.name: p for p in certified_parameters(record.model)}
    found = TruthRecord(
        record.series,
        record.model,
        record.estimator,
        maps=tuple(TruthMaps(p.name, **{what: names.of(p, what) for what in texts}) for p in parameters.values()),
        trust=names.trust,
        flag=names.flag,
        p_value=names.p_value,
    )
    of_estimate = {entry.parameter: own for entry, own in zip(record.maps, sidecars.estimates, strict=True)}
    maps = []
    for what, parameter, _ in found.map_files():
        under = "" if what in CONFORMAL else f", {READ_UNDER}"
        description = f"{parameters[parameter].description}: {texts[what]}{under}"
        maps.append({**of_estimate[parameter], "Description": description})
    title = f"{record.model_title}, {record.estimator_title}"
    trust = f"Verdict of the certificate on the estimate ({title}) in each voxel"
    flag = f"Why a voxel differs from all simulated voxels ({title}), at a level of {LEVEL:g}"
    p_value = f"Share of simulated voxels of similar signal-to-noise ratio that are at least as unusual ({title})"
    plain = {key: value for key, value in sidecars.status.items() if key != "Manual"}
    return found, TruthSidecars(
        maps=maps,
        trust={**sidecars.status, "Description": trust},
        flag={**sidecars.status, "Description": flag},
        p_value={**plain, "Description": p_value, "Units": "1"},
    )
