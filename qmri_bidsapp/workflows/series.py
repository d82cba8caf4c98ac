"""Graphs of the steps: T1w, relaxometry, diffusion, fit. Each has an ``inputnode`` and an ``outputnode``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qmri_bidsapp.workflows.diffusion import connect_diffusion
from qmri_bidsapp.workflows.nodes import Resources, make_identity, make_node

if TYPE_CHECKING:
    from pathlib import Path

    from nipype.pipeline.engine import Workflow

    from qmri_bidsapp.bids.inputs import InputGroup
    from qmri_bidsapp.workflows.plan import SeriesPlan


def init_anat_wf(group: InputGroup, name: str, skip: tuple[str, ...] = ()) -> Workflow:
    """Build the T1w workflow: bias correction, brain mask, tissues.

    Parameters
    ----------
    group : InputGroup
        The T1w image.
    name : str
    skip : tuple of str
        Steps left out, see `config.STEPS`.

    Outputs
    -------
    preproc, mask, dseg
    """
    from nipype.pipeline.engine import Workflow

    from qmri_bidsapp.interfaces import preprocess as nodes

    wf = Workflow(name=name)
    outputnode = make_identity("outputnode", ["preproc", "mask", "dseg"])
    load = make_node(nodes.ImportImages, "load", f"read {group.name}", in_files=list(group.files), ndim=3)
    bias = load
    if "bias-field" not in skip:
        bias = make_node(nodes.CorrectBias, "bias", f"{group.name} bias correction", mem_gb=2)
        wf.connect(load, "out_file", bias, "in_file")
    brain = make_node(nodes.ExtractBrain, "brain", f"{group.name} brain mask", mem_gb=2)
    tissues = make_node(nodes.SegmentTissues, "tissues", f"{group.name} tissues", mem_gb=2)
    wf.connect(
        [
            (bias, brain, [("out_file", "in_file")]),
            (bias, tissues, [("out_file", "in_file")]),
            (brain, tissues, [("out_mask", "in_mask")]),
            (bias, outputnode, [("out_file", "preproc")]),
            (brain, outputnode, [("out_mask", "mask")]),
            (tissues, outputnode, [("out_dseg", "dseg")]),
        ]
    )
    return wf


def init_series_wf(item: SeriesPlan, resources: Resources, *, has_t1w: bool) -> Workflow:
    """Build the preprocessing of one quantitative series.

    Parameters
    ----------
    item : SeriesPlan
    resources : Resources
    has_t1w : bool
        Whether mask and tissues come from a T1w (through the ``inputnode``) or from the series itself.

    Inputs
    ------
    t1w, t1w_mask, t1w_dseg

    Outputs
    -------
    preproc, mask, dseg, notes, steps, motion, direction, noise_std, floor_removed, errors, removed,
    is_resampled, covariates, field, displacement
        ``dseg`` only with a T1w; ``motion`` unless alignment is skipped; ``direction``, ``noise_std``,
        ``floor_removed``, ``errors`` and ``removed`` only of diffusion series; ``covariates`` only where the series has
        a map of the transmit field.
    """
    from nipype.interfaces.utility import Merge
    from nipype.pipeline.engine import Node, Workflow

    from qmri_bidsapp.interfaces import preprocess as nodes

    wf = Workflow(name=f"{item.node_name}_wf")
    inputnode = make_identity("inputnode", ["t1w", "t1w_mask", "t1w_dseg"])
    fields = ["preproc", "mask", "dseg", "notes", "steps", "motion"]
    fields += [
        "direction",
        "noise_std",
        "floor_removed",
        "errors",
        "removed",
        "is_resampled",
        "covariates",
        "field",
        "displacement",
    ]
    outputnode = make_identity("outputnode", fields)
    mem_gb = max(0.5, 4 * item.group.size_gb)
    notes, steps = Node(Merge(6), name="notes"), Node(Merge(4), name="steps")
    load = _load_node(wf, item, notes, mem_gb)
    wf.connect(load, "steps", steps, "in1")
    if item.group.row.is_diffusion:
        last = connect_diffusion(wf, item, load, notes, steps, outputnode, resources, mem_gb)
    elif "align" in item.skip:
        last = load
    else:
        last = make_node(nodes.AlignSeries, "align", f"{item.group.name} alignment", mem_gb=mem_gb)
        wf.connect(
            [
                (load, last, [("out_file", "in_file")]),
                (last, notes, [("notes", "in1")]),
                (last, steps, [("steps", "in2")]),
                (last, outputnode, [("motion", "motion")]),
            ]
        )
    _connect_covariates(wf, item, load, notes, outputnode)
    title = f"{item.group.name} mask"
    if has_t1w:
        mask = make_node(nodes.TransferLabels, "mask", title, mem_gb=mem_gb, skip=list(item.skip))
        wf.connect(
            [
                (inputnode, mask, [("t1w", "t1w"), ("t1w_mask", "in_mask"), ("t1w_dseg", "in_dseg")]),
                (last, mask, [("out_file", "reference")]),
                (mask, outputnode, [("out_dseg", "dseg")]),
                (mask, notes, [("notes", "in4")]),
            ]
        )
    else:
        mask = make_node(nodes.SeriesMask, "mask", title, mem_gb=mem_gb)
        # As read: processing fills the empty border of images, from which the threshold is found.
        wf.connect([(load, mask, [("out_file", "in_file")]), (mask, notes, [("notes", "in4")])])
    wf.connect(
        [
            (last, outputnode, [("out_file", "preproc")]),
            (mask, outputnode, [("out_mask", "mask")]),
            (notes, outputnode, [("out", "notes")]),
            (steps, outputnode, [("out", "steps")]),
        ]
    )
    return wf


def _load_node(wf: Workflow, item: SeriesPlan, notes: Any, mem_gb: float) -> Any:
    """Return the node that reads a series, with its polarity where phase or imaginary parts restore it."""
    from qmri_bidsapp.interfaces import preprocess as nodes

    group, title = item.group, f"read {item.group.name}"
    files, complement = list(group.files), group.complement
    if complement is None:
        load = make_node(nodes.ImportImages, "load", title, mem_gb=mem_gb, in_files=files, ndim=group.row.ndim)
        load.inputs.is_magnitude = group.acquisition is not None and not group.acquisition.has_sign
        if len(files) > 1:
            wf.connect(load, "notes", notes, "in6")
        return load
    load = make_node(
        nodes.RestorePolarity,
        "load",
        f"{title}, polarity",
        mem_gb=3 * mem_gb,
        in_files=files,
        complement=list(complement.files),
        part=complement.part,
        inversion_time=[float(time) for time in group.acquisition.to_dict()["inversion_time"]],  # type: ignore[union-attr]
    )
    if complement.unit is not None:
        load.inputs.unit = complement.unit
    wf.connect(load, "notes", notes, "in6")
    return load


def _connect_covariates(wf: Workflow, item: SeriesPlan, load: Any, notes: Any, outputnode: Any) -> None:
    """Add the maps that the models of a series use, on its grid."""
    from qmri_bidsapp.interfaces import preprocess as nodes

    for covariate in item.group.covariates:
        title = f"{item.group.kind} transmit field"
        field = make_node(nodes.ResampleFieldmap, covariate.name, title, in_file=covariate.file)
        if covariate.factor is not None:
            field.inputs.factor = covariate.factor
        if covariate.nominal_angle is not None:
            field.inputs.nominal_angle = covariate.nominal_angle
        wf.connect(
            [
                (load, field, [("out_file", "reference")]),
                (field, outputnode, [("out_file", "covariates")]),
                (field, notes, [("notes", "in2")]),
            ]
        )


def init_fit_node(item: SeriesPlan, model: str, estimator: str, resources: Resources) -> Any:
    """Build the node that fits one model; its inputs in_file, in_mask (, noise_std, direction) are to be connected."""
    from qmri_bidsapp.interfaces.fitting import Fit

    gpu = resources.device.startswith("cuda")
    return make_node(
        Fit,
        f"fit_{item.node_name}_{model}_{estimator}",
        f"{item.group.name} fit {model} ({estimator})",
        n_procs=1 if gpu else resources.n_threads,
        mem_gb=1 + 2 * item.group.size_gb,
        acquisition=item.group.acquisition.to_dict(),  # type: ignore[union-attr]
        model=model,
        estimator=estimator,
        device=resources.device,
        use_gpu=gpu,
        n_threads=resources.n_threads,
    )


def init_train_node(fit: Any, cache: Path, prior: str, samples: Path | None) -> Any:
    """Build the node that trains the estimator of a fit node; all subjects share its cache."""
    from qmri_bidsapp.interfaces.training import Train

    inputs = {name: getattr(fit.inputs, name) for name in ("acquisition", "model", "estimator", "seed", "device")}
    if samples is not None:
        inputs |= {"prior": prior, "samples": str(samples)}
    return make_node(
        Train,
        fit.name.replace("fit_", "train_", 1),
        fit.title.replace(" fit ", " training "),
        mem_gb=2,
        cache=str(cache),
        use_gpu=fit.inputs.use_gpu,
        **inputs,
    )


def init_orientation_node(item: SeriesPlan, resources: Resources) -> Any:
    """Build the node of fibre directions; its inputs in_file, in_mask, direction (, in_dseg) are to be connected."""
    from qmri_bidsapp.interfaces.fibre_directions import FindOrientations

    return make_node(
        FindOrientations,
        f"orientation_{item.node_name}",
        f"{item.group.name} fibre directions",
        n_procs=resources.n_threads,
        mem_gb=1 + 4 * item.group.size_gb,
        acquisition=item.group.acquisition.to_dict(),  # type: ignore[union-attr]
        n_threads=resources.n_threads,
    )
