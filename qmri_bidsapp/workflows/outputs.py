"""Names, sidecars and record entries of everything that a subject's workflow saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.bids.derivatives import bids_uri, relative_path
from qmri_bidsapp.bids.files import labels_of
from qmri_bidsapp.bids.queries import SERIES_AXIS
from qmri_bidsapp.bids.sidecars import image_fields
from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.workflows.plan import NO_RESIDUALS

if TYPE_CHECKING:
    from qmri_bidsapp.bids.inputs import InputGroup
    from qmri_bidsapp.estimators.base import Estimator
    from qmri_bidsapp.workflows.plan import SeriesPlan

#: Suffixes that more than one model writes: the model is part of their ``desc``.
SHARED_SUFFIXES = ("S0map",)
CSD_REFERENCE = "Jeurissen et al. 2014, NeuroImage 103:411"
LOG_EVIDENCE = "Natural logarithm of the evidence: density of the measurements of a voxel, in the unit of the series"
#: What a posterior adds to a map, by ending of ``desc``.
INTERVAL = {"low": "Lower limit of the central 95 % interval", "high": "Upper limit of the central 95 % interval"}
#: What the inverse reading adds to a map, by ending of ``desc``.
TRUTH = {
    "bias": "Expected bias, given the estimate",
    "truthlow": "Lower limit (5 %) of the true value, given the estimate",
    "truthhigh": "Upper limit (95 %) of the true value, given the estimate",
}
#: What it adds if that is asked for.
DEBIASED = {"debiased": "Estimate less its expected bias"}
#: What it adds for learned estimators.
CONFORMAL = {
    "low": "Lower limit of the 95 % interval (split conformal, over all signal-to-noise ratios), not where flagged",
    "high": "Upper limit of the 95 % interval (split conformal, over all signal-to-noise ratios), not where flagged",
}
#: How standard deviations of skewed parameters are obtained, see `estimators.profile`.
EXPECTED_ERROR = "expected error over the truths that may have made the estimate"
#: What is done to standard deviations of estimators that are `std_from_residuals`, see `uncertainty.moderation`.
MODERATED = "noise, where residuals tell it, moderated over the series, with the quantile of Student's t"
READ_UNDER = "under the prior of the certificate, at the signal-to-noise ratio of the voxel"
TISSUE_SEGMENTATION = "Tissues: 1 grey matter, 2 white matter, 3 cerebrospinal fluid"


def desc_meanings() -> dict[str, str]:
    """Return label -> meaning of every ``desc`` that a run may write, whatever it finds and is asked for."""
    from qmri_bidsapp.registry import get_model, load_estimators, load_models

    meanings = {}
    for kind in SERIES_AXIS:
        meanings[f"{kind}brain"] = f"Brain mask on the grid of the {kind} series"
        meanings[f"{kind}tissue"] = f"Tissue segmentation on the grid of the {kind} series"
    for estimator in load_estimators().values():
        name = estimator.label()
        std = f"Standard deviation of the estimate ({estimator.std_kind}; more in each sidecar)"
        endings = {"": "Estimate", "std": std}
        endings |= INTERVAL if estimator.has_posterior else {}
        endings |= {} if estimator.is_spatial else TRUTH | DEBIASED
        endings |= CONFORMAL if has_intervals(estimator) else {}
        meanings |= {f"{name}{ending}": f"{text}: {estimator.title}" for ending, text in endings.items()}
        meanings[f"{name}status"] = f"Outcome in each voxel of: {estimator.title}"
        meanings[f"{name}trust"] = f"What the certificate says in each voxel of: {estimator.title}"
        meanings[f"{name}flag"] = f"Voxels unlike all that was simulated for: {estimator.title}"
        for model in filter(estimator.supports, map(get_model, load_models())):
            if "dwi" in model.bids_suffixes:
                continue
            of = f"{model.title}, {estimator.title}"
            meanings[f"{name}{model.name}status"] = f"Outcome in each voxel of: {of}"
            meanings[f"{name}{model.name}trust"] = f"What the certificate says in each voxel of: {of}"
            meanings[f"{name}{model.name}flag"] = f"Voxels unlike all that was simulated for: {of}"
            meanings |= {f"{name}{model.name}{ending}": f"{text}: {of}" for ending, text in endings.items()}
    return meanings


def _name(group: InputGroup, suffix: str, extension: str = ".nii.gz", **extra: str) -> str:
    datatype = "dwi" if group.kind == "dwi" else "anat"
    return relative_path(
        group.subject,
        dict(group.entities),
        datatype=datatype,
        suffix=suffix,
        extension=extension,
        extra=extra,
    )


def _sidecar(
    group: InputGroup, bids_dir: str, description: str, *, skull_stripped: bool, **fields: Any
) -> dict[str, Any]:
    sources = [bids_uri(name, bids_dir) for name in group.images]
    return {"Description": description, "Sources": sources, "SkullStripped": skull_stripped, **fields}


def record_of_series(group: InputGroup, bids_dir: str, notes: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what the report needs to know of a series before it is processed."""
    return {
        "name": group.name,
        "kind": group.kind,
        "entities": dict(group.entities),
        "files": [bids_uri(name, bids_dir).split(":", 2)[2] for name in group.files],
        "protocol": None if group.acquisition is None else group.acquisition.to_dict(),
        "metadata": dict(group.metadata),
        "covariates": {item.name: bids_uri(item.file, bids_dir).split(":", 2)[2] for item in group.covariates},
        "notes": list(notes),
        "motion": None,
        "preproc": None,
        "mask": None,
        "tissues": None,
    }


def anat_outputs(group: InputGroup, bids_dir: str) -> dict[str, Any]:
    """Return inputs of `SaveImages` for a T1w: preprocessed image, brain mask, tissues."""
    names = [_name(group, "T1w", desc="preproc"), _name(group, "mask", desc="brain"), _name(group, "dseg")]
    sidecars = [
        _sidecar(group, bids_dir, "T1w, corrected for the bias field (N4)", skull_stripped=False),
        _sidecar(group, bids_dir, "Brain mask", skull_stripped=False, Type="Brain"),
        _sidecar(group, bids_dir, TISSUE_SEGMENTATION, skull_stripped=True, Manual=False),
    ]
    record = record_of_series(group, bids_dir)
    record.update(preproc=names[0], mask=names[1], tissues=names[2])
    return {"names": names, "sidecars": sidecars, "record": record}


def series_outputs(item: SeriesPlan, bids_dir: str, notes: tuple[str, ...]) -> dict[str, Any]:
    """Return inputs of `SaveSeries` for a quantitative series."""
    group = item.group
    labels = [_name(group, "mask", desc="brain"), _name(group, "dseg", desc="tissue")]
    if group.kind == "dwi":
        names = [_name(group, "dwi", desc="preproc")]
    else:
        part = {"part": "real"} if group.complement else {}
        axis = SERIES_AXIS[group.kind]
        names = [
            _name(group, group.kind, desc="preproc", **part, **{key: labels_of(file)[key] for key in axis})
            for file in group.files
        ]
        labels = [
            _name(group, "mask", desc=f"{group.kind}brain"),
            _name(group, "dseg", desc=f"{group.kind}tissue"),
        ]
    description = f"{group.kind}, preprocessed"
    sidecars = [_sidecar(group, bids_dir, description, skull_stripped=False) for _ in names]
    if group.kind == "dwi":
        sidecars[0].update({key: value for key, value in group.metadata if key == "RepetitionTime"})
    else:
        fields = image_fields(group.kind, group.acquisition)  # type: ignore[arg-type]
        if group.kind == "VFA":
            sequence = dict(group.metadata).get("PulseSequenceType", "Spoiled gradient echo")
            fields = [{**item, "PulseSequenceType": sequence} for item in fields]
        # A file, and its phase or imaginary part, where there is one.
        for index, (sidecar, item_fields) in enumerate(zip(sidecars, fields, strict=True)):
            sidecar.update({**item_fields, "Sources": sidecar["Sources"][index :: len(group.files)]})
    return {
        "preproc_names": names,
        "preproc_sidecars": sidecars,
        "label_names": labels,
        "label_sidecars": [
            _sidecar(group, bids_dir, "Brain mask", skull_stripped=False, Type="Brain"),
            _sidecar(group, bids_dir, TISSUE_SEGMENTATION, skull_stripped=True, Manual=False),
        ],
        "record": record_of_series(group, bids_dir, (*item.notes, *notes)),
    }


def orientation_outputs(item: SeriesPlan, bids_dir: str) -> dict[str, Any]:
    """Return inputs of `SaveImages` for the number and the directions of fibres."""
    group = item.group
    names = [_name(group, "dwimap", model="csd", param=param) for param in ("nfibres", "direction")]
    fields = {
        "Units": "1",
        "EstimationAlgorithm": "Multi-tissue constrained spherical deconvolution",
        "EstimationReference": CSD_REFERENCE,
    }
    vectors = (
        "Fibre directions, by descending amplitude: x, y and z of the first, of the second and of the third; NaN where "
        "absent. The length is the amplitude relative to that of a single coherent fibre"
    )
    frame = {"OrientationRepresentation": "3vector", "ReferenceAxes": "bvec"}
    sidecars = [
        _sidecar(group, bids_dir, "Number of fibre directions", skull_stripped=True, **fields),
        _sidecar(group, bids_dir, vectors, skull_stripped=True, **fields, **frame),
    ]
    record = {"series": group.name, "n_fibres": names[0], "directions": names[1], "notes": []}
    return {"names": names, "sidecars": sidecars, "record": record}


def fit_outputs(
    item: SeriesPlan,
    model_name: str,
    estimator_name: str,
    bids_dir: str,
    clashing: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Return inputs of `SaveFit` for one fit.

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
    if (model_name, estimator_name) in item.bundle_fits:
        model = BundlesByVoxel(model).model  # type: ignore[arg-type]
        title = f"{title}, 0 to 3 fibre directions"
        maps_used.append(f"bids::{orientation_outputs(item, bids_dir)['names'][1]}")
    alone = sum(name == model_name for name, _ in item.fits) == 1
    algorithm = {
        "EstimationAlgorithm": estimator.title,
        "EstimationReference": f"Model: {model.reference}. Estimator: {estimator.reference}",
    }
    unknown = "" if item.has_residuals(model_name) else f". Not known: {NO_RESIDUALS}"

    def sidecar(description: str, unit: str) -> dict[str, Any]:
        found = _sidecar(group, bids_dir, description, skull_stripped=True, Units=unit, **algorithm)
        found["Sources"] += maps_used
        return found

    saved = [parameter for parameter in (*model.parameters, *model.derived) if parameter.saved]
    names = [_map_names(group, model_name, parameter, estimator.label(), alone, clashing) for parameter in saved]
    is_moderated = estimator.std_from_residuals and (model_name, estimator_name) not in item.bundle_fits
    moderated = f"; {MODERATED}" if is_moderated and item.has_residuals(model_name) else ""
    std_kinds = {p: _std_kind(estimator, p) for p in saved}
    exceptions = [f"; of {p.name}: {kind}" for p, kind in std_kinds.items() if kind != estimator.std_kind]
    # Relaxometry has no entity for the model.
    entities = {"model": model_name} if group.kind == "dwi" else {}
    desc = estimator.label() if group.kind == "dwi" else f"{estimator.label()}{model_name}"
    posterior = [
        (own[ending], sidecar(f"{text} of: {p.description}", p.unit))
        for ending, text in INTERVAL.items()
        for p, own in zip(saved, names, strict=True)
    ]
    posterior.append((_name(group, "logevidence", **entities, desc=desc), sidecar(LOG_EVIDENCE, "arbitrary")))
    posterior = posterior if estimator.has_posterior else []
    record = {
        "series": group.name,
        "kind": group.kind,
        "model": model_name,
        "model_title": title,
        "model_reference": model.reference,
        "estimator": estimator_name,
        "estimator_title": estimator.title,
        "std_kind": "".join((estimator.std_kind, *exceptions, moderated)),
        "status": _name(group, "dseg", **entities, desc=f"{desc}status"),
        "maps": [_map_entry(parameter, own) for parameter, own in zip(saved, names, strict=True)],
        "posterior": [name for name, _ in posterior],
    }
    description = f"Outcome of the estimation ({title}, {estimator.title}) in each voxel"
    return {
        "record": record,
        "sidecars": [sidecar(p.description, p.unit) for p in saved],
        "std_sidecars": [
            sidecar(f"Standard deviation ({kind}{moderated}) of: {p.description}{unknown}", p.unit)
            for p, kind in std_kinds.items()
        ],
        "posterior_sidecars": [sidecar for _, sidecar in posterior],
        "status_sidecar": _sidecar(group, bids_dir, description, skull_stripped=True, Manual=False),
    }


def _std_kind(estimator: type[Estimator], parameter: Parameter) -> str:
    """Return how the standard deviations of a parameter are obtained."""
    from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares

    is_expected = parameter.is_skewed and issubclass(estimator, NonLinearLeastSquares)
    return EXPECTED_ERROR if is_expected else estimator.std_kind


def has_intervals(kind: type[Estimator]) -> bool:
    """Tell whether conformal intervals are given of an estimator: where it is learned, by voxel."""
    from qmri_bidsapp.estimators.trained import TrainedEstimator

    return issubclass(kind, TrainedEstimator) and not kind.is_spatial


def read_names(
    item: SeriesPlan, model_name: str, estimator_name: str, status: str, clashing: frozenset[str]
) -> dict[str, Any]:
    """Return the names of all that may be read from a certificate, given the name of the status map.

    ``maps`` is ending of ``desc`` -> quantity -> name; ``trust``, ``flag`` and ``p_value`` are single maps.
    """
    from qmri_bidsapp.registry import get_estimator, get_model
    from qmri_bidsapp.uncertainty.space import Space

    label, quantities = get_estimator(estimator_name).label(), Space(get_model(model_name)).parameters
    names = {p.name: _map_names(item.group, model_name, p, label, False, clashing) for p in quantities}
    return {
        "maps": {
            ending: {quantity: own[ending] for quantity, own in names.items()}
            for ending in (*TRUTH, *DEBIASED, *CONFORMAL)
        },
        "trust": status.replace("status_dseg", "trust_dseg"),
        "flag": status.replace("status_dseg", "flag_dseg"),
        "p_value": status.replace("status_dseg", "flag_pvalue"),
    }


def truth_outputs(
    item: SeriesPlan,
    model_name: str,
    estimator_name: str,
    fit: Mapping[str, Any],
    clashing: frozenset[str],
    *,
    debias: bool,
) -> dict[str, Any]:
    """Return inputs of `SaveTruth` for one fit, given what `fit_outputs` returned for it; see there."""
    from qmri_bidsapp.registry import get_estimator, get_model
    from qmri_bidsapp.uncertainty.ood import LEVEL
    from qmri_bidsapp.uncertainty.space import Space

    model, kind = get_model(model_name), get_estimator(estimator_name)
    sidecar_of = {
        entry["parameter"]: sidecar for entry, sidecar in zip(fit["record"]["maps"], fit["sidecars"], strict=True)
    }
    names = read_names(item, model_name, estimator_name, fit["record"]["status"], clashing)
    entries, sidecars = [], []
    endings = TRUTH | (DEBIASED if debias else {}) | (CONFORMAL if has_intervals(kind) else {})
    for ending, text in endings.items():
        under = "" if ending in CONFORMAL else f", {READ_UNDER}"
        for p in Space(model).parameters:
            entries.append({"parameter": p.name, "ending": ending, "map": names["maps"][ending][p.name]})
            sidecars.append({**sidecar_of[p.name], "Description": f"{p.description}: {text}{under}"})
    record = {name: fit["record"][name] for name in ("series", "model", "estimator")}
    title = f"{fit['record']['model_title']}, {fit['record']['estimator_title']}"
    return {
        "record": {
            **record,
            "truths": entries,
            **{name: names[name] for name in ("trust", "flag", "p_value")},
        },
        "sidecars": sidecars,
        "trust_sidecar": {
            **fit["status_sidecar"],
            "Description": f"What the certificate says of the estimate ({title}) in each voxel",
        },
        "flag_sidecars": [
            {
                **fit["status_sidecar"],
                "Description": f"Why a voxel is unlike all that was simulated ({title}), at a level of {LEVEL:g}",
            },
            {
                **{key: value for key, value in fit["status_sidecar"].items() if key != "Manual"},
                "Description": f"Part of simulated voxels of like signal-to-noise ratio that are as strange ({title})",
                "Units": "1",
            },
        ],
    }


def _map_entry(parameter: Parameter, names: dict[str, str]) -> dict[str, Any]:
    """Return what the report needs to know of a parameter's map, given `_map_names`."""
    return {
        "parameter": parameter.name,
        "description": parameter.description,
        "unit": parameter.unit,
        "display_range": parameter.display_range and list(parameter.display_range),
        "map": names[""],
        "std": names["std"],
    }


def _map_names(
    group: InputGroup, model: str, parameter: Parameter, estimator: str, alone: bool, clashing: frozenset[str]
) -> dict[str, str]:
    """Return the names of a parameter's map (""), its standard deviation ("std"), and of other endings of ``desc``."""
    endings = ("", "std", *INTERVAL, *TRUTH, *DEBIASED)
    if group.kind == "dwi":
        entities = {"model": model, "param": parameter.label}
        return {ending: _name(group, "dwimap", **entities, desc=f"{estimator}{ending}") for ending in endings}
    suffix = parameter.bids_suffix
    if suffix is None:
        raise ValueError(f"Parameter {parameter.name} of model {model} has no BIDS suffix.")
    if suffix in SHARED_SUFFIXES or suffix in clashing:
        return {ending: _name(group, suffix, desc=f"{estimator}{model}{ending}") for ending in endings}
    names = {ending: _name(group, suffix, desc=f"{estimator}{ending}") for ending in endings}
    return {**names, "": _name(group, suffix)} if alone else names
