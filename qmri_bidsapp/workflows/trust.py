"""The nodes that certify a fit: certificate, expected bias, range of the truth and flags."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from nipype.pipeline.engine import Workflow

#: Inputs that the certificate shares with the fit.
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
    """Add the nodes that certify the estimator of a fit and apply the certificate to its maps.

    Parameters
    ----------
    wf : Workflow
    fit : Node
        `Fit`.
    save : Node
        `SaveTruth`. The node that saves the fit does not depend on these nodes.
    cache : Path
        Folder of all certificates, shared by all participants.
    prior : str
        Name of the distribution of the truth.
    samples : Path or None
        File of the parameters that define it; None for the uniform distribution.
    covariates_are_known : bool
        Whether the fit gets maps of the covariates of the model.

    Returns
    -------
    certify, read : Node
        The caller connects the weights of `certify`, and the mask and the covariates of `read`.
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
