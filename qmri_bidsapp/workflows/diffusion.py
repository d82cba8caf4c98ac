"""The graph of diffusion preprocessing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qmri_bidsapp.workflows.nodes import Resources, make_node

if TYPE_CHECKING:
    from nipype.pipeline.engine import Workflow

    from qmri_bidsapp.bids.inputs import InputGroup
    from qmri_bidsapp.workflows.plan import SeriesPlan


def connect_diffusion(
    wf: Workflow,
    item: SeriesPlan,
    load: Any,
    notes: Any,
    steps: Any,
    outputnode: Any,
    resources: Resources,
    mem_gb: float,
) -> Any:
    """Add denoising, unringing, correction of distortion and alignment to a workflow; return the last node."""
    from qmri_bidsapp.interfaces import diffusion as nodes
    from qmri_bidsapp.interfaces.preprocess import SeriesMask

    acquisition = item.group.acquisition.to_dict()  # type: ignore[union-attr]
    series = item.group.name
    raw_mask = make_node(SeriesMask, "rawmask", f"{series} preliminary mask", mem_gb=mem_gb)
    protocol: dict[str, Any] = {
        "b_value": [float(value) for value in acquisition["b_value"]],
        "direction": [list(row) for row in acquisition["direction"]],
    }
    # Without denoising the node still measures the noise, which the fits need.
    title = f"{series} {'noise' if 'denoise' in item.skip else 'denoising'}"
    # The series, and the replicate before and after denoising: 5.6 times the series, as measured.
    epi = item.group.epi
    denoise = make_node(
        nodes.DenoiseDiffusion,
        "denoise",
        title,
        mem_gb=1.5 * mem_gb,
        skip=list(item.skip),
        method=item.denoise,
        n_volumes=list(epi.n_volumes if epi else [item.group.shape[3]]),
        **protocol,
    )
    wf.connect(
        [
            (load, raw_mask, [("out_file", "in_file")]),
            (load, denoise, [("out_file", "in_file")]),
            (raw_mask, denoise, [("out_mask", "in_mask")]),
            (denoise, notes, [("notes", "in1")]),
            (denoise, steps, [("steps", "in2")]),
            (denoise, outputnode, [("floor_removed", "floor_removed")]),
        ]
    )
    last = denoise
    if "unring" not in item.skip:
        unring = make_node(
            nodes.UnringDiffusion,
            "unring",
            f"{series} Gibbs unringing",
            n_procs=resources.n_threads,
            mem_gb=mem_gb,
            n_threads=resources.n_threads,
            partial_fourier=_partial_fourier(item.group),
            **protocol,
        )
        wf.connect(
            [
                (raw_mask, unring, [("out_mask", "in_mask")]),
                (denoise, unring, [("out_file", "in_file"), ("is_denoised", "is_denoised"), ("errors", "errors")]),
                (unring, notes, [("notes", "in2")]),
                (unring, steps, [("steps", "in3")]),
            ]
        )
        last = unring
    # Connecting empties lists.
    noise = (("noise_std", "noise_std"), ("removed", "removed"))
    field = _field_node(item, protocol, mem_gb)
    parts = ["distortion"] * (field is not None) + ["alignment"] * ("align" not in item.skip)
    title = f"{series} {' and '.join(parts or ['slices'])}"
    align = make_node(nodes.AlignDiffusion, "align", title, mem_gb=mem_gb, skip=list(item.skip), **protocol)
    wf.connect(
        [
            (last, align, [("out_file", "in_file")]),
            (align, notes, [("notes", "in3")]),
            (align, steps, [("steps", "in4")]),
            (denoise, align, list(noise)),
            (last, align, [("errors", "errors")]),
            (
                align,
                outputnode,
                [*noise, *((name, name) for name in ("errors", "direction", "motion", "is_resampled"))],
            ),
        ]
    )
    if field is not None:
        align.inputs.encodings = field.inputs.encodings
        wf.connect(
            [
                (last, field, [("out_file", "in_file")]),
                (field, align, [("field", "field")]),
                (field, notes, [("notes", "in5")]),
                (field, outputnode, [("field", "field"), ("displacement", "displacement")]),
            ]
        )
    return align


def _field_node(item: SeriesPlan, protocol: dict[str, Any], mem_gb: float) -> Any:
    """Return the node that finds the field of a series, its image to be connected; None without a source."""
    from qmri_bidsapp.interfaces.diffusion import EstimateField

    epi = item.group.epi
    if epi is None or epi.source is None:
        return None
    rows = [(encoding.axis, encoding.sign, encoding.readout) for encoding in epi.encodings]
    source, title = epi.source, f"{item.group.name} field"
    encodings = [row for row, n in zip(rows, epi.n_volumes, strict=True) for _ in range(n)]
    node = make_node(EstimateField, "field", title, mem_gb=mem_gb, encodings=encodings, kind=source.kind, **protocol)
    files = [image.file for image in source.images] or list(source.files)
    if files:
        node.inputs.files = files
    if source.images:
        node.inputs.file_encodings = [(i.encoding.axis, i.encoding.sign, i.encoding.readout) for i in source.images]
    if source.magnitude is not None:
        node.inputs.magnitude = source.magnitude
    if source.echo_times:
        node.inputs.echo_times = list(source.echo_times)
    if source.unit is not None:
        node.inputs.unit = source.unit
    return node


def _partial_fourier(group: InputGroup) -> float:
    """Return the acquired part of k-space that the sidecar states; one where it states none."""
    stated = dict(group.metadata).get("PartialFourier")
    return float(stated) if isinstance(stated, (int, float)) else 1.0
