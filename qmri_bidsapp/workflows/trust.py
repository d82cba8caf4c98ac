"""The steps that say how far a fit can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from nipype.pipeline.engine import Workflow

#: What a certificate depends on and the fit node knows.
_SHARED = ("acquisition", "model", "estimator", "seed", "device", "use_gpu", "n_threads", "weights", "weights_digest")


def add_trust(
    wf: Workflow,
    fit: Any,
    save: Any,
    *,
    cache: Path,
    prior: str,
    samples: Path | None,
    covariates_are_known: bool,
) -> tuple[Any, Any]:
    """Add the nodes that certify the estimator of a fit, and read its maps back to the truth.

    Parameters
    ----------
    wf : Workflow
    fit : Node
        `Fit`.
    save : Node
        `SaveTruth`. Nothing that saves the fit depends on these nodes.
    cache : Path
        Folder of all certificates, which all subjects share.
    prior : str
        Name of the distribution of the truth.
    samples : Path or None
        What it is made from; None for the uniform one.
    covariates_are_known : bool
        Whether the fit is given maps of the model's covariates.

    Returns
    -------
    certify, read : Node
        The weights of the former, the mask and the covariates of the latter are to be connected.
    """
    from nipype.interfaces.base import isdefined
    from nipype.pipeline.engine import Node

    from qmri_bidsapp.interfaces.uncertainty import Certify, ReadTruth

    fit.inputs.with_evidence = True
    inputs = {name: value for name in _SHARED if isdefined(value := getattr(fit.inputs, name))}
    if samples is not None:
        inputs |= {"prior": prior, "samples": str(samples)}
    certify = Node(
        Certify(cache=str(cache), covariates_are_known=covariates_are_known, **inputs),
        name=fit.name.replace("fit_", "certify_", 1),
        n_procs=fit.n_procs,
        mem_gb=2,
    )
    certify.title = fit.title.replace(" fit ", " certificate ")
    read = Node(ReadTruth(model=fit.inputs.model), name=fit.name.replace("fit_", "truth_", 1), mem_gb=2)
    read.title = fit.title.replace(" fit ", " truth ")
    levels = ("snr", "noise_is_given", "floor_removed")
    of_voxels = ("estimates", "stds", "evidence")
    found = ("maps", "trust", "counts", "wide_counts", "flags", "flag_counts", "noise_factor", "certificate")
    wf.connect(
        [
            (fit, certify, [(name, name) for name in levels]),
            (certify, read, [("certificate", "certificate")]),
            (fit, read, [(name, name) for name in of_voxels]),
            (fit, save, [("training", "training")]),
            (read, save, [(name, name) for name in found]),
        ]
    )
    return certify, read
