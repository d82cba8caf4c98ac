"""The whole graph: one workflow per subject."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp import formats
from qmri_bidsapp.bids.record_files import step_file
from qmri_bidsapp.workflows.motion_score import add_motion, save_inputs
from qmri_bidsapp.workflows.outputs import (
    anat_outputs,
    certified_parameters,
    fit_names,
    fit_outputs,
    has_intervals,
    orientation_outputs,
    series_outputs,
    truth_outputs,
    usable_outputs,
)
from qmri_bidsapp.workflows.plan import SeriesPlan, SubjectPlan, is_learned, plan, weights_for
from qmri_bidsapp.workflows.series import (
    Resources,
    init_anat_wf,
    init_fit_node,
    init_orientation_node,
    init_series_wf,
    init_train_node,
)
from qmri_bidsapp.workflows.trust import add_trust

if TYPE_CHECKING:
    from nipype.pipeline.engine import Workflow

    from qmri_bidsapp.bids.inputs import InputGroup
    from qmri_bidsapp.bids.record import TruthRecord
    from qmri_bidsapp.bids.save_results import TruthSidecars
    from qmri_bidsapp.config import Config

__all__ = [
    "SubjectPlan",
    "cache_dir",
    "init_qmri_wf",
    "init_subject_wf",
    "plan",
    "record_dir",
    "workflow_name",
]


def cache_dir(config: Config) -> Path:
    """Return the folder of nipype's cache; a version of the program that computes other maps uses another folder."""
    return Path(config.work_dir) / f"qmri_bidsapp-maps{formats.MAPS}"


def samples_file(config: Config, model_name: str) -> Path | None:
    """Return the file of samples that the training distribution of this run is made from; None for a uniform one."""
    return None if config.prior == "uniform" else cache_dir(config) / "priors" / config.run_id / f"{model_name}.npz"


def record_dir(config: Config, subject: str) -> Path:
    """Return the folder of the records that the steps of a subject write."""
    return cache_dir(config) / "records" / f"sub-{subject}"


def workflow_name(subject: str) -> str:
    """Return the name of a subject's workflow, and so of its folder in the cache."""
    # Nipype allows no +, BIDS no underscore.
    return f"sub_{subject.replace('+', '_')}_wf"


def init_qmri_wf(config: Config, plans: tuple[SubjectPlan, ...], crash_dirs: dict[str, Path]) -> Workflow:
    """Build the workflow of all subjects.

    Parameters
    ----------
    config : Config
    plans : tuple of SubjectPlan
        Subjects with something to do.
    crash_dirs : dict
        Subject -> folder of its crash files.
    """
    from nipype.pipeline.engine import Workflow

    wf = Workflow(name="qmri_wf", base_dir=str(cache_dir(config)))
    for subject_plan in plans:
        subject_wf = init_subject_wf(config, subject_plan)
        execution = {"crashdump_dir": str(crash_dirs[subject_plan.subject])}
        for node in subject_wf._get_all_nodes():
            node.config = {"execution": execution}
        wf.add_nodes([subject_wf])
    return wf


def init_subject_wf(config: Config, subject_plan: SubjectPlan) -> Workflow:
    """Build the workflow of one subject: T1w, then every series with its fits, each with its sink.

    Parameters
    ----------
    config : Config
    subject_plan : SubjectPlan
    """
    from nipype.pipeline.engine import Workflow

    from qmri_bidsapp.interfaces.derivatives import SaveImages

    resources = Resources(n_threads=config.omp_nthreads, device=config.torch_device)
    wf = Workflow(name=workflow_name(subject_plan.subject))
    anat = {}
    for index, group in enumerate(subject_plan.t1w):
        anat_wf = init_anat_wf(group, f"anat_{index}_wf", subject_plan.skip)
        anat[group] = anat_wf
        outputs = anat_outputs(group, str(config.bids_dir), subject_plan.skip)
        save = _sink(
            config, subject_plan, SaveImages, f"save_anat_{index}", group.name, ("series", f"{index}"), **outputs
        )
        for port, field in enumerate(("preproc", "mask", "dseg"), start=1):
            wf.connect(anat_wf, f"outputnode.{field}", _merge(wf, save, f"save_anat_{index}_files"), f"in{port}")
        if subject_plan.motion_weights is not None:
            _add_score(wf, config, subject_plan, group, anat_wf, index)
    for index, item in enumerate(subject_plan.series, start=len(anat)):
        if not item.fits:
            continue
        t1w = subject_plan.t1w_for(item.group)
        _add_series(wf, config, subject_plan, item, anat.get(t1w) if t1w else None, index, resources)
    return wf


def _add_score(
    wf: Workflow, config: Config, subject_plan: SubjectPlan, group: InputGroup, anat_wf: Workflow, index: int
) -> None:
    """Add the motion score of a T1w and its sink."""
    from qmri_bidsapp.interfaces.derivatives import SaveMotionScore

    motion_weights = subject_plan.motion_weights
    assert motion_weights is not None
    inputs = save_inputs(group, str(config.bids_dir), motion_weights)
    what = f"{group.name} motion score"
    save = _sink(
        config, subject_plan, SaveMotionScore, f"save_motion_{index}", what, ("motion_scores", f"{index}"), **inputs
    )
    add_motion(wf, anat_wf, group, save, motion_weights, n_threads=config.omp_nthreads, name=f"motion_{index}")


def _merge(wf: Workflow, save: Any, name: str) -> Any:
    """Return the node that gathers three files for a `SaveImages` node, made on first use."""
    from nipype.interfaces.utility import Merge
    from nipype.pipeline.engine import Node

    found = wf.get_node(name)
    if found is None:
        found = Node(Merge(3), name=name)
        wf.connect(found, "out", save, "in_files")
    return found


def _add_series(
    wf: Workflow,
    config: Config,
    subject_plan: SubjectPlan,
    item: SeriesPlan,
    anat_wf: Workflow | None,
    index: int,
    resources: Resources,
) -> None:
    """Add preprocessing, fits and sinks of one series."""
    from qmri_bidsapp.interfaces.derivatives import SaveImages, SaveSeries

    series_wf = init_series_wf(item, resources, has_t1w=anat_wf is not None)
    if anat_wf is not None:
        pairs = [("preproc", "t1w"), ("mask", "t1w_mask"), ("dseg", "t1w_dseg")]
        ports = [(f"outputnode.{source}", f"inputnode.{target}") for source, target in pairs]
        wf.connect([(anat_wf, series_wf, ports)])
    notes = () if anat_wf is not None else ("No T1w: the mask comes from the series, and there are no tissues.",)
    outputs = series_outputs(item, str(config.bids_dir), notes)
    save = _sink(
        config,
        subject_plan,
        SaveSeries,
        f"save_{item.node_name}",
        item.group.name,
        ("series", f"{index}"),
        **outputs,
    )
    fields = ["preproc", "mask", "notes", "steps", *([] if "align" in item.skip else ["motion"])]
    fit_ports = [("preproc", "in_file"), ("mask", "in_mask")]
    if anat_wf is not None:
        fields.append("dseg")
    if item.group.row.is_diffusion:
        save.inputs.b_value = [float(value) for value in item.group.acquisition.to_dict()["b_value"]]  # type: ignore[union-attr]
        fields.append("direction")
        if item.group.epi is not None and item.group.epi.source is not None:
            fields += ["field", "displacement"]
        names = ("direction", "noise_std", "floor_removed", "errors", "removed", "is_resampled")
        fit_ports += [(name, name) for name in names]
    wf.connect([(series_wf, save, [(f"outputnode.{field}", field) for field in fields])])
    orientation = init_orientation_node(item, resources) if item.bundle_fits else None
    if orientation is not None:
        what = f"{item.group.name} fibre directions"
        inputs = orientation_outputs(item, str(config.bids_dir))
        name = f"save_{orientation.name}"
        keep = _sink(config, subject_plan, SaveImages, name, what, ("orientations", f"{index}"), **inputs)
        ports = [("preproc", "in_file"), ("mask", "in_mask"), ("direction", "direction")]
        ports += [("dseg", "in_dseg")] if anat_wf is not None else []
        wf.connect([(series_wf, orientation, [(f"outputnode.{source}", target) for source, target in ports])])
        wf.connect([(orientation, keep, [("images", "in_files"), ("notes", "notes")])])
    # Connecting empties the list.
    fit_fields = [(f"outputnode.{source}", target) for source, target in fit_ports]
    for number, (model, estimator) in enumerate(item.fits):
        fit = init_fit_node(item, model, estimator, resources)
        wf.connect([(series_wf, fit, list(fit_fields))])
        _add_fit(wf, config, subject_plan, item, fit, f"{index}_{number}", resources)
        if (model, estimator) in item.bundle_fits:
            wf.connect(orientation, "directions", fit, "directions")


def _add_fit(
    wf: Workflow,
    config: Config,
    subject_plan: SubjectPlan,
    item: SeriesPlan,
    fit: Any,
    step: str,
    resources: Resources,
) -> None:
    """Add covariates, certificate, training or weights, and the sink of a fit."""
    from qmri_bidsapp.interfaces.derivatives import SaveFit, SaveUsable

    model, estimator = fit.inputs.model, fit.inputs.estimator
    clashing = subject_plan.clashing(item, model)
    record, sidecars = fit_outputs(item, model, estimator, str(config.bids_dir), clashing)
    names = fit_names(item, model, estimator, clashing)
    written = {file for entry in record.maps for file in (entry.estimate, entry.std)} | set(record.posterior_files)
    if _has_covariates(item, model):
        wf.connect(wf.get_node(f"{item.node_name}_wf"), "outputnode.covariates", fit, "covariates")
    what = f"{item.group.name} {model} ({estimator})"
    usable_name = f"save_{fit.name.replace('fit_', 'usable_', 1)}"
    usable_inputs = usable_outputs(record, sidecars, names)
    usable = _sink(config, subject_plan, SaveUsable, usable_name, f"{what} usable", ("usables", step), **usable_inputs)
    wf.connect(fit, "status", usable, "status")
    certify = None
    if item.objection_to_certificate(model, estimator) is None and not config.no_certificate:
        truth = truth_outputs(record, sidecars, names, debias=config.debias)
        written |= set(truth[0].files)
        certify, read = _add_certificate(wf, config, subject_plan, item, fit, step, truth)
        wf.connect([(read, usable, [("trust", "trust"), ("flags", "flags")])])
    _add_weights(wf, config, fit, certify, resources)
    # What an earlier run wrote beyond this run's files would contradict the new maps.
    obsolete = sorted(names.further(certified_parameters(model)) - written)
    inputs = {"record": record, "sidecars": sidecars, "obsolete": obsolete}
    save = _sink(config, subject_plan, SaveFit, f"save_{fit.name}", what, ("fits", step), **inputs)
    results = ("estimates", "stds", "posterior", "status", "counts", "seconds", "training")
    wf.connect([(fit, save, [(name, name) for name in results])])


def _add_certificate(
    wf: Workflow,
    config: Config,
    subject_plan: SubjectPlan,
    item: SeriesPlan,
    fit: Any,
    step: str,
    truth: tuple[TruthRecord, TruthSidecars],
) -> tuple[Any, Any]:
    """Add the certificate of a fit, what is read from it, and its sink; return the first two nodes."""
    from qmri_bidsapp.interfaces.derivatives import SaveTruth
    from qmri_bidsapp.registry import get_estimator

    model, estimator = fit.inputs.model, fit.inputs.estimator
    what, name = f"{item.group.name} {model} ({estimator}) truth", f"save_{fit.name.replace('fit_', 'truth_', 1)}"
    inputs = {"record": truth[0], "sidecars": truth[1]}
    save = _sink(config, subject_plan, SaveTruth, name, what, ("truths", step), **inputs)
    has_covariates = _has_covariates(item, model)
    certify, read = add_trust(
        wf,
        fit,
        save,
        cache=cache_dir(config) / "certificates",
        prior=config.prior,
        samples=samples_file(config, model) if _has_samples(item, model) else None,
        covariates_are_known=has_covariates,
    )
    read.inputs.trait_set(debias=config.debias, with_intervals=has_intervals(get_estimator(estimator)))
    series_wf = wf.get_node(f"{item.node_name}_wf")
    wf.connect(series_wf, "outputnode.mask", read, "in_mask")
    if has_covariates:
        wf.connect(series_wf, "outputnode.covariates", read, "covariates")
    return certify, read


def _add_weights(wf: Workflow, config: Config, fit: Any, certify: Any, resources: Resources) -> None:
    """Give the nodes of a trained estimator their weights, or add the node that trains it."""
    from qmri_bidsapp.artifacts.weights import digest_of
    from qmri_bidsapp.registry import get_estimator, get_model

    model, estimator = fit.inputs.model, fit.inputs.estimator
    takers = [node for node in (fit, certify) if node is not None]
    weights = weights_for(config, get_model(model), get_estimator(estimator))
    if weights is not None:
        for node in takers:
            node.inputs.trait_set(weights=str(weights), weights_digest=digest_of(weights))
    elif is_learned(estimator):
        cache, samples = cache_dir(config) / "weights", samples_file(config, model)
        train = init_train_node(fit, cache, config.prior, samples)
        wf.connect([(train, node, [("weights", "weights")]) for node in takers])


def _has_covariates(item: SeriesPlan, model: str) -> bool:
    from qmri_bidsapp.registry import get_model

    return bool(item.group.covariates and get_model(model).covariates)


def _has_samples(item: SeriesPlan, model: str) -> bool:
    """Return whether a model has a learned estimator, so that samples for its training distribution are gathered."""
    return any(name == model and is_learned(estimator) for name, estimator in item.fits)


def _sink(
    config: Config,
    subject_plan: SubjectPlan,
    interface: Any,
    name: str,
    what: str,
    step: tuple[str, str],
    **inputs: Any,
) -> Any:
    """Return a node that saves into the output folder; `step` names its part of the record, see `step_file`."""
    from nipype.pipeline.engine import Node

    file = step_file(record_dir(config, subject_plan.subject), *step)
    node = Node(
        interface(out_dir=str(config.derivatives_dir), record_file=str(file), **inputs),
        name=name,
        mem_gb=0.5,
    )
    node.title = f"save {what}"
    return node
